"""Inference at the real pace: latency and CPU of policy and classifier beside torch and onnxruntime's defaults."""

from __future__ import annotations

import os
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
from steadyhand_models.pacing import Timing
from steadyhand_runtime.bench import samples
from steadyhand_runtime.bench.infer_worker import DEFAULT, OURS, Job

TORCH = "torch eager, 1 thread"
STACKS = (OURS, TORCH, DEFAULT)
RATES_HZ = (10.0, 30.0)
MAX_TIME_SHARE = 0.8  # of torch's
MAX_CPU_SHARE = 0.4  # of onnxruntime's defaults
WORKER_TIMEOUT_S = 300.0
# Libraries that read these would use fewer threads than they do by default.
_UNSET = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class BenchInferSettings:
    """One call of policy and classifier per control tick, three ways, slices in turn.

    Example: steadyhand bench infer --rounds 5 --json infer.json
    """

    rounds: Annotated[int, Field(ge=1, le=1000)] = 5
    slice_s: Annotated[float, Field(gt=0.5, le=600)] = 4.0  # of each stack at each rate in each round
    seed: Annotated[int, Field(ge=0)] = 0  # of the sample models, and which stack begins
    json: Path | None = None  # every slice's figures
    check: bool = False  # exit with 1 when a target is missed


@dataclass(frozen=True)
class Row:
    """Medians over the rounds of one stack at one rate."""

    stack: str
    rate_hz: float
    p50_s: float
    p99_s: float
    cores: float


Slices = dict[tuple[str, float], list[Timing]]


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench infer`: 0, or 1 with --check when a target is missed."""
    description = BenchInferSettings.__doc__ or ""
    chosen = settings.parse_command_line(BenchInferSettings, argv, "steadyhand bench infer", description)
    with tempfile.TemporaryDirectory(prefix="steadyhand-bench-") as folder, Console(stderr=True).status("") as status:
        slices = measure(chosen, Path(folder), status.update)
    rows = {key: summarise(*key, timings) for key, timings in slices.items()}
    judged = targets(slices)
    _show(chosen, rows, judged)
    if chosen.json is not None:
        figures = {
            "settings": {**asdict(chosen), "json": str(chosen.json)},
            "cores": os.cpu_count(),
            "rows": [asdict(row) for row in rows.values()],
            "slices": [{"stack": k[0], "rate_hz": k[1], **asdict(t)} for k, ts in slices.items() for t in ts],
            "targets": [asdict(t) for t in judged],
        }
        bench.write_json(chosen.json, "infer", chosen.seed, figures)
    return 1 if chosen.check and not all(t.met for t in judged) else 0


def measure(chosen: BenchInferSettings, folder: Path, tell: Callable[[str], None]) -> Slices:
    """Every stack at every rate in every round, the order rotating. Raises UserError."""
    tell("making sample models")
    made = samples.make(folder / "samples", 1, chosen.seed, weights=True)
    slices: Slices = {(stack, rate_hz): [] for rate_hz in RATES_HZ for stack in STACKS}
    for number in range(chosen.rounds):
        for rate_hz in RATES_HZ:
            for i in range(len(STACKS)):
                stack = STACKS[(i + number + chosen.seed) % len(STACKS)]
                tell(f"round {number + 1} of {chosen.rounds}: {stack} at {rate_hz:.0f} Hz")
                job = Job(stack, str(made), rate_hz, max(2, round(chosen.slice_s * rate_hz)))
                slices[stack, rate_hz].append(_worker(job))
    return slices


def summarise(stack: str, rate_hz: float, timings: Sequence[Timing]) -> Row:
    """Medians over rounds."""
    p50_s, p99_s, cores = (statistics.median(values) for values in zip(*((t.p50_s, t.p99_s, t.cores) for t in timings)))
    return Row(stack, rate_hz, p50_s, p99_s, cores)


def targets(slices: Slices) -> list[Target]:
    """What is promised, judged by the median over rounds of the ratio within a round."""
    found = []
    for rate_hz in RATES_HZ:
        ours = slices[OURS, rate_hz]
        time_share = statistics.median(o.p50_s / t.p50_s for o, t in zip(ours, slices[TORCH, rate_hz]))
        cpu_share = statistics.median(o.cores / d.cores for o, d in zip(ours, slices[DEFAULT, rate_hz]))
        for what, share, limit in (
            (f"{rate_hz:.0f} Hz: time of torch eager's", time_share, MAX_TIME_SHARE),
            (f"{rate_hz:.0f} Hz: CPU of onnxruntime's default", cpu_share, MAX_CPU_SHARE),
        ):
            found.append(Target(what, f"<= {limit}", f"{share:.2f}", share <= limit))
    return found


def _worker(job: Job) -> Timing:
    """One slice in a fresh process. Raises UserError with the last line that it complained."""
    if job.stack == TORCH:
        words = ["--samples", job.samples, "--rate-hz", str(job.rate_hz), "--calls", str(job.calls)]
        command = [sys.executable, "-m", "steadyhand_models.nets.eager", *words]
    else:
        text = pydantic.TypeAdapter(Job).dump_json(job).decode()
        command = [sys.executable, "-m", "steadyhand_runtime.bench.infer_worker", text]
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WORKER_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(f"{job.stack}: no end after {WORKER_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise UserError(f"{job.stack}: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}")
    return pydantic.TypeAdapter(Timing).validate_json(done.stdout)


def _show(chosen: BenchInferSettings, rows: dict[tuple[str, float], Row], judged: Sequence[Target]) -> None:
    bench.show(
        f"policy and classifier, one call each per tick, on the CPU of {os.cpu_count()} cores",
        ("stack", "rate Hz", "p50 ms", "p99 ms", "time ours/its", "cores used", "CPU ours/its"),
        [_row(row, rows[OURS, row.rate_hz]) for row in rows.values()],
        caption=f"medians over {chosen.rounds} rounds of {chosen.slice_s:g} s; run-queue delay is taken out",
    )
    bench.show_targets(judged)


def _row(row: Row, ours: Row) -> list[str]:
    times = [f"{row.p50_s * 1e3:.2f}", f"{row.p99_s * 1e3:.2f}", f"{ours.p50_s / row.p50_s:.2f}"]
    return [row.stack, f"{row.rate_hz:.0f}", *times, f"{row.cores:.3f}", f"{ours.cores / row.cores:.2f}"]
