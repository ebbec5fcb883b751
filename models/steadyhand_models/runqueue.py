"""Run-queue delay: how long a thread was ready to run and did not, from the kernel's scheduler statistics."""

from __future__ import annotations

import os
import threading

_BYTES = 96


class RunQueue:
    """One thread's statistics since it began, in seconds; always 0 where the kernel does not tell.

    Read from `/proc/self/task/TID/schedstat`: ns on the CPU, ns of waiting for it, slices.
    """

    def __init__(self, thread_id: int | None = None) -> None:
        """thread_id is the kernel's; without one, the calling thread."""
        try:
            self._file = os.open(f"/proc/self/task/{thread_id or threading.get_native_id()}/schedstat", os.O_RDONLY)
        except OSError:
            self._file = -1

    def delay_s(self) -> float:
        """How long it has waited for a processor."""
        return self._field(1)

    def ran_s(self) -> float:
        """How long it has had one."""
        return self._field(0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _field(self, place: int) -> float:
        if self._file < 0:
            return 0.0
        try:
            return int(os.pread(self._file, _BYTES, 0).split()[place]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def __del__(self) -> None:
        self.close()
