"""Hot swap under load: ticks missed and lateness caused by swaps, and how soon bad models are rolled back."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field
from rich.console import Console

from steadyhand_models import bench, settings
from steadyhand_models.bench import Target
from steadyhand_models.cli import UserError
from steadyhand_runtime.bench import samples
from steadyhand_runtime.bench.busy import Busy
from steadyhand_runtime.bench.swap_worker import OURS, PEER, Job, Result, Rollback

PERIOD_S = 0.1  # of the task that ships
POLICIES = 3
FAULTS = ("nan", "error", "slow", "endless")
MAX_PERIODS = 2.0
WORKER_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class BenchSwapSettings:
    """Swap real models into a 10 Hz loop while every core is busy, beside a loop that builds its models itself.

    Example: steadyhand bench swap --swaps 50 --json swap.json
    """

    swaps: Annotated[int, Field(ge=1, le=10_000)] = 50  # of each stack, over all rounds
    rounds: Annotated[int, Field(ge=1, le=100)] = 5  # in which the stacks take turns
    repeats: Annotated[int, Field(ge=0, le=1000)] = 5  # of each injected fault
    busy: Annotated[int, Field(ge=0, le=256)] = 0  # processes that keep cores busy; 0: one per core
    seed: Annotated[int, Field(ge=0)] = 0
    json: Path | None = None  # every tick's figures
    check: bool = False  # exit with 1 when a target is missed


@dataclass(frozen=True)
class Spent:
    """What swaps cost one stack; run-queue delay and stolen time are taken out of every figure but `missed`."""

    swaps: int
    missed: int  # ticks in all, from whatever cause
    missed_by_swaps: int
    quiet_s: float  # median from deadline to action without a swap
    extra_p50_s: float  # how much later the action came in the slowest tick of a swap
    extra_max_s: float
    build_hold_s: float | None


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench swap`: 0, or 1 with --check when a target is missed."""
    description = BenchSwapSettings.__doc__ or ""
    chosen = settings.parse_command_line(BenchSwapSettings, argv, "steadyhand bench swap", description)
    with tempfile.TemporaryDirectory(prefix="steadyhand-bench-") as folder, Console(stderr=True).status("") as status:
        results, rollbacks = measure(chosen, Path(folder), status.update)
    spent = {stack: summarise(done) for stack, done in results.items()}
    judged = targets(spent, rollbacks)
    _show(chosen, spent, rollbacks, judged, sorted({d for r in results[OURS] for d in r.degraded}))
    if chosen.json is not None:
        figures = {
            "settings": {**asdict(chosen), "json": str(chosen.json)},
            "stacks": {
                stack: {**asdict(s), "rounds": [asdict(r) for r in results[stack]]} for stack, s in spent.items()
            },
            "rollbacks": [asdict(r) for r in rollbacks],
            "targets": [asdict(t) for t in judged],
        }
        bench.write_json(chosen.json, "swap", chosen.seed, figures)
    return 1 if chosen.check and not all(t.met for t in judged) else 0


def measure(
    chosen: BenchSwapSettings, folder: Path, tell: Callable[[str], None]
) -> tuple[dict[str, list[Result]], list[Rollback]]:
    """Every round of both stacks in turn, then every fault. Raises UserError."""
    tell("making sample models")
    made = samples.make(folder / "samples", POLICIES, chosen.seed)
    results: dict[str, list[Result]] = {OURS: [], PEER: []}
    rollbacks: list[Rollback] = []
    each = math.ceil(chosen.swaps / chosen.rounds)
    with Busy(chosen.busy):
        for number in range(chosen.rounds):
            swaps = min(each, chosen.swaps - each * number)
            for stack in (OURS, PEER) if number % 2 == 0 else (PEER, OURS):
                tell(f"round {number + 1} of {chosen.rounds}: {stack}")
                if swaps > 0:
                    results[stack].append(_worker(Job(stack, str(made), swaps, chosen.seed + number)))
        for fault in FAULTS if chosen.repeats else ():
            tell(f"fault: {fault}")
            rollbacks += _worker(Job(OURS, str(made), chosen.repeats, chosen.seed, fault)).rollbacks
    return results, rollbacks


def summarise(rounds: Sequence[Result]) -> Spent:
    """What the rounds of one stack come to."""
    quiet = [a for r in rounds for a, swapping in zip(own_s(r), r.ticks.swapping) if not swapping]
    quiet_s = statistics.median(quiet) if quiet else 0.0
    extra = [max(window) - quiet_s for r in rounds for window in _windows(r)]
    holds = [r.build_hold_s for r in rounds if r.build_hold_s is not None]
    return Spent(
        swaps=sum(r.swapped for r in rounds),
        missed=sum(sum(r.ticks.missed) for r in rounds),
        missed_by_swaps=sum(_missed_by_swaps(r) for r in rounds),
        quiet_s=quiet_s,
        extra_p50_s=statistics.median(extra) if extra else 0.0,
        extra_max_s=max(extra, default=0.0),
        build_hold_s=statistics.median(holds) if holds else None,
    )


