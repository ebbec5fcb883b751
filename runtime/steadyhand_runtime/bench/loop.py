"""How punctual the loops are: absolute deadlines against sleep(period - elapsed), idle and under training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console

from steadyhand_models import bench, settings
from steadyhand_models.bench import Target
from steadyhand_models.cli import UserError
from steadyhand_runtime.bench import loop_wire
from steadyhand_runtime.bench.loop_figures import Lateness, Variant, Wire, drift, lateness, targets
from steadyhand_runtime.bench.loop_load import Training
from steadyhand_runtime.bench.loop_slices import Kind, Measured, Slice

RATES_HZ = (10.0, 100.0, 500.0)
DRIFT_HZ = 100.0
DRIFT_S = 60.0
ROUNDS = 10
LOOPS = ((Kind.NAIVE, False), (Kind.OURS, False), (Kind.OURS, True))


@dataclass(frozen=True)
class LoopSettings:
    """Lateness of our loop and of sleep(period - elapsed) at 10, 100 and 500 Hz, as ratios from interleaved slices.

    Example: steadyhand bench loop --seconds 360 --json loop.json
    """

    seconds: Annotated[float, Field(ge=5, le=36_000)] = 360.0  # all slices together, idle and loaded
    drift_s: Annotated[float, Field(ge=0, le=3600)] = DRIFT_S  # of each loop, under load; 0 takes the slices' own
    wire_s: Annotated[float, Field(ge=0, le=3600)] = 20.0  # of the real processes; 0 leaves them out
    seed: Annotated[int, Field(ge=0)] = 0  # the order of the slices within each round
    json: Path | None = None
    check: bool = False  # exit with 1 when a target is missed


@dataclass
class Findings:
    """Everything that was measured."""

    load: str
    found: dict[Variant, Lateness]
    ours_drift: float
    naive_drift: float
    problem: str  # why real-time priority was not granted
    wire: Wire | None = None


class Worker:
    """The process that runs slices, one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "steadyhand_runtime.bench.loop_slices"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, wanted: Slice) -> Measured:
        """Raises UserError when the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer says it
            self._process.stdin.write(json.dumps(dataclasses.asdict(wanted)) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise UserError("the process that measures has ended; run the bench again")
        return Measured(**json.loads(line))

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench loop`: 0, or 1 with --check when a target is missed."""
    chosen = settings.parse_command_line(LoopSettings, argv, "steadyhand bench loop", LoopSettings.__doc__ or "")
    findings = measure(chosen)
    judged = targets(findings.found, findings.ours_drift, findings.naive_drift, findings.wire)
    show(findings, judged)
    if chosen.json is not None:
        bench.write_json(chosen.json, "loop", chosen.seed, to_json(chosen, findings, judged))
    return 1 if chosen.check and any(t.met is False for t in judged) else 0


def measure(chosen: LoopSettings) -> Findings:
    """Idle, then under load, then the real processes. Raises UserError."""
    slice_s = chosen.seconds / (2 * ROUNDS * len(RATES_HZ) * len(LOOPS))
    draw = random.Random(chosen.seed)
    slices: dict[Variant, list[Measured]] = defaultdict(list)
    with contextlib.ExitStack() as opened:
        worker = Worker()
        opened.callback(worker.close)
        status = opened.enter_context(Console(stderr=True).status("idle"))
        _rounds(worker, slices, slice_s, draw, loaded=False)
        with Training() as load:
            status.update(f"under load: {load.what}")
            _rounds(worker, slices, slice_s, draw, loaded=True)
            ours, naive = _drifts(worker, slices, chosen.drift_s)
        status.update("the real processes")
        wire = loop_wire.measure(chosen.wire_s) if chosen.wire_s else None
    cores = os.cpu_count() or 1
    refused = [m.problem for measured in slices.values() for m in measured if m.problem]
    granted = {v: ms for v, ms in slices.items() if not (v.fifo and refused)}
    found = {variant: lateness(measured, variant.hz, cores) for variant, measured in granted.items()}
    return Findings(load.what, found, ours, naive, refused[0] if refused else "", wire)


