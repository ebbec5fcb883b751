"""Time: the injected clock, absolute-deadline pacing with a lateness histogram, and real-time privileges."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import sys
import time
from typing import Any, Protocol

NS_PER_S = 1_000_000_000
# The bus ticks so long after the control loop's tick: a goal that is ready by then does not wait for another period.
BUS_PHASE_NS = 4_000_000
TIMER_ABSTIME = 1
PR_SET_TIMERSLACK = 29  # linux/prctl.h
MCL_CURRENT_AND_FUTURE = 3  # sys/mman.h


class Clock(Protocol):
    """Monotonic time in ns; only differences mean anything."""

    def now_ns(self) -> int: ...

    def sleep_until_ns(self, deadline_ns: int) -> None: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Sleep to an absolute time; returns at once when it has passed, and early when a signal handler raised."""
        if _CLOCK_NANOSLEEP is None:
            while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
                time.sleep(left_ns / NS_PER_S)
            return
        until = _Timespec(deadline_ns // NS_PER_S, deadline_ns % NS_PER_S)
        while _CLOCK_NANOSLEEP(time.CLOCK_MONOTONIC, TIMER_ABSTIME, ctypes.byref(until), None) == errno.EINTR:
            continue


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start_ns: int = NS_PER_S) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self._now_ns = max(self._now_ns, deadline_ns)

    def advance_s(self, seconds: float) -> None:
        self._now_ns += round(seconds * NS_PER_S)

    def advance_ns(self, ns: int) -> None:
        self._now_ns += ns


class LatenessHistogram:
    """Durations in logarithmic buckets, eight to an octave: bounded memory, percentiles within an eighth."""

    def __init__(self) -> None:
        self.counts = [0] * (64 * 8)
        self.total = 0
        self.sum_ns = 0
        self.max_ns = 0

    def add(self, ns: int) -> None:
        """Count one sample; negative ones count as zero."""
        value = max(ns, 0)
        self.counts[_bucket(value)] += 1
        self.total += 1
        self.sum_ns += value
        self.max_ns = max(self.max_ns, value)

    def percentile_ns(self, percent: float) -> int:
        """Upper edge of the bucket that holds the percentile, at most the maximum; 0 without samples."""
        if not self.total:
            return 0
        rank = max(1, math.ceil(self.total * percent / 100.0))
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                return min(_upper_edge_ns(bucket), self.max_ns)
        return self.max_ns

    def spread(self, name: str) -> dict[str, Any]:
        """Percentiles, maximum, sum and the histogram itself in seconds, under keys that begin with `name`."""
        shares = (("p50", 50), ("p99", 99), ("p99.9", 99.9))
        return {
            f"{name}_s": {key: self.percentile_ns(p) / NS_PER_S for key, p in shares},
            f"{name}_max_s": self.max_ns / NS_PER_S,
            f"{name}_sum_s": self.sum_ns / NS_PER_S,
            f"{name}_histogram": [[edge_ns / NS_PER_S, count] for edge_ns, count in self.nonzero_ns()],
        }

    def nonzero_ns(self) -> list[tuple[int, int]]:
        """(upper edge in ns, samples) of every bucket that has some, for reports."""
        return [(_upper_edge_ns(b), n) for b, n in enumerate(self.counts) if n]


class Rate:
    """Absolute deadlines at a fixed rate. A missed tick is counted and not repaid.

    With `phase_ns` every deadline lies that long after a multiple of the period, so that loops of several processes
    keep a fixed distance on one machine's clock.
    """

    def __init__(self, clock: Clock, hz: float, phase_ns: int | None = None) -> None:
        if not hz > 0:
            raise ValueError("a rate must be positive")
        self._clock = clock
        self.period_ns = round(NS_PER_S / hz)
        now_ns = clock.now_ns()
        self._next_ns = now_ns if phase_ns is None else now_ns - (now_ns - phase_ns) % self.period_ns
        self.ticks = 0
        self.missed = 0
        self.lateness_ns = 0
        self.lateness = LatenessHistogram()

    def wait(self) -> int:
        """Sleep to the next deadline and return it; whole periods that have gone by are skipped and counted."""
        self._next_ns += self.period_ns
        behind_ns = self._clock.now_ns() - self._next_ns
        if behind_ns >= self.period_ns:
            skipped = behind_ns // self.period_ns
            self.missed += skipped
            self._next_ns += skipped * self.period_ns
        self._clock.sleep_until_ns(self._next_ns)
        self.lateness_ns = max(0, self._clock.now_ns() - self._next_ns)
        self.lateness.add(self.lateness_ns)
        self.ticks += 1
        return self._next_ns


def realtime(priority: int) -> list[str]:
    """Ask for SCHED_FIFO, locked memory and no timer slack; returns what was not granted, in words."""
    if not sys.platform.startswith("linux"):
        return [f"no SCHED_FIFO, memory locking or timer slack on {sys.platform}"]
    degraded = []
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, ValueError) as error:
        degraded.append(
            f"no SCHED_FIFO {priority} ({_reason(error)}): allow it with `ulimit -r {priority}` or CAP_SYS_NICE"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT_AND_FUTURE) != 0:
        degraded.append(f"memory not locked ({os.strerror(ctypes.get_errno())}): allow it with `ulimit -l unlimited`")
    if libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) != 0:
        degraded.append(f"timer slack not lowered ({os.strerror(ctypes.get_errno())})")
    return degraded


def timer_slack(slack_ns: int) -> None:
    """How much later than asked the kernel may wake this thread, to save wake-ups; 0 is the default again (50 us)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, slack_ns, 0, 0, 0)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_for(own: bool) -> tuple[set[int], str]:
    """The cores of the loop that has one of its `own`, or of everything else; none, with the reason, on few cores."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), f"no core affinity on {sys.platform}"
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 3:
        return set(), f"no core of its own for the bus: {len(cores)} cores, three are needed"
    return set(cores[:1] if own else cores[1:]), ""


def runqueue_delay_ns() -> int | None:
    """How long this thread has waited for a core although it could run, since it began (/proc/thread-self/schedstat).

    None where the kernel does not say. It tells lateness by a busy machine from lateness by a slow loop.
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return None


def is_realtime(pid: int) -> bool:
    """Whether a process's main thread runs at real-time priority with locked memory."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            locked = any(line.startswith("VmLck:") and line.split()[1] != "0" for line in status)
        return os.sched_getscheduler(pid) == os.SCHED_FIFO and locked
    except (AttributeError, OSError):
        return False


def main_thread_delay_s(pid: int) -> float | None:
    """How long a process's main thread has waited for a core so far, or None where the kernel does not say."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / NS_PER_S
    except (OSError, IndexError, ValueError):
        return None


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _bucket(value: int) -> int:
    if value < 8:
        return value
    octave = value.bit_length() - 4
    return (octave + 1) * 8 + (value >> octave) - 8


def _upper_edge_ns(bucket: int) -> int:
    if bucket < 8:
        return bucket
    octave, eighth = divmod(bucket, 8)
    return ((eighth + 9) << (octave - 1)) - 1


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


def _find_clock_nanosleep() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).clock_nanosleep
    except (OSError, AttributeError):
        return None


_CLOCK_NANOSLEEP = _find_clock_nanosleep()
