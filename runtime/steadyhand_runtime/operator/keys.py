"""What each key means, and the pure state of the held keys as a drive in the contract's action space."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from steadyhand_models.messages import BusAction, Drive, EventKind, Mode
from steadyhand_runtime.clock import NS_PER_S


class Jaw(str, enum.Enum):
    """What a jaw key asks for; the jaw stays there."""

    OPEN = "open"
    CLOSE = "close"


class Special(str, enum.Enum):
    """Keys whose event depends on the mode."""

    TAKEOVER = "takeover"  # begins a takeover, or ends the present one


@dataclass(frozen=True)
class Axis:
    """One direction of one dimension of the action."""

    index: int
    direction: float


Meaning = Axis | Jaw | Special | EventKind | BusAction

# Forward, left and up are +x, +y and +z of the arm's base. Key names are those of both keyboard readers.
BINDINGS: dict[str, Meaning] = {
    "up": Axis(0, 1.0),
    "down": Axis(0, -1.0),
    "left": Axis(1, 1.0),
    "right": Axis(1, -1.0),
    "w": Axis(2, 1.0),
    "s": Axis(2, -1.0),
    "o": Jaw.OPEN,
    "p": Jaw.CLOSE,
    "space": Special.TAKEOVER,
    "enter": EventKind.SUCCESS,
    "backspace": EventKind.FAILURE,
    "1": EventKind.FALSE_POSITIVE,
    "2": EventKind.FALSE_NEGATIVE,
    "r": EventKind.SCENE_READY,
    "h": EventKind.ACCEPT_CLASSIFIER,
    "x": EventKind.ABORT,
    "u": EventKind.UNDO,
    "esc": BusAction.ESTOP,
    "a": BusAction.ARM,
    "d": BusAction.DISARM,
    "c": BusAction.CLEAR,
}
HELP = (
    "arrows w s: move  o p: jaw  space: take over/release  enter: success  backspace: failure  "
    "1: it was no success  2: it was one  u: undo  r: scene ready  x: abort  h: hybrid  "
    "ESC: STOP  a c d: arm clear disarm"
)


@dataclass(frozen=True)
class Repeat:
    """How key-ups are guessed where only characters arrive, as over SSH.

    A tap moves for `tap_s`. The hand counts as on the key for `delay_s`, longer than any usual auto-repeat delay
    (X11: 0.66 s), so that a key held down never reads as a hand at rest; once repeats come, a gap of `gap_s` ends it.
    """

    tap_s: float = 0.15
    delay_s: float = 0.75
    gap_s: float = 0.15


@dataclass
class _Held:
    first_ns: int
    last_ns: int
    repeats: int = 0


class KeyState:
    """Which movement keys are down, and where the jaw was sent. Pure: time is an argument.

    With `repeat`, keys come up by themselves; without, `release` is called for every key-up.
    """

    def __init__(self, action_size: int, repeat: Repeat | None) -> None:
        self._repeat = repeat
        self._held: dict[str, _Held] = {}
        self._size = action_size
        self.jaw = -1.0

    def press(self, key: str, now_ns: int) -> Meaning | None:
        """Note a key-down or its auto-repeat; returns what the key means, None for a repeat or an unbound key."""
        meaning = BINDINGS.get(key)
        held = self._held.get(key)
        if held is not None and self._down(held, now_ns):
            held.last_ns = now_ns
            held.repeats += 1
            return None
        if meaning is not None:
            self._held[key] = _Held(now_ns, now_ns)
        if isinstance(meaning, Jaw):
            self.jaw = 1.0 if meaning is Jaw.CLOSE else -1.0
        return meaning

    def release(self, key: str) -> None:
        """Note a key-up."""
        self._held.pop(key, None)

    def release_all(self) -> None:
        """All keys up, as when the window loses the keyboard."""
        self._held.clear()

    def drive(self, now_ns: int) -> Drive:
        """The action of the keys that are down now; neutral when none of those that drive the arm is."""
        action = np.zeros(self._size, np.float32)
        neutral = True
        for key, held in self._held.items():
            meaning = BINDINGS[key]
            if not isinstance(meaning, (Axis, Jaw)) or not self._down(held, now_ns):
                continue
            neutral = False
            if isinstance(meaning, Axis) and self._moving(held, now_ns):
                action[meaning.index] += meaning.direction
        action = np.clip(action, -1.0, 1.0)
        action[-1] = self.jaw
        return Drive(now_ns, action, neutral)

    def _down(self, held: _Held, now_ns: int) -> bool:
        if self._repeat is None:
            return True
        limit_s = self._repeat.gap_s if held.repeats else self._repeat.delay_s
        return now_ns - held.last_ns < limit_s * NS_PER_S

    def _moving(self, held: _Held, now_ns: int) -> bool:
        tapped = self._repeat is not None and not held.repeats
        return not tapped or now_ns - held.first_ns < self._tap_ns

    @property
    def _tap_ns(self) -> int:
        return round(self._repeat.tap_s * NS_PER_S) if self._repeat else 0


def event_of(meaning: Meaning, mode: Mode) -> EventKind | None:
    """The event that a key sends in this mode; None for keys that send none."""
    if isinstance(meaning, EventKind):
        return meaning
    if meaning is Special.TAKEOVER:
        return EventKind.TAKEOVER_END if mode is Mode.TAKEOVER else EventKind.TAKEOVER_BEGIN
    return None
