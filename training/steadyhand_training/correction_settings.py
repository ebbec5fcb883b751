"""Settings of the classifier's correction."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from steadyhand_models.nets import classifier
from steadyhand_training.fitting import FitSettings
from steadyhand_training.gate import GateSettings
from steadyhand_training.veto import VetoSettings

Count = Annotated[int, Field(ge=1, le=100_000)]


class CorrectionRule(str, enum.Enum):
    """What becomes of a person's words."""

    GATED = "gated"  # candidates that pass the gate replace the classifier, and what is stored is relabelled
    FIXED = "fixed"  # nothing: the first classifier stays, and its word alone counts
    SILRI = "silri"  # ten batches per flag in force at once, as in SiLRI (arXiv 2512.24288): no gate, no relabelling


class Start(str, enum.Enum):
    """Where the first classifier comes from."""

    DEMONSTRATIONS = "demonstrations"  # fitted to them before anything is learned
    LABELS = "labels"  # grown while rewards are a person's words alone, promoted when it is ready


@dataclass(frozen=True)
class CorrectionSettings:
    """How the classifier is grown and corrected."""

    rule: CorrectionRule = CorrectionRule.GATED
    start: Start = Start.DEMONSTRATIONS
    heads: Annotated[int, Field(ge=1, le=16)] = classifier.DEFAULT_HEADS
    pessimism: Annotated[float, Field(ge=0, le=5)] = 1.0
    first_batches: Count = 300
    candidate_batches: Count = 30
    # Share of a candidate's own weights beside the champion's after one flag; its n-th root after n.
    blend: Annotated[float, Field(gt=0, le=1)] = 0.5
    attempts: Annotated[int, Field(ge=1, le=10)] = 5  # a refused candidate is trained on, this often in all
    held_out_every: Annotated[int, Field(ge=2, le=100)] = 4
    recent_episodes: Count = 60  # of each light
    least_steps: Annotated[int, Field(ge=0, le=100_000)] = 10  # recorded steps from one candidate to the next
    quiet_labels: Count = 8  # labels that agree with the classifier start a candidate only in such numbers
    # Frames that the first classifier needs where it grows from labels; HIL-SERL collects 200 and 1,000 before it fits.
    first_positive: Count = 50
    first_negative: Count = 200
    # A light with fewer held-out episodes without success than this is young: until then the threshold stays high.
    young_light_episodes: Annotated[int, Field(ge=0, le=1000)] = 4
    young_light_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.7
    fit: FitSettings = field(default_factory=FitSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    veto: VetoSettings = field(default_factory=VetoSettings)
