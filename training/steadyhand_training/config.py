"""Settings of the learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class LearnerSettings:
    """How the policy is learned. Bounds stand in the types, sources of the defaults in the comments."""

    replay_capacity: Annotated[int, Field(ge=64, le=2_000_000)] = 100_000
    batch: Annotated[int, Field(ge=2, le=4096)] = 128
    discount: Annotated[float, Field(gt=0, lt=1)] = 0.96
    learning_rate: Positive = 3e-4
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.005
    critics: Annotated[int, Field(ge=1, le=32)] = 4
    critics_in_target: Annotated[int, Field(ge=1, le=32)] = 2
    actor_every: Count = 2
    average_rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    temperature: Positive = 0.005
    temperature_learning_rate: Positive = 1e-3
    hidden: Annotated[int, Field(ge=8, le=4096)] = 128
    features_per_camera: Annotated[int, Field(ge=4, le=1024)] = 64
    shift_px: Annotated[int, Field(ge=0, le=16)] = 2
    shifted_copies: Annotated[int, Field(ge=0, le=16)] = 3
    pretrain_batches: Count = 500
    pretrain_batch: Annotated[int, Field(ge=2, le=4096)] = 64
    pretrain_learning_rate: Positive = 1e-3
    warmup_updates: Annotated[int, Field(ge=0)] = 500
    bc_weight: Annotated[float, Field(ge=0)] = 2.0
    bc_weight_end: Annotated[float, Field(ge=0)] = 2.0
    bc_half_life_updates: Count = 2000