def own_s(result: Result) -> list[float]:
    """Each tick's seconds from its deadline to its action that were the loop's own doing."""
    t = result.ticks
    return [max(0.0, a - w - s) for a, w, s in zip(t.action_s, t.waited_s, t.stolen_s)]


def _windows(result: Result) -> list[list[float]]:
    """The ticks of each swap, from its publication to the tick after it."""
    windows: list[list[float]] = []
    before = False
    for own, swapping in zip(own_s(result), result.ticks.swapping):
        if swapping and not before:
            windows.append([])
        if swapping:
            windows[-1].append(own)
        before = swapping
    return windows


def _missed_by_swaps(result: Result) -> int:
    """Ticks missed during swaps that neither the run queue nor the hypervisor explains."""
    t = result.ticks
    unexplained = 0
    for missed, waited_s, stolen_s, swapping in zip(t.missed, t.waited_s, t.stolen_s, t.swapping):
        if swapping and missed:
            unexplained += max(0, missed - math.ceil((waited_s + stolen_s) / PERIOD_S))
    return unexplained


def targets(spent: dict[str, Spent], rollbacks: Sequence[Rollback]) -> list[Target]:
    """What is promised, and whether it held."""
    ours, peer = spent[OURS], spent[PEER]
    found = [
        Target("ticks missed by swaps", "0", str(ours.missed_by_swaps), ours.missed_by_swaps == 0),
        Target(
            "action later in a swap, median",
            "less than the peer's",
            f"{ours.extra_p50_s * 1e3:.2f} against {peer.extra_p50_s * 1e3:.2f} ms",
            ours.extra_p50_s < peer.extra_p50_s,
        ),
    ]
    for fault in FAULTS:
        done = [r for r in rollbacks if r.fault == fault]
        if done:
            worst = max(r.periods for r in done)
            good = all(r.finite and r.reason != "never" for r in done) and worst <= MAX_PERIODS
            wanted = f"<= {MAX_PERIODS:.0f} periods, {len(done)} of {len(done)} times"
            found.append(Target(f"rolled back: {fault}", wanted, f"{worst:.2f} at the most", good))
    return found


def _worker(job: Job) -> Result:
    """One job in a fresh process. Raises UserError with the last line that it complained."""
    command = [sys.executable, "-m", "steadyhand_runtime.bench.swap_worker"]
    text = pydantic.TypeAdapter(Job).dump_json(job).decode()
    try:
        done = subprocess.run([*command, text], capture_output=True, text=True, timeout=WORKER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"{job.stack} {job.fault}: no end after {WORKER_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise UserError(f"{job.stack} {job.fault}: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}")
    return pydantic.TypeAdapter(Result).validate_json(done.stdout)


def _show(
    chosen: BenchSwapSettings,
    spent: dict[str, Spent],
    rollbacks: Sequence[Rollback],
    judged: Sequence[Target],
    degraded: Sequence[str],
) -> None:
    bench.show(
        f"{chosen.swaps} swaps at 10 Hz, every core busy",
        ("stack", "swaps", "missed", "by swaps", "quiet ms", "extra p50 ms", "extra max ms", "lock held ms"),
        [_row(stack, s) for stack, s in spent.items()],
        caption="quiet: deadline to action without a swap; extra: its slowest tick of a swap beyond that; lock held: "
        "longest that a build kept the interpreter. Run-queue delay and stolen time are taken out.",
    )
    if rollbacks:
        bench.show(
            "policies that misbehave after they passed every check",
            ("fault", "times", "ticks", "periods, median", "periods, max", "actions finite"),
            [_fault_row(fault, [r for r in rollbacks if r.fault == fault]) for fault in FAULTS],
            caption="periods: from the deadline of the first tick that triggered it until the version before answered",
        )
    bench.show_targets(judged)
    for what in degraded:
        Console().print(f"not granted: {what}", markup=False, highlight=False)


def _row(stack: str, s: Spent) -> list[str]:
    hold = "-" if s.build_hold_s is None else f"{s.build_hold_s * 1e3:.1f}"
    times = [f"{value * 1e3:.2f}" for value in (s.quiet_s, s.extra_p50_s, s.extra_max_s)]
    return [stack, str(s.swaps), str(s.missed), str(s.missed_by_swaps), *times, hold]


def _fault_row(fault: str, done: Sequence[Rollback]) -> list[str]:
    periods = [r.periods for r in done]
    ticks = f"{min(r.ticks for r in done)} to {max(r.ticks for r in done)}"
    finite = "all" if all(r.finite for r in done) else "NO"
    return [fault, str(len(done)), ticks, f"{statistics.median(periods):.2f}", f"{max(periods):.2f}", finite]
