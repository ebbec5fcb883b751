"""Slices of `steadyhand bench loop` in a process of their own: two kinds of loop, with and without real-time priority.

Lines of JSON: each Slice that comes on stdin is run and answered by a Measured.
"""

from __future__ import annotations

import dataclasses
import enum
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steadyhand_runtime.clock import NS_PER_S, MonotonicClock, Rate, realtime, runqueue_delay_ns, timer_slack

PRIORITY = 70  # above a robot's processes that may run on this machine too: they are not the load that is meant
STARTED_WITH = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else 0
WORK_TURNS = 2000  # about 0.1 ms of Python, so that a tick is not empty


class Kind(str, enum.Enum):
    """What paces the ticks."""

    OURS = "ours"  # absolute deadlines (clock.Rate)
    NAIVE = "naive"  # sleep(period - elapsed)


@dataclass(frozen=True)
class Slice:
    """One stretch of ticks."""

    kind: Kind
    hz: float
    seconds: float
    fifo: bool


@dataclass(frozen=True)
class Measured:
    """How late each wake-up was after the moment that its sleep had asked for, and what the thread waited for a core.

    `periods` counts periods that passed by the loop's own account, missed ones with it, in `elapsed_s`. `problem`:
    real-time priority was asked for and not granted.
    """

    late_ns: list[int]
    runqueue_ns: list[int]
    elapsed_s: float
    periods: int
    stolen_s: float
    problem: str = ""


def run(wanted: Slice) -> Measured:
    """Tick for a while."""
    problem = _schedule(wanted)
    gc.collect()
    gc.freeze()
    turns = _ours(wanted) if wanted.kind is Kind.OURS else _naive(wanted)
    stolen_s, start_ns = stolen_seconds(), time.monotonic_ns()
    late_ns, runqueue_ns = [], []
    waited_ns = runqueue_delay_ns() or 0
    end_ns = start_ns + round(wanted.seconds * NS_PER_S)
    while time.monotonic_ns() < end_ns:
        late_ns.append(turns.wait())
        now_ns = runqueue_delay_ns() or 0
        runqueue_ns.append(now_ns - waited_ns)
        waited_ns = now_ns
        _work()
    elapsed_s = (time.monotonic_ns() - start_ns) / NS_PER_S
    return Measured(late_ns, runqueue_ns, elapsed_s, turns.periods(), stolen_seconds() - stolen_s, problem)


@dataclass
class _Turns:
    """One kind of pacing: `wait` returns how late it woke, `periods` how many have passed."""

    wait: Callable[[], int]
    periods: Callable[[], int]


def _ours(wanted: Slice) -> _Turns:
    rate = Rate(MonotonicClock(), wanted.hz)

    def wait() -> int:
        rate.wait()
        return rate.lateness_ns

    return _Turns(wait, lambda: rate.ticks + rate.missed)


def _naive(wanted: Slice) -> _Turns:
    """What robot control loops in Python commonly do."""
    period_s = 1.0 / wanted.hz
    count = [0]
    begun_s = [time.perf_counter()]

    def wait() -> int:
        left_s = max(0.0, period_s - (time.perf_counter() - begun_s[0]))
        due_ns = time.monotonic_ns() + round(left_s * NS_PER_S)
        time.sleep(left_s)
        begun_s[0] = time.perf_counter()
        count[0] += 1
        return max(0, time.monotonic_ns() - due_ns)

    return _Turns(wait, lambda: count[0])


def _schedule(wanted: Slice) -> str:
    """What the runtime asks the system for, or what a naive loop has; why priority was not granted, or nothing."""
    if hasattr(os, "sched_setscheduler"):
        # As this process was started: then it competes with the load, which inherits the same, on equal terms.
        os.sched_setscheduler(0, STARTED_WITH, os.sched_param(0))
    if wanted.kind is Kind.NAIVE:
        timer_slack(0)
        return ""
    missing = [what for what in realtime(PRIORITY) if "SCHED_FIFO" in what] if wanted.fifo else []
    timer_slack(1)  # granted to everybody
    return missing[0] if missing else ""


def stolen_seconds() -> float:
    """Time that the hypervisor gave to others so far, summed over the cores; 0 where the kernel does not say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _work() -> int:
    total = 0
    for number in range(WORK_TURNS):
        total += number
    return total


def main() -> int:
    """Serve slices until stdin ends."""
    for line in sys.stdin:
        wanted = json.loads(line)
        measured = run(Slice(**{**wanted, "kind": Kind(wanted["kind"])}))
        print(json.dumps(dataclasses.asdict(measured)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
