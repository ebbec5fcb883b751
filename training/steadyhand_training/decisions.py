"""Decisions about classifiers, each with what it rests on: first fits, promotions, rejections, rollbacks, reviews."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from steadyhand_training.gate import Quality, Trial


class Verdict(str, enum.Enum):
    """What was decided."""

    FIRST = "first"  # the first classifier is in force
    PROMOTED = "promoted"  # a candidate replaced the champion
    REJECTED = "rejected"  # it did not, and the champion stays
    ROLLED_BACK = "rolled_back"  # the version before is in force again, under a new number
    LIFTED = "lifted"  # the champion's threshold follows drift, up or down again, under a new number
    REVIEW = "review"  # flagged episodes were set aside until somebody looks again


@dataclass(frozen=True)
class Decision:
    """One decision. `trial` has both classifiers' figures on everything held out, and on each stratum of it."""

    verdict: Verdict
    version: int  # in force afterwards
    steps: int  # recorded by then
    labels: int  # said by then
    threshold: float
    reason: str = ""
    quality: Quality | None = None  # held-out quality of the version in force
    trial: Trial | None = None
    episodes: tuple[int, ...] = ()  # set aside
