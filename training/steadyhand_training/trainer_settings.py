"""Settings of the trainer process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steadyhand_models.reward import RewardSettings
from steadyhand_training.asking import AskingSettings
from steadyhand_training.config import LearnerSettings
from steadyhand_training.correction import CorrectionSettings
from steadyhand_training.drift import DriftSettings
from steadyhand_training.metric_writers import WriterSettings
from steadyhand_training.publish import PublishSettings

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class LockstepSettings:
    """For a simulated robot that takes steps only when it is told to: equal seeds give equal runs."""

    enabled: bool = False
    ahead_steps: Annotated[int, Field(ge=1, le=1000)] = 10  # steps granted at a time


@dataclass(frozen=True)
class TrainerSettings:
    """What `steadyhand train` needs to know."""

    run: Path = Path("runs/latest")
    task: str = "lift"
    seed: Annotated[int, Field(ge=0)] = 0
    listen: str = "tcp://127.0.0.1:5570"  # robots connect here; port * takes any that is free
    status: str = "tcp://127.0.0.1:5571"  # telemetry for whoever subscribes
    demonstrations: Count = 10  # successful ones, before anything is learned
    failed_demonstrations: Annotated[int, Field(ge=0)] = 0  # the same of failed ones
    utd_ratio: Annotated[float, Field(gt=0, le=100)] = 6.0  # most updates per recorded step
    threads: Annotated[int, Field(ge=1, le=256)] = 1  # two are slower than one where cores are contended
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    updates_per_turn: Count = 4  # between looks at what arrived
    correction_slice_s: Positive = 0.25  # between bursts of updates, while a candidate grows
    checkpoint_every_s: Positive = 30.0
    publish: PublishSettings = field(default_factory=PublishSettings)
    lockstep: LockstepSettings = field(default_factory=LockstepSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    metrics: WriterSettings = field(default_factory=WriterSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    asking: AskingSettings = field(default_factory=AskingSettings)
    drift: DriftSettings = field(default_factory=DriftSettings)
