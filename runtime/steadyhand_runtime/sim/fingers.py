"""The scripted operator's fingers: how this person works, and keys pressed a reaction time after their cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from steadyhand_models.messages import EventKind, Mode, OperatorEvent

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
NS = 1_000_000_000

DRIVING = frozenset({Mode.POLICY, Mode.TAKEOVER})
WAITING = frozenset({Mode.RESET, Mode.HOLD})
ANY = frozenset(Mode)
_OPPOSITE = {
    EventKind.SUCCESS: EventKind.FAILURE,
    EventKind.FAILURE: EventKind.SUCCESS,
    EventKind.FALSE_POSITIVE: EventKind.SUCCESS,
    EventKind.FALSE_NEGATIVE: EventKind.FAILURE,
}
_SAYS_SUCCESS = frozenset({EventKind.SUCCESS, EventKind.FALSE_NEGATIVE})


@dataclass(frozen=True)
class OperatorSettings:
    """How this person works. Steps are control ticks."""

    demonstrations: Count = 10
    wander: Count = 3  # demonstrations of nothing, ended as failures: the classifier's easy negatives
    wander_steps: Annotated[int, Field(gt=0)] = 20
    takeover_rate: Share = 0.9  # of the episodes that need help
    patience_lo_steps: Annotated[int, Field(gt=0)] = 20
    patience_hi_steps: Annotated[int, Field(gt=0)] = 25
    guide_least_steps: Annotated[int, Field(gt=0)] = 8  # then a grasp is enough
    guide_lo_steps: Annotated[int, Field(gt=0)] = 14
    guide_hi_steps: Annotated[int, Field(gt=0)] = 24
    takeovers_per_episode: Count = 2
    stray_m: Annotated[float, Field(gt=0)] = 0.13
    reaction_lo_s: Annotated[float, Field(gt=0)] = 0.3
    reaction_hi_s: Annotated[float, Field(gt=0)] = 0.8
    verdict_rate: Share = 0.3  # of the episodes that need no word
    wrong_key_rate: Share = 0.05
    # Instead of wrong_key_rate, each where it is given: of all moments without success, and of all true ones, spoken of
    # or not. The keys of whoever demonstrates stay right.
    false_success_rate: Share | None = None
    false_failure_rate: Share | None = None
    undo_rate: Share = 0.5  # of the wrong keys
    lag_s: Annotated[float, Field(ge=0, le=10)] = 0.0  # added to every reaction; no word says so
    demonstrate_again_s: Annotated[float, Field(gt=0)] = 180.0  # waiting that long for a policy earns another one
    accepts_classifier: bool = False  # lets a classifier that is offered end episodes
    who: str = "script"

    @property
    def reaction_s(self) -> float:
        """Mean reaction time, as every word reports it: what this person was once measured at, without the lag."""
        return (self.reaction_lo_s + self.reaction_hi_s) / 2

    def own_rate(self, kind: EventKind) -> float | None:
        """The rate that is given for saying the opposite of `kind` alone; None where wrong_key_rate holds."""
        return self.false_failure_rate if kind in _SAYS_SUCCESS else self.false_success_rate

    def slip_rate(self, kind: EventKind) -> float:
        """Share of the moments that deserve `kind` at which the opposite is said."""
        own = self.own_rate(kind)
        return self.wrong_key_rate if own is None else own


@dataclass(frozen=True)
class Press:
    """A key that will be pressed at `due_ns`, unless the mode has left `modes` or the episode has changed by then.

    With ANY mode it will be pressed even in the next episode: flags and undo say themselves what they are about.
    """

    due_ns: int
    kind: EventKind
    modes: frozenset[Mode]
    episode: int | None
    undo_of: str = ""
    mistaken: bool = False


class Fingers:
    """What this person is about to press. `session` keeps event ids of two lives with one seed apart."""

    def __init__(self, settings: OperatorSettings, rng: np.random.Generator, session: str) -> None:
        self._settings, self._rng, self._session = settings, rng, session
        self._pending: list[Press] = []
        self._events = 0

    def plan(
        self, now_ns: int, kind: EventKind, modes: frozenset[Mode], episode: int | None, errs: bool = True
    ) -> int | None:
        """Press `kind` after a reaction time, or by mistake its opposite; the time, or None when mistaken.

        Whoever is not in a hurry never `errs`.
        """
        if errs and self._rng.random() < self._settings.slip_rate(kind):
            self.mistake(now_ns, _OPPOSITE[kind], modes, episode)
            return None
        due_ns = self._reacted(now_ns)
        self.add(Press(due_ns, kind, modes, episode))
        return due_ns

    def mistake(self, now_ns: int, kind: EventKind, modes: frozenset[Mode], episode: int | None) -> None:
        """Press `kind`, which is wrong; sometimes it is noticed and undone."""
        self.add(Press(self._reacted(now_ns), kind, modes, episode, mistaken=True))

    def surely(self, now_ns: int, kind: EventKind, modes: frozenset[Mode], episode: int | None) -> None:
        """Press `kind` after a reaction time."""
        self.add(Press(self._reacted(now_ns), kind, modes, episode))

    def add(self, press: Press) -> None:
        self._pending.append(press)

    def keep(self, wanted: Callable[[Press], bool]) -> None:
        """Think better of every other press."""
        self._pending = [press for press in self._pending if wanted(press)]

    def due(self, now_ns: int, mode: Mode, episode: int | None) -> list[tuple[Press, OperatorEvent]]:
        """What is pressed now."""
        waiting, pressed = [], []
        for press in self._pending:
            if press.modes is not ANY and (mode not in press.modes or press.episode != episode):
                continue
            if press.due_ns > now_ns:
                waiting.append(press)
                continue
            event = self.event(now_ns, press.kind, press.undo_of)
            pressed.append((press, event))
            if press.mistaken and self._rng.random() < self._settings.undo_rate:
                due_ns = self._reacted(now_ns) + NS // 2
                waiting.append(Press(due_ns, EventKind.UNDO, ANY, None, event.event_id))
        self._pending = waiting
        return pressed

    def event(self, now_ns: int, kind: EventKind, undo_of: str = "") -> OperatorEvent:
        """A key pressed at once."""
        self._events += 1
        event_id = f"{self._settings.who}-{self._session}-{self._events}"
        return OperatorEvent(
            event_id, kind, now_ns, self._settings.who, "script", self._settings.reaction_s, undo_of=undo_of
        )

    def _reacted(self, now_ns: int) -> int:
        reaction_s = self._rng.uniform(self._settings.reaction_lo_s, self._settings.reaction_hi_s)
        return now_ns + round((reaction_s + self._settings.lag_s) * NS)
