"""Updates per second and memory of every algorithm and encoder, on synthetic episodes of the lift task's shape."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from steadyhand_models import bench, settings
from steadyhand_models import task as tasks
from steadyhand_models.nets.backbone import BackboneError
from steadyhand_training.allocator import keep_freed_memory
from steadyhand_training.bench_learner_stack import filled
from steadyhand_training.config import Algorithm, DrqV2Settings, Encoders, Gripper, LearnerSettings
from steadyhand_training.learner import Learner

WARM_UP = 3
_DESCRIPTION = """Measure every algorithm and encoder: updates per second of processor time, memory, and snapshots.

Example: steadyhand bench algorithms --json algorithms.json"""


@dataclass(frozen=True)
class AlgorithmsBenchSettings:
    """How long and on how much."""

    rounds: Annotated[int, Field(ge=1, le=100)] = 3
    seconds: Annotated[float, Field(gt=0, le=60)] = 2.0  # of each round
    steps: Annotated[int, Field(ge=200, le=20_000)] = 400  # recorded steps to sample from
    seed: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    json: Path | None = None


@dataclass(frozen=True)
class Figures:
    """What was measured of one learner."""

    updates_per_cpu_s: float
    bytes_per_step: int
    snapshot_s: float


def candidates() -> dict[str, LearnerSettings]:
    """What is compared, by name."""
    # Cloning and warming up change no speed: as short as they can be.
    drqv2 = DrqV2Settings(warmup_updates=1)
    base = LearnerSettings(pretrain_batches=2, warmup_updates=1, drqv2=drqv2)
    pixels = dataclasses.replace(base, encoder=Encoders.END_TO_END)
    paper = dataclasses.replace(base, algorithm=Algorithm.DRQV2)
    return {
        "rlpd_sac, frozen": base,
        "rlpd_sac, frozen, discrete gripper": dataclasses.replace(base, gripper=Gripper.DISCRETE),
        "rlpd_sac, backbone": dataclasses.replace(base, encoder=Encoders.BACKBONE),
        "rlpd_sac, end_to_end": pixels,
        "rlpd_sac, end_to_end, batch 64": dataclasses.replace(pixels, batch=64),
        "drqv2, end_to_end": paper,
        "drqv2, end_to_end, batch 128": dataclasses.replace(paper, drqv2=dataclasses.replace(drqv2, batch=128)),
        "drqv2, frozen": dataclasses.replace(paper, encoder=Encoders.FROZEN),
    }


def measure(learner: Learner, rounds: int, seconds: float) -> Figures:
    """Median over the rounds; processor time, so that what else runs on the machine counts less."""
    learner.pretrain()
    for _ in range(WARM_UP):
        learner.update()
    rates = [_rate(learner, seconds) for _ in range(rounds)]
    begun_s = time.perf_counter()
    learner.snapshot()
    return Figures(statistics.median(rates), learner.bytes_per_step, time.perf_counter() - begun_s)


def _rate(learner: Learner, seconds: float) -> float:
    begun_s, updates = time.process_time(), 0
    while (took_s := time.process_time() - begun_s) < seconds or not updates:
        learner.update()
        updates += 1
    return updates / took_s


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench algorithms`: print and save the figures."""
    chosen = settings.parse_command_line(
        AlgorithmsBenchSettings, argv, prog="steadyhand bench algorithms", description=_DESCRIPTION
    )
    torch.set_num_threads(1)
    keep_freed_memory()
    contract = tasks.load("lift").contract()
    replay = filled(contract, chosen.steps, chosen.seed)
    found: dict[str, Figures] = {}
    missing = ""
    for name, each in candidates().items():
        try:
            learner = Learner(contract, replay, each, chosen.seed)
        except BackboneError as problem:
            missing = str(problem)
            continue
        found[name] = measure(learner, chosen.rounds, chosen.seconds)
    rows = [
        (name, f"{f.updates_per_cpu_s:.1f}", f"{f.bytes_per_step:,}", f"{1e3 * f.snapshot_s:.1f}")
        for name, f in found.items()
    ]
    bench.show(
        "Algorithms and encoders", ("", "updates per CPU second", "bytes per step", "snapshot, ms"), rows, missing
    )
    if chosen.json is not None:
        bench.write_json(chosen.json, "algorithms", chosen.seed, {n: dataclasses.asdict(f) for n, f in found.items()})
    return 0
