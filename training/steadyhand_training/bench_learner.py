"""Updates per second and memory of our learner, beside a SAC that keeps and samples its data as LeRobot does."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from steadyhand_models import bench, settings
from steadyhand_models.cli import UserError
from steadyhand_training.bench_learner_stack import Job, Memory, Stack, Turn

# (ours, peer, least ratio of updates per second)
TARGETS = (
    ("frozen encoder", Stack.OURS_FROZEN, Stack.PEER_FROZEN, 5.0),
    ("end to end", Stack.OURS_END_TO_END, Stack.PEER_END_TO_END, 1.3),
)
MEMORY_STEPS = 10_000
TITLES = {
    Stack.OURS_FROZEN: "Steadyhand, frozen encoder",
    Stack.PEER_FROZEN: "as LeRobot, frozen encoder",
    Stack.OURS_END_TO_END: "Steadyhand, end to end",
    Stack.PEER_END_TO_END: "as LeRobot, end to end",
}
PEER = (
    "The peer is a plain SAC with our networks and LeRobot's way with data. lerobot itself is not measured: beside "
    "torch 2.13 pip finds no release after 0.3.2."
)
_DESCRIPTION = """Measure the learner: updates per second in turns with the peer's, and memory.

Example: steadyhand bench learner --json learner.json"""


@dataclass(frozen=True)
class LearnerBenchSettings:
    """How long and on how much."""

    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    seconds: Annotated[float, Field(gt=0, le=60)] = 2.0  # of each stack's turn in a round
    steps: Annotated[int, Field(ge=200, le=20_000)] = 2000  # recorded steps to sample from
    batch: Annotated[int, Field(ge=8, le=1024)] = 128
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    seed: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    json: Path | None = None
    check: bool = False  # exit code 1 when a target is missed


@dataclass(frozen=True)
class Figures:
    """What was measured of one stack."""

    stack: Stack
    memory: Memory
    turns: tuple[Turn, ...]

    @property
    def rates_hz(self) -> list[float]:
        return [t.updates / t.wall_s for t in self.turns]

    @property
    def updates_per_s(self) -> float:
        return statistics.median(self.rates_hz)

    @property
    def cpu_per_update_s(self) -> list[float]:
        return [t.cpu_s / t.updates for t in self.turns]

    @property
    def cpu_ms(self) -> float:
        """Processor time of one update."""
        return 1e3 * statistics.median(self.cpu_per_update_s)


@dataclass(frozen=True)
class Verdict:
    """Our updates per second of processor time over the peer's, the median of the rounds, against what it should be.

    Processor time, because other programs on the machine then do not count; alone on it the two times are one.
    """

    name: str
    ratio: float
    target: float

    @property
    def passed(self) -> bool:
        return self.ratio >= self.target


class Worker:
    """One stack in its process."""

    def __init__(self, job: Job) -> None:
        command = (sys.executable, "-m", "steadyhand_training.bench_learner_stack")
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
        self.stack = job.stack
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._send(dataclasses.asdict(job))
        self.memory = Memory(**self._receive())

    def turn(self, seconds: float) -> Turn:
        self._send(seconds)
        return Turn(**self._receive())

    def close(self) -> None:
        """It ends with its stdin."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _send(self, what: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise UserError(f"{TITLES[self.stack]}: its process ended; its message stands above") from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{TITLES[self.stack]}: its process ended; its message stands above")
        found: dict[str, Any] = json.loads(line)
        return found


def measure(chosen: LearnerBenchSettings, stacks: Sequence[Stack] = tuple(Stack)) -> list[Figures]:
    """All stacks in turns, the order turned by one in every round. Raises UserError when one fails."""
    workers: list[Worker] = []
    turns: dict[Stack, list[Turn]] = {stack: [] for stack in stacks}
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            bar = progress.add_task("filling replays", total=len(stacks) * (1 + chosen.rounds))
            for stack in stacks:
                workers.append(Worker(Job(stack, chosen.steps, chosen.seed, chosen.threads, chosen.batch)))
                progress.advance(bar)
            for number in range(chosen.rounds):
                first = (number + chosen.seed) % len(workers)
                for worker in workers[first:] + workers[:first]:
                    progress.update(bar, description=TITLES[worker.stack])
                    turns[worker.stack].append(worker.turn(chosen.seconds))
                    progress.advance(bar)
    finally:
        for worker in workers:
            worker.close()
    return [Figures(w.stack, w.memory, tuple(turns[w.stack])) for w in workers]


def verdicts(figures: Sequence[Figures]) -> list[Verdict]:
    """How we stand to the peer, round by round, where both were measured."""
    by = {f.stack: f for f in figures}
    found = []
    for name, ours, peer, target in TARGETS:
        if ours in by and peer in by:
            ratios = [its / mine for mine, its in zip(by[ours].cpu_per_update_s, by[peer].cpu_per_update_s)]
            found.append(Verdict(name, statistics.median(ratios), target))
    return found


def show(chosen: LearnerBenchSettings, figures: Sequence[Figures], found: Sequence[Verdict]) -> None:
    """Both tables."""
    rows = [
        (
            TITLES[f.stack],
            f"{f.updates_per_s:.1f}",
            f"{f.cpu_ms:.1f}",
            _megabytes(f.memory.bytes_per_step * MEMORY_STEPS)
            + ("" if f.memory.shared_bytes_per_step == f.memory.bytes_per_step else
               f" ({_megabytes(f.memory.shared_bytes_per_step * MEMORY_STEPS)} shared)"),
            _megabytes(f.memory.grown),
            _megabytes(f.memory.resident),
        )
        for f in figures
    ]  # fmt: skip
    columns = ("learner", "updates/s", "CPU ms/update", f"MB per {MEMORY_STEPS:,} steps", "RSS grown MB", "RSS MB")
    title = f"batch {chosen.batch}, {chosen.steps:,} steps, {chosen.threads} thread, medians of {chosen.rounds} rounds"
    bench.show(title, columns, rows, PEER)
    lines = [(v.name, f"{v.ratio:.2f}x", f">= {v.target:g}x", "pass" if v.passed else "FAIL") for v in found]
    bench.show("updates per second of processor time, over the peer's", ("path", "ratio", "target", ""), lines)


def to_json(figures: Sequence[Figures], found: Sequence[Verdict]) -> dict[str, Any]:
    """Every figure, as plain JSON."""
    return {
        "stacks": {
            f.stack.value: {
                "updates_per_s": f.updates_per_s,
                "cpu_ms": f.cpu_ms,
                "memory": dataclasses.asdict(f.memory),
                "turns": [dataclasses.asdict(t) for t in f.turns],
            }
            for f in figures
        },
        "ratios": [{**dataclasses.asdict(v), "passed": v.passed} for v in found],
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}"


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench learner`: 0, or 1 with --check when a target is missed."""
    chosen = settings.parse_command_line(LearnerBenchSettings, argv, "steadyhand bench learner", _DESCRIPTION)
    figures = measure(chosen)
    found = verdicts(figures)
    show(chosen, figures, found)
    if chosen.json is not None:
        bench.write_json(chosen.json, "learner", chosen.seed, to_json(figures, found))
    return int(chosen.check and not all(v.passed for v in found))
