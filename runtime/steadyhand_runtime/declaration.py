"""The success that the classifier declares in one episode: pending while a person may veto it, then committed; pure."""

from __future__ import annotations

from dataclasses import dataclass

from steadyhand_runtime.clock import NS_PER_S


@dataclass(frozen=True, slots=True)
class Declared:
    """The frames that fired, as step numbers of their episode, and the stamp of the last one."""

    steps: tuple[int, ...]
    stamp_ns: int


class Declaration:
    """One episode's declared success. Per frame `look`; then `due` says whether silence has committed it.

    After a veto the classifier may declare again only once a frame has been at or below its threshold: what a person
    has just denied must not be declared again by the very next frame.
    """

    def __init__(self, window_s: float) -> None:
        """window_s is how long a person may veto; 0 commits at once."""
        self._window_ns = round(window_s * NS_PER_S)
        self._since_ns: int | None = None
        self._denied = False
        self.last: Declared | None = None  # also after a veto

    def look(self, now_ns: int, above: bool, fired: Declared | None) -> None:
        """Take in a frame: whether it is above the threshold, and the frames that fired with it, if they did."""
        self._denied &= above
        if fired is not None and not self._denied and self._since_ns is None:
            self._since_ns, self.last = now_ns, fired

    def veto(self) -> None:
        """A person has denied it: the episode goes on."""
        self._since_ns, self._denied = None, True

    @property
    def pending(self) -> bool:
        """Whether a declared success can still be vetoed."""
        return self._since_ns is not None and self._window_ns > 0

    def left_s(self, now_ns: int) -> float:
        """Seconds until silence commits the pending success; 0 where none is pending."""
        if self._since_ns is None:
            return 0.0
        return max(0, self._since_ns + self._window_ns - now_ns) / NS_PER_S

    def due(self, now_ns: int) -> bool:
        """Whether a declared success ends the episode now."""
        return self._since_ns is not None and now_ns - self._since_ns >= self._window_ns

    @property
    def stands(self) -> bool:
        """Whether a success is declared and not vetoed."""
        return self._since_ns is not None
