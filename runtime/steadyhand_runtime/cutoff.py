"""The cutoff: ends calls of models that outlive their limit, from a thread of its own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from steadyhand_models.runqueue import RunQueue
from steadyhand_runtime.priority import fifo


@dataclass(frozen=True, slots=True)
class _Call:
    options: Any  # onnxruntime.RunOptions
    begun_s: float
    limit_s: float
    queue: RunQueue
    waited_s: float


class Cutoff:
    """Watches calls; one that has used its limit, time in the run queue not counted, is told to terminate.

    onnxruntime looks at the flag between two nodes of a graph, so that a single endless node is not ended.
    """

    def __init__(self, period_s: float, priority: int = 0) -> None:
        """period_s is how often calls are looked at; priority should be above that of the threads that make them and is
        taken as far as the host grants it (0: not asked for)."""
        self._period_s, self._priority = period_s, priority
        self._calls: dict[int, _Call] = {}
        self._queues: dict[int, RunQueue] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="cutoff", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def begin(self, options: Any, limit_s: float) -> None:
        """The calling thread is about to make a call with these options, which no other call may have used."""
        thread = threading.get_native_id()
        queue = self._queues.get(thread)
        if queue is None:
            queue = self._queues[thread] = RunQueue(thread)
        self._calls[thread] = _Call(options, time.perf_counter(), limit_s, queue, queue.delay_s())

    def end(self) -> None:
        """The calling thread's call is over."""
        self._calls.pop(threading.get_native_id(), None)

    def look(self, now_s: float) -> None:
        """Terminate what has used its limit at now_s, a reading of `time.perf_counter`."""
        for call in list(self._calls.values()):
            took_s = now_s - call.begun_s
            if took_s > call.limit_s and took_s - (call.queue.delay_s() - call.waited_s) > call.limit_s:
                call.options.terminate = True

    def _watch(self) -> None:
        if self._priority:
            fifo(self._priority)
        while not self._stop.wait(self._period_s):
            self.look(time.perf_counter())
