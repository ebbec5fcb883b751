"""Clocks, fixed rates, lateness."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_runtime import clock as clocks
from steadyhand_runtime.clock import NS_PER_S, LatenessHistogram, ManualClock, MonotonicClock, Rate
from steadyhand_runtime.punctual import is_granted, punctual_context


def test_ten_thousand_ticks_of_varying_work_do_not_drift() -> None:
    clock = ManualClock()
    start_ns = clock.now_ns()
    rate = Rate(clock, 100.0)
    work = random.Random(1)
    for _ in range(10_000):
        rate.wait()
        clock.advance_ns(work.randrange(9_000_000))
    assert rate.missed == 0
    assert clock.now_ns() - start_ns < 10_001 * rate.period_ns
    assert rate.ticks == 10_000


def test_a_missed_tick_is_counted_and_not_repaid() -> None:
    clock = ManualClock()
    rate = Rate(clock, 100.0)
    first_ns = rate.wait()
    clock.advance_ns(35_000_000)
    late_ns = rate.wait()
    assert (late_ns - first_ns, rate.missed) == (30_000_000, 2)
    assert rate.lateness_ns == 5_000_000
    assert rate.wait() - late_ns == 10_000_000
    assert rate.missed == 2


def test_a_tick_that_is_late_by_less_than_a_period_is_late_but_not_missed() -> None:
    clock = ManualClock()
    rate = Rate(clock, 100.0)
    rate.wait()
    clock.advance_ns(12_000_000)
    rate.wait()
    assert (rate.missed, rate.lateness_ns) == (0, 2_000_000)


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Rate(ManualClock(), 0.0)


def test_the_monotonic_clock_sleeps_to_absolute_times_and_not_at_all_to_past_ones() -> None:
    clock = MonotonicClock()
    deadline_ns = clock.now_ns() + 5_000_000
    clock.sleep_until_ns(deadline_ns)
    assert clock.now_ns() >= deadline_ns
    before_ns = clock.now_ns()
    clock.sleep_until_ns(before_ns - NS_PER_S)
    assert clock.now_ns() - before_ns < NS_PER_S // 2


def test_a_signal_during_the_sleep_is_handled_and_the_deadline_kept() -> None:
    script = (
        "import signal, threading, os\n"
        "from steadyhand_runtime.clock import MonotonicClock\n"
        "seen = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))\n"
        "clock = MonotonicClock(); until = clock.now_ns() + 200_000_000\n"
        "threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()\n"
        "clock.sleep_until_ns(until)\n"
        "print(len(seen), clock.now_ns() >= until)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert out.stdout.split() == ["1", "True"]


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=200), st.sampled_from([50.0, 90.0, 99.0, 100.0]))
def test_percentiles_are_never_low_and_at_most_an_eighth_high(samples: list[int], percent: float) -> None:
    histogram = LatenessHistogram()
    for ns in samples:
        histogram.add(ns)
    rank = max(1, -(-len(samples) * int(percent) // 100))
    exact = sorted(samples)[rank - 1]
    assert exact <= histogram.percentile_ns(percent) <= exact * 1.125 + 1
    assert sum(n for _, n in histogram.nonzero_ns()) == histogram.total == len(samples)
    assert histogram.max_ns == max(samples)


def test_an_empty_histogram_has_no_lateness() -> None:
    assert LatenessHistogram().percentile_ns(99) == 0


def test_what_the_host_does_not_allow_is_said_in_words() -> None:
    script = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))\n"
        "from steadyhand_runtime.clock import realtime\n"
        "print(*realtime(1000), sep='\\n')\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert "SCHED_FIFO" in out.stdout  # 1000 is no priority on any host


@given(start_ns=st.integers(1, 10**15), phase_ns=st.integers(0, 9_999_999), work_ns=st.integers(0, 60_000_000))
def test_deadlines_with_a_phase_keep_their_distance_to_the_clock_s_periods(
    start_ns: int, phase_ns: int, work_ns: int
) -> None:
    clock = ManualClock(start_ns)
    rate = Rate(clock, 100.0, phase_ns)
    for _ in range(3):
        deadline_ns = rate.wait()
        assert deadline_ns % rate.period_ns == phase_ns
        assert deadline_ns > start_ns
        clock.advance_ns(work_ns)


def test_the_bus_ticks_soon_after_control_whenever_either_of_them_started() -> None:
    first, second = ManualClock(123_456_789), ManualClock(987_654_321)
    control, bus = Rate(first, 10.0, 0), Rate(second, 100.0, clocks.BUS_PHASE_NS)
    assert (bus.wait() - control.wait()) % bus.period_ns == clocks.BUS_PHASE_NS


def test_a_spread_holds_percentiles_sum_and_every_sample() -> None:
    histogram = LatenessHistogram()
    for ns in (1_000, 2_000, 4_000_000):
        histogram.add(ns)
    spread = histogram.spread("late")
    assert spread["late_max_s"] == 0.004 and spread["late_sum_s"] == pytest.approx(0.004003)
    assert sum(count for _, count in spread["late_histogram"]) == 3 and spread["late_s"]["p50"] < 0.0025


@pytest.mark.parametrize(("cores", "own", "rest"), [({0, 1, 2, 3}, {0}, {1, 2, 3}), ({4, 6, 9}, {4}, {6, 9})])
def test_with_three_cores_the_bus_has_one_that_nobody_else_uses(
    cores: set[int], own: set[int], rest: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks.os, "sched_getaffinity", lambda _: cores, raising=False)
    monkeypatch.setattr(clocks.os, "sched_setaffinity", lambda *_: None, raising=False)
    assert clocks.cores_for(True) == (own, "") and clocks.cores_for(False) == (rest, "")


def test_on_two_cores_nobody_gets_one_of_their_own_and_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    cores, reason = clocks.cores_for(True)
    assert not cores and "three are needed" in reason


def test_a_context_works_whether_or_not_priority_is_granted() -> None:
    assert not is_granted(1000)
    for priority in (0, 10, 1000):
        context = punctual_context(priority)
        with context.socket(0) as near, context.socket(0) as far:  # PAIR
            near.bind("inproc://here")
            far.connect("inproc://here")
            far.send(b"word")
            assert near.recv() == b"word"
        context.term()
