"""Measures how long a piece of native code keeps the interpreter's lock from other threads."""

from __future__ import annotations

import threading
import time

from steadyhand_models.runqueue import RunQueue

LOOK_S = 0.0005


class HoldMeter:
    """Context manager: for at most `longest_s` at a time could another thread not run Python.

    Counted is the processor time that the measured thread used while another one waited to go on, so that a busy
    machine does not look like a held lock.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._holder = RunQueue()
        self._thread = threading.Thread(target=self._watch, name="hold-meter", daemon=True)

    def __enter__(self) -> HoldMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            begun_s, ran_s = time.perf_counter(), self._holder.ran_s()
            time.sleep(LOOK_S)
            gap_s = time.perf_counter() - begun_s - LOOK_S
            self.longest_s = max(self.longest_s, min(gap_s, self._holder.ran_s() - ran_s))
