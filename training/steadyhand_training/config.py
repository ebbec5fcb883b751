"""Settings of the learner."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steadyhand_training.response import ResponseSettings

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Algorithm(str, enum.Enum):
    """How the policy is improved."""

    RLPD_SAC = "rlpd_sac"
    DRQV2 = "drqv2"


class Encoders(str, enum.Enum):
    """What turns frames into features. AUTO is FROZEN for rlpd_sac and END_TO_END for drqv2."""

    AUTO = "auto"
    FROZEN = "frozen"
    END_TO_END = "end_to_end"
    BACKBONE = "backbone"


class Gripper(str, enum.Enum):
    """How the jaws are driven: by the actor like the rest of the arm, or by a critic of their own (three choices)."""

    CONTINUOUS = "continuous"
    DISCRETE = "discrete"


class Device(str, enum.Enum):
    """Where learning computes. AUTO takes CUDA (ROCm shows itself as CUDA), then MPS, then the CPU."""

    AUTO = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


@dataclass(frozen=True)
class DrqV2Settings:
    """What DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645) has of its own; the rest is shared with SAC."""

    batch: Annotated[int, Field(ge=2, le=4096)] = 64  # paper 256; measured: twice the updates of 128 on one core
    n_step: Annotated[int, Field(ge=1, le=20)] = 3  # paper, table 3
    learning_rate: Positive = 1e-4  # paper, table 3
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.01  # paper, table 3
    features: Annotated[int, Field(ge=4, le=1024)] = 50  # of each trunk; paper, table 3
    hidden: Annotated[int, Field(ge=8, le=4096)] = 256  # paper 1024; a quarter of it steps several times as often
    # Paper: linear(1.0, 0.1, 100,000 frames) for its easy tasks, from an actor that knows nothing. Ours is cloned,
    # which 1.0 would drown, and a whole run is some thousand updates.
    std_begin: Positive = 0.3
    std_end: Positive = 0.1
    std_updates: Count = 3000
    std_clip: Positive = 0.3  # of the noise in targets and actor loss; paper, table 3
    warmup_updates: Annotated[int, Field(ge=0)] = 100  # critics only, before the cloned actor may change


@dataclass(frozen=True)
class GripperSettings:
    """The discrete gripper of HIL-SERL (Luo et al. 2024, arXiv 2410.21845): a DQN over open, stay and close."""

    penalty: Annotated[float, Field(ge=-1, le=0)] = -0.02  # of the highest value, each change of the jaws; HIL-SERL
    margin: Annotated[float, Field(ge=0, le=1)] = (
        0.05  # of a person's choice over others; DQfD .8 where rewards reach 1
    )


@dataclass(frozen=True)
class ConstraintSettings:
    """SiLRI's state-wise constraint (Zhao et al. 2025, arXiv 2512.24288); takes the place of the cloning term."""

    enabled: bool = False
    slack: Annotated[float, Field(ge=0, le=4)] = 0.1  # added to the bound; the authors' code
    learning_rate: Positive = 3e-4  # of the model of the person and of the multiplier; the authors' code


@dataclass(frozen=True)
class BackboneSettings:
    """Where the weights of a pretrained image backbone come from; without either, an installed package's."""

    file: Path | None = None  # a state dict of EfficientNet-Lite0 or of torchvision's ResNet-18
    url: str = ""  # the same, downloaded once by torch hub's loader into its cache
    embeddings: Annotated[int, Field(ge=1, le=64)] = 8  # learned spatial weightings per channel; SERL, HIL-SERL


@dataclass(frozen=True)
class LearnerSettings:
    """How the policy is learned. Bounds stand in the types, sources of the defaults in the comments.

    "Measured" means on the lift task, faster than real time, from five demonstrations and rewards of the ground truth.
    """

    algorithm: Algorithm = Algorithm.RLPD_SAC
    encoder: Encoders = Encoders.AUTO
    # Colour differences and local lightness, not levels: nets/pictures.py. A pretrained backbone keeps to levels.
    light_invariant: bool = True
    gripper: Gripper = Gripper.CONTINUOUS
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
    entropy_backup: bool = False  # RLPD and HIL-SERL off; on, targets gain the temperature's worth of entropy
    drqv2: DrqV2Settings = field(default_factory=DrqV2Settings)
    gripper_critic: GripperSettings = field(default_factory=GripperSettings)
    constraint: ConstraintSettings = field(default_factory=ConstraintSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    response: ResponseSettings = field(default_factory=ResponseSettings)  # of the critics to a promoted classifier
    device: Device = Device.AUTO
    mixed_precision: bool = False  # bfloat16 on CUDA; measured on a CPU: half as fast as float32
    compile: bool = False  # torch.compile; takes a minute, pays on CUDA

    def __post_init__(self) -> None:
        """Raises ValueError where two settings exclude each other."""
        if self.algorithm is Algorithm.DRQV2 and self.gripper is Gripper.DISCRETE:
            raise ValueError("gripper 'discrete' needs algorithm 'rlpd_sac'; drqv2 drives the jaws continuously")
        if self.algorithm is Algorithm.DRQV2 and self.constraint.enabled:
            raise ValueError("the constraint needs algorithm 'rlpd_sac'; set learner.constraint.enabled to false")
        if self.critics_in_target > self.critics:
            raise ValueError(f"critics_in_target {self.critics_in_target} is more than the {self.critics} critics")

    @property
    def sight(self) -> Encoders:
        """The encoder in use: never AUTO."""
        if self.encoder is not Encoders.AUTO:
            return self.encoder
        return Encoders.END_TO_END if self.algorithm is Algorithm.DRQV2 else Encoders.FROZEN
