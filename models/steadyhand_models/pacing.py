"""Times a call at the pace it will be made at: latency and processor time of a process that mostly sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles

from steadyhand_models.runqueue import RunQueue

WARM_CALLS = 10


@dataclass(frozen=True)
class Timing:
    """Calls at a rate: median and 99th percentile of their seconds, run-queue delay taken out, and the share of one
    core that the whole process used."""

    p50_s: float
    p99_s: float
    cores: float


def paced(call: Callable[[int], object], rate_hz: float, calls: int) -> Timing:
    """Make `calls` calls, each given its number, at absolute deadlines; the first WARM_CALLS before are not counted."""
    for number in range(WARM_CALLS):
        call(number)
    queue, took_s = RunQueue(), []
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    for number in range(calls):
        time.sleep(max(0.0, begun_s + (number + 1) / rate_hz - time.perf_counter()))
        start_s, waited_s = time.perf_counter(), queue.delay_s()
        call(number)
        took_s.append(time.perf_counter() - start_s - (queue.delay_s() - waited_s))
    wall_s = time.perf_counter() - begun_s
    return Timing(*_percentiles(took_s), (time.process_time() - cpu_s) / wall_s)


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]