def _rounds(
    worker: Worker, slices: dict[Variant, list[Measured]], slice_s: float, draw: random.Random, loaded: bool
) -> None:
    """Every loop at every rate in each round, in a drawn order: what disturbs the machine disturbs all alike."""
    for _ in range(ROUNDS):
        for wanted in _order(slice_s, draw):
            variant = Variant(wanted.kind, wanted.hz, wanted.fifo, loaded)
            slices[variant].append(worker.run(wanted))


def _order(slice_s: float, draw: random.Random) -> Iterator[Slice]:
    for hz in RATES_HZ:
        loops = list(LOOPS)
        draw.shuffle(loops)
        for kind, fifo in loops:
            yield Slice(kind, hz, slice_s, fifo)


def _drifts(worker: Worker, slices: dict[Variant, list[Measured]], seconds: float) -> tuple[float, float]:
    """How far our loop and the naive one fall behind at DRIFT_HZ, both without real-time priority."""
    found = []
    for kind in (Kind.OURS, Kind.NAIVE):
        measured = slices[Variant(kind, DRIFT_HZ, False, True)]
        if seconds:
            measured = [worker.run(Slice(kind, DRIFT_HZ, seconds, False))]
        found.append(drift(measured, DRIFT_HZ))
    return found[0], found[1]


def show(findings: Findings, judged: Sequence[Target]) -> None:
    """The figures and the targets, for people."""
    bench.show(
        f"lateness after the wake-up that was asked for; load: {findings.load}",
        ("loop", "Hz", "machine", "ticks", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "waited p99", "p99.9", "stolen"),
        [_row(variant, found) for variant, found in sorted(findings.found.items(), key=_rank)],
        caption="waited: ready, but no core was free (run queue), ms; stolen: by the hypervisor, of all cores' time",
    )
    if findings.problem:
        Console().print(findings.problem, markup=False, highlight=False)
    wire = findings.wire
    if wire is not None:
        bench.show(
            f"the real processes, {wire.goals} goals, p99 in ms",
            ("tick to wire", "inference", "picture's age", "joint state's age", "picture to wire"),
            [[f"{1e3 * value:.1f}" for value in (wire.tick_to_wire_s, wire.inference_s, wire.frame_age_s,
                                                 wire.state_age_s, wire.frame_to_wire_s)]],
        )  # fmt: skip
    bench.show_targets(judged)


def to_json(chosen: LoopSettings, findings: Findings, judged: Sequence[Target]) -> dict[str, Any]:
    """Everything that was measured, for a file."""
    return {
        "settings": {**asdict(chosen), "json": str(chosen.json)},
        "load": findings.load,
        "loops": [{**asdict(v), "kind": v.kind.value, **asdict(found)} for v, found in findings.found.items()],
        "drift": {"ours": findings.ours_drift, "naive": findings.naive_drift},
        "wire": asdict(findings.wire) if findings.wire else None,
        "realtime_problem": findings.problem,
        "targets": [asdict(t) for t in judged],
    }


def _rank(item: tuple[Variant, Lateness]) -> tuple[bool, float, bool, bool]:
    variant, _ = item
    return variant.loaded, variant.hz, variant.kind is Kind.OURS, variant.fifo


def _row(variant: Variant, found: Lateness) -> list[str]:
    name = {Kind.NAIVE: "sleep(period - elapsed)", Kind.OURS: "absolute deadlines"}[variant.kind]
    times = (found.p50_s, found.p99_s, found.p999_s, found.max_s, found.runqueue_p99_s, found.runqueue_p999_s)
    return [
        f"{name}{', FIFO' if variant.fifo else ''}",
        f"{variant.hz:g}",
        "loaded" if variant.loaded else "idle",
        str(found.ticks),
        *[f"{1e3 * t:.3f}" for t in times],
        f"{found.stolen:.1%}",
    ]
