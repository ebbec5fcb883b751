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
    """How the policy is learned. Bounds stand in the types, sources of the defaults in the comments.

    "Measured" means on the lift task, faster than real time, from five demonstrations and rewards of the ground truth.
    """

    replay_capacity: Annotated[int, Field(ge=64, le=2_000_000)] = 100_000
    batch: Annotated[int, Field(ge=2, le=4096)] = 128  # half of HIL-SERL's 256: twice the updates on one core
    discount: Annotated[float, Field(gt=0, lt=1)] = 0.96  # HIL-SERL .97 for episodes of 100 steps; these have 60
    learning_rate: Positive = 3e-4  # SAC, RLPD, HIL-SERL
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.005  # SAC, RLPD
    # RLPD takes the lower of two out of ten; four small ones cost no more than two of its size.
    critics: Annotated[int, Field(ge=1, le=32)] = 4
    critics_in_target: Annotated[int, Field(ge=1, le=32)] = 2
    actor_every: Count = 2  # critics' updates per actor's, as TD3
    # Of the published actor; measured at 500 steps on two seeds: 97 and 80% against 85 and 65% for the newest actor.
    average_rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    temperature: Positive = 0.005  # HIL-SERL .01; with .1 sampled rollouts went on failing
    temperature_learning_rate: Positive = 1e-3
    hidden: Annotated[int, Field(ge=8, le=4096)] = 128  # half of RLPD's 256: observations are 146 numbers here
    features_per_camera: Annotated[int, Field(ge=4, le=1024)] = 64
    # DrQ-v2 takes 4 of 84 px, but the cube is 8 px wide here, and half its width decides whether the jaws grasp it.
    shift_px: Annotated[int, Field(ge=0, le=16)] = 2
    shifted_copies: Annotated[int, Field(ge=0, le=16)] = 3  # beside the plain frame, cached once each
    pretrain_batches: Count = 500  # measured: 1000 clone no better
    pretrain_batch: Annotated[int, Field(ge=2, le=4096)] = 64
    pretrain_learning_rate: Positive = 1e-3
    # Without it the cloned actor is lost within 100 updates: the first critics know nothing.
    warmup_updates: Annotated[int, Field(ge=0)] = 500
    # Pull of the actor towards what people did, as in TD3+BC.
    bc_weight: Annotated[float, Field(ge=0)] = 2.0
    bc_weight_end: Annotated[float, Field(ge=0)] = 2.0
    bc_half_life_updates: Count = 2000
