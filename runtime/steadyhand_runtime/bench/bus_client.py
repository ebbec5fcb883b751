"""One stack in one scenario of `steadyhand bench bus`, in a process of its own: a job in, figures out, both JSON."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from steadyhand_runtime.bench.bus_stacks import IDS, Stack, Ticks, open_stack
from steadyhand_runtime.bench.servos import Control
from steadyhand_runtime.clock import NS_PER_S, MonotonicClock, Rate

MID_TICKS, SWING_TICKS, SWING_CYCLES = 2048, 300, 1000
WARM_UP_CYCLES = 50
TOLERANCE_TICKS = 3  # of a goal that was followed; the servos' own rounding
SETTLE_S = 10.0  # a busy machine loses answers; on an idle one the first will do
LATE_S, LATE_CYCLES, LATE_RATE_HZ = 0.07, 40, 100.0
STEP_TICKS = 20  # between two cycles' positions, so that an old one cannot pass for a new one
DEAD_SERVO, DEAD_S = 3, 2.0


@dataclass(frozen=True)
class Job:
    """What a client is to do: `rate` (N cycles as fast as they go), `late` or `dead`, `mute` being a dead servo too."""

    stack: str
    scenario: str
    port: str
    control: str
    baud: int
    cycles: int
    phase_rad: float = 0.0


@dataclass(frozen=True)
class RateResult:
    """Fast cycles. `failed` gave no complete answer, `wrong` an impossible one; `followed`: it ended at its goal."""

    rate_hz: float
    p50_s: float
    p99_s: float
    cpu_s: float  # user and system time of the whole process, per cycle
    failed: int
    wrong: int
    followed: bool


@dataclass(frozen=True)
class LateResult:
    """Cycles from the late answer on: values reported as fresh, and how many of them were of an earlier cycle."""

    reported: int
    stale: int
    stale_cycles: int
    possible: int


@dataclass(frozen=True)
class DeadResult:
    """Cycles with one servo dead, from the moment it died: their rate, and the right values of the other five."""

    rate_hz: float
    median_valid: float
    five_valid_share: float
    wrong: int


Result = RateResult | LateResult | DeadResult


def run(job: Job) -> Result:
    """Do one job. Raises what the stack raises when it cannot use the port."""
    stack = open_stack(job.stack, job.port, job.baud)
    try:
        if job.scenario == "rate":
            return measure_rate(stack, job.cycles, job.phase_rad)
        control = Control(job.control)
        try:
            if job.scenario == "late":
                return measure_late(stack, control)
            return measure_dead(stack, control, mute=job.scenario == "mute")
        finally:
            control.close()
    finally:
        stack.close()


def measure_rate(stack: Stack, cycles: int, phase_rad: float) -> RateResult:
    """Cycles as fast as they go, with goals that swing slowly; values are checked after the clock has stopped.

    The collector rests, whatever the stack: it would search the kept answers, which no robot keeps.
    """
    goals = [stack.goal(swing(n, phase_rad)) for n in range(SWING_CYCLES)]
    for n in range(WARM_UP_CYCLES):
        stack.cycle(goals[n])
    gc.disable()
    answers: list[Any] = []
    durations_ns: list[int] = []
    cpu_s = time.process_time()
    start_ns = before_ns = time.perf_counter_ns()
    for n in range(WARM_UP_CYCLES, WARM_UP_CYCLES + cycles):
        answers.append(stack.cycle(goals[n % SWING_CYCLES]))
        now_ns = time.perf_counter_ns()
        durations_ns.append(now_ns - before_ns)
        before_ns = now_ns
    cpu_s = time.process_time() - cpu_s
    gc.enable()
    durations_ns.sort()
    read = [stack.ticks(a) for a in answers]
    return RateResult(
        rate_hz=cycles * NS_PER_S / (before_ns - start_ns),
        p50_s=durations_ns[len(durations_ns) // 2] / NS_PER_S,
        p99_s=durations_ns[min(len(durations_ns) - 1, len(durations_ns) * 99 // 100)] / NS_PER_S,
        cpu_s=cpu_s / cycles,
        failed=sum(None in r for r in read),
        wrong=sum(any(p is not None and abs(p - MID_TICKS) > SWING_TICKS + TOLERANCE_TICKS for p in r) for r in read),
        followed=_settles(stack, swing(WARM_UP_CYCLES + cycles, phase_rad)),
    )


def swing(cycle: int, phase_rad: float) -> list[int]:
    """Goals of one cycle, in ticks: each servo on a slow sine of its own phase."""
    turn = 2.0 * math.pi * (cycle % SWING_CYCLES) / SWING_CYCLES
    return [MID_TICKS + round(SWING_TICKS * math.sin(turn + phase_rad + j)) for j in range(len(IDS))]


def _settles(stack: Stack, ticks: Sequence[int]) -> bool:
    goal = stack.goal(ticks)
    until_s = time.monotonic() + SETTLE_S
    while time.monotonic() < until_s:
        read = stack.ticks(stack.cycle(goal))
        if all(p is not None and abs(p - t) <= TOLERANCE_TICKS for p, t in zip(read, ticks)):
            return True
    return False


def measure_late(stack: Stack, control: Control) -> LateResult:
    """One whole answer comes too late, as when an adapter stalls; no other does.

    In every cycle the servos stand where they never stood before, moved by hand, so each value tells its cycle.
    """
    rate = Rate(MonotonicClock(), LATE_RATE_HZ)
    for n in range(10):
        _place(control, _poses(n))
        rate.wait()
        stack.cycle(None)
    control.tell(*({"servo": n, "late_s": LATE_S, "late_replies": 1} for n in range(1, len(IDS) + 1)))
    reported, stale, stale_cycles = 0, 0, 0
    for n in range(10, 11 + LATE_CYCLES):
        truth = _poses(n)
        _place(control, truth)
        rate.wait()
        read = [(p, t) for p, t in zip(stack.ticks(stack.cycle(None)), truth) if p is not None]
        old = sum(abs(p - t) > 1 for p, t in read)
        reported += len(read)
        stale += old
        stale_cycles += old > 0
    return LateResult(reported, stale, stale_cycles, possible=len(IDS) * (1 + LATE_CYCLES))


def measure_dead(stack: Stack, control: Control, mute: bool) -> DeadResult:
    """One servo stops answering; with `mute` those behind it in a sync read stay silent too."""
    truth = _poses(0)
    _place(control, truth)
    goal = stack.goal(truth)
    for _ in range(20):
        stack.cycle(goal)
    control.tell(
        {"chain": "after_silent", "value": "mute" if mute else "answer"}, {"servo": DEAD_SERVO, "silent": True}
    )
    answers: list[Any] = []
    start_s = now_s = time.perf_counter()
    while now_s < start_s + DEAD_S:
        answers.append(stack.cycle(goal))
        now_s = time.perf_counter()
    return judge_dead([stack.ticks(a) for a in answers], truth, now_s - start_s)


def judge_dead(read: Sequence[Ticks], truth: Sequence[int], took_s: float) -> DeadResult:
    """Any value of the dead servo is wrong; of the others, one that is not where they stand."""
    right = []
    wrong = 0
    for positions in read:
        good = 0
        for servo_id, position, true in zip(IDS, positions, truth):
            if position is not None and servo_id != DEAD_SERVO and abs(position - true) <= TOLERANCE_TICKS:
                good += 1
            elif position is not None:
                wrong += 1
        right.append(good)
    right.sort()
    five = sum(n == len(IDS) - 1 for n in right) / len(right)
    return DeadResult(len(read) / took_s, float(right[len(right) // 2]), five, wrong)


def _poses(cycle: int) -> list[int]:
    return [MID_TICKS - 500 + STEP_TICKS * cycle + 3 * j for j in range(len(IDS))]


def _place(control: Control, ticks: Sequence[int]) -> None:
    control.tell(*({"servo": n, "place_ticks": position} for n, position in enumerate(ticks, 1)))


if __name__ == "__main__":
    result = run(pydantic.TypeAdapter(Job).validate_json(sys.argv[1]))
    sys.stdout.write(pydantic.TypeAdapter(type(result)).dump_json(result).decode())
