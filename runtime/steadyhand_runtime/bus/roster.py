"""Which servos a cycle asks: a silent one is left out so that the others stay punctual, and is asked now and then.

In some chains the servos behind a silent one in a sync read keep silent too, so whoever is left out is asked alone:
the living ones are back within a few cycles, and only the silent one stays out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

MISSES = 3  # consecutive cycles without an answer, while others answer, until a servo is left out,
SILENT_NS = 50_000_000  # but not before it was silent for so long: a host that was held up makes several misses at once
FIRST_PAUSE_NS = 50_000_000  # between two questions to a silent servo, doubled up to the longest
LONGEST_PAUSE_NS = 1_000_000_000
QUICK_CYCLES = 8  # when nobody answers at all, so many cycles ask on
SILENT_PAUSE_NS = 300_000_000  # and then one per pause, so that the lengths that can be told apart never run out
LONG_NS = 500_000_000  # who was away for longer may have lost power and is checked before it is listed again


class _Absence:
    """A servo that is left out."""

    __slots__ = ("next_ns", "pause_ns", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self.since_ns = now_ns
        self.next_ns = now_ns
        self.pause_ns = FIRST_PAUSE_NS


class Roster:
    """The servos to ask. `listed` are those of the sync read, `troubled` is whether anything needs care."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = tuple(ids)
        self._misses = dict.fromkeys(self._ids, 0)
        self._heard_ns = dict.fromkeys(self._ids, 0)
        self._absent: dict[int, _Absence] = {}
        self._silent_cycles = 0
        self._asked_ns = 0
        self.listed = self._ids
        self.troubled = False

    @property
    def anyone_absent(self) -> bool:
        return bool(self._absent)

    def may_ask(self, now_ns: int) -> bool:
        """Whether the sync read is due; False while nobody has answered for a while."""
        if self._silent_cycles >= QUICK_CYCLES and now_ns - self._asked_ns < SILENT_PAUSE_NS:
            return False
        self._asked_ns = now_ns
        return True

    def may_retry(self, servo_id: int) -> bool:
        """Whether a second question in the same cycle is worth its time: not to one about to be left out."""
        return self._misses[servo_id] < MISSES - 1

    def heard_late(self, ids: Collection[int], now_ns: int) -> None:
        """Late replies came: these servos live, and so does the wire."""
        if ids:
            self._silent_cycles = 0
        for servo_id in ids:
            if servo_id in self._misses:
                self._misses[servo_id] = 0
                self._heard_ns[servo_id] = now_ns
            if servo_id in self._absent:
                self._absent[servo_id].next_ns = now_ns
                self._absent[servo_id].pause_ns = FIRST_PAUSE_NS

    def note(self, answered: Collection[int], now_ns: int) -> None:
        """Who of the listed servos answered in this cycle."""
        if not answered:
            self._silent_cycles += 1
            self.troubled = True
            self.listed = (*self.listed[1:], *self.listed[:1])  # the first one may have muted all others
            return
        self._silent_cycles = 0
        for servo_id in self.listed:
            if servo_id in answered:
                self._misses[servo_id], self._heard_ns[servo_id] = 0, now_ns
                continue
            self._misses[servo_id] += 1
            if self._misses[servo_id] >= MISSES and now_ns - self._heard_ns[servo_id] > SILENT_NS:
                self._absent[servo_id] = _Absence(now_ns)
        self._refresh()

    def leave_out(self, servo_id: int, now_ns: int) -> None:
        """Ask a servo only by itself from now on."""
        self._absent[servo_id] = _Absence(now_ns)
        self._refresh()

    def due(self, now_ns: int) -> int | None:
        """The absent servo to ask by itself now, the longest waiting first."""
        waiting = min(self._absent, key=lambda i: self._absent[i].next_ns, default=None)
        return waiting if waiting is not None and self._absent[waiting].next_ns <= now_ns else None

    def was_long_away(self, servo_id: int, now_ns: int) -> bool:
        return now_ns - self._absent[servo_id].since_ns > LONG_NS

    def postpone(self, servo_id: int, now_ns: int) -> None:
        """An absent servo was asked in vain."""
        absence = self._absent[servo_id]
        absence.next_ns = now_ns + absence.pause_ns
        absence.pause_ns = min(2 * absence.pause_ns, LONGEST_PAUSE_NS)

    def welcome(self, servo_id: int, now_ns: int) -> None:
        """An absent servo answered and is asked with the others again."""
        del self._absent[servo_id]
        self._misses[servo_id], self._heard_ns[servo_id] = 0, now_ns
        self._refresh()

    def _refresh(self) -> None:
        present = tuple(i for i in self._ids if i not in self._absent)
        if set(present) != set(self.listed):
            self.listed = present
        self.troubled = bool(self._absent) or any(self._misses.values())
