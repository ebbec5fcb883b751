"""Replies that were asked for and never seen: what a late reply could be mistaken for, and which requests it cannot.

A reply carries its servo's id and a length, and nothing says which request it answers. So a request is only made in a
length in which none of its servos owes a reply: then one with that id and length can only be its own, however late
others are. What is owed is forgotten when it comes, or after QUARANTINE_NS, longer than any adapter holds bytes back.
"""

from __future__ import annotations

from collections.abc import Iterable

QUARANTINE_NS = 5_000_000_000
MAX_BYTES = 31  # from register 56 this ends at 86, the last register of memory table v220328


class Ledger:
    """What servos owe, by id and length. Time is the caller's monotonic ns; false while nothing is owed."""

    def __init__(self) -> None:
        self._owed: dict[tuple[int, int], list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._owed)

    def owe(self, servo_id: int, size: int, now_ns: int) -> None:
        """A reply of `size` data bytes did not come in time."""
        self._owed.setdefault((servo_id, size), []).append(now_ns)

    def settle(self, servo_id: int, size: int) -> bool:
        """A reply came that nobody waits for any more; whether it was owed."""
        since = self._owed.get((servo_id, size))
        if since is None:
            return False
        since.pop(0)  # the older one, so that what is left is kept longer rather than shorter
        if not since:
            del self._owed[servo_id, size]
        return True

    def expire(self, now_ns: int) -> None:
        """Forget what has been owed for longer than the quarantine."""
        for key, since in list(self._owed.items()):
            kept = [at for at in since if now_ns - at < QUARANTINE_NS]
            if kept:
                self._owed[key] = kept
            else:
                del self._owed[key]

    def free_size(self, ids: Iterable[int], least: int) -> int | None:
        """The smallest length of at least `least` in which no one of `ids` owes a reply; None when all are taken."""
        wanted = set(ids)
        taken = {size for servo_id, size in self._owed if servo_id in wanted}
        return next((size for size in range(least, MAX_BYTES + 1) if size not in taken), None)

    def owed_by(self, servo_id: int) -> int:
        """How many replies one servo owes."""
        return sum(len(since) for (owner, _), since in self._owed.items() if owner == servo_id)
