"""Drift: whether what the robot sees still is what the champion was fitted on; named warnings with hysteresis. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_training.metrics import wilson
from steadyhand_training.strata import distance

F32 = npt.NDArray[np.float32]
Ratio = Annotated[float, Field(gt=1, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1000)]

WINDOW = 3  # episodes that are looked at together
Z_ONE_SIDED_90 = 1.2815515655446004
LEAST_BEFORE = 10  # successes that were called before the window, to know what is usual


class DriftCode(str, enum.Enum):
    """What can make a classifier that was right wrong."""

    LIGHT_CHANGED = "light_changed"
    FEATURE_SHIFT = "feature_shift"
    DISAGREEMENT_RISING = "disagreement_rising"
    VETOES_RISING = "vetoes_rising"


_REVIEW = "`steadyhand classifier review`"
REMEDIES = {
    DriftCode.LIGHT_CHANGED: f"Judge a few episodes by the success and failure keys, and answer {_REVIEW}.",
    DriftCode.FEATURE_SHIFT: f"Look whether a camera or the scene was moved, and answer {_REVIEW}.",
    DriftCode.DISAGREEMENT_RISING: f"Answer {_REVIEW}: there are the frames that it cannot decide.",
    DriftCode.VETOES_RISING: "Go on flagging; if it stays, `steadyhand models rollback` takes the classifier before.",
}


@dataclass(frozen=True)
class DriftSettings:
    """From where on a difference is drift. A warning rises on two of three episodes and falls after three calm ones."""

    light_levels: Annotated[float, Field(gt=0, le=255)] = 6.0  # of 255; measured: at most 2.5 in constant light
    feature_ratio: Ratio = 2.0  # of the distance that held-out episodes of the same kind have
    disagreement_ratio: Ratio = 2.5
    least_disagreement: Share = 0.15  # below it heads that differ more than before still agree
    veto_share: Share = 0.25  # lower bound of the share of its successes that people refute
    veto_window: Count = 10  # successes that it called
    calm: Share = 0.75  # a warning falls below this share of where it rises
    threshold_step: Share = 0.05  # added to the threshold of classifiers promoted while any warning lasts


@dataclass(frozen=True)
class Fitted:
    """What the champion was fitted on, and what is usual for it.

    `lights` are signatures of the labelled episodes (L of (C, P * 3)); `far` and `disagreement` what held-out episodes
    under those lights show.
    """

    lights: tuple[F32, ...]
    far: float
    disagreement: float


@dataclass(frozen=True)
class Seen:
    """One ended episode: its signature, its frames' distance in feature space, and what the heads said of them."""

    light: F32
    far: float
    disagreement: float


@dataclass(frozen=True)
class Vetoes:
    """Of the successes that the classifier called, how many a person refuted: lately, and in the time before."""

    called: int
    refuted: int
    called_before: int = 0
    refuted_before: int = 0

    @property
    def risen(self) -> float:
        """Lower 90% bound of the share that is refuted lately; 0 unless that is above the upper one of what was usual.

        A classifier that was refuted as often from the start is a poor one, and nothing drifts.
        """
        if self.called_before < LEAST_BEFORE or not self.called:
            return 0.0
        usual = wilson(self.refuted_before, self.called_before, Z_ONE_SIDED_90)[1]
        lately = wilson(self.refuted, self.called, Z_ONE_SIDED_90)[0]
        return lately if lately > usual else 0.0


@dataclass(frozen=True)
class DriftWarning:
    """Something that drifts now: a code for programs, a sentence and what to do for people."""

    code: DriftCode
    sentence: str
    remedy: str


class Drift:
    """Collects what ended episodes show. Pure but for its memory of them, which `state` gives and `restore` takes."""

    def __init__(self, settings: DriftSettings) -> None:
        self.settings = settings
        self._recent: dict[DriftCode, list[float]] = {code: [] for code in DriftCode}
        self._active: set[DriftCode] = set()
        self._vetoes = Vetoes(0, 0)
        self._levels = 0.0  # of the last episode, signed: brighter or darker

    def look(self, seen: Seen, fitted: Fitted, vetoes: Vetoes) -> None:
        """One more ended episode, beside what its champion was fitted on."""
        self._vetoes, self._levels = vetoes, brighter(seen.light, fitted.lights)
        s = self.settings
        uneven = max(s.least_disagreement, s.disagreement_ratio * fitted.disagreement)
        # Each as a share of where its warning rises.
        self._note(DriftCode.LIGHT_CHANGED, light_levels(seen.light, fitted.lights) / s.light_levels)
        self._note(DriftCode.FEATURE_SHIFT, seen.far / max(s.feature_ratio * fitted.far, 1e-9))
        self._note(DriftCode.DISAGREEMENT_RISING, seen.disagreement / max(uneven, 1e-9))
        self._note(DriftCode.VETOES_RISING, vetoes.risen / max(s.veto_share, 1e-9))

    def begin(self) -> None:
        """Another champion is in force: what was measured by the one before counts no more, what is warned of stays."""
        for code in (DriftCode.FEATURE_SHIFT, DriftCode.DISAGREEMENT_RISING, DriftCode.LIGHT_CHANGED):
            self._recent[code] = []

    @property
    def active(self) -> tuple[DriftCode, ...]:
        return tuple(code for code in DriftCode if code in self._active)

    def warnings(self) -> tuple[DriftWarning, ...]:
        return tuple(DriftWarning(code, self._sentence(code), REMEDIES[code]) for code in self.active)

    def state(self) -> dict[str, Any]:
        """All that is remembered, as plain data."""
        return {
            "recent": {code.value: values for code, values in self._recent.items()},
            "active": [code.value for code in self.active],
            "vetoes": [self._vetoes.called, self._vetoes.refuted],
            "levels": self._levels,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self._recent = {code: [float(v) for v in state["recent"][code.value]] for code in DriftCode}
        self._active = {DriftCode(name) for name in state["active"]}
        called, refuted = state["vetoes"]
        self._vetoes, self._levels = Vetoes(int(called), int(refuted)), float(state["levels"])

    def _note(self, code: DriftCode, share: float) -> None:
        recent = self._recent[code] = [*self._recent[code], share][-WINDOW:]
        if sum(value > 1.0 for value in recent) >= 2:
            self._active.add(code)
        elif len(recent) == WINDOW and max(recent) < self.settings.calm:
            self._active.discard(code)

    def _sentence(self, code: DriftCode) -> str:
        share = self._recent[code][-1] if self._recent[code] else 1.0
        if code is DriftCode.LIGHT_CHANGED:
            how = "darker" if self._levels < 0 else "brighter"
            return f"The light has changed: pictures are {how} or of another colour than any that the classifier knows."
        if code is DriftCode.FEATURE_SHIFT:
            times = share * self.settings.feature_ratio
            return f"Frames look unlike those that the classifier learned from: {times:.1f} times as far as usual."
        if code is DriftCode.DISAGREEMENT_RISING:
            return "The classifier's heads disagree much more than on what it learned from."
        return f"People refuted {self._vetoes.refuted} of the last {self._vetoes.called} successes of the classifier."


def threshold_lift(drift: Drift) -> float:
    """What is to be added to the champion's threshold now: one step while anything drifts, however much does."""
    return drift.settings.threshold_step if drift.active else 0.0


def light_levels(light: F32, known: Sequence[F32]) -> float:
    """How far a light is from the nearest known one, in levels of 255; 0 where none is known."""
    return min((distance(light, other) for other in known), default=0.0)


def brighter(light: F32, known: Sequence[F32]) -> float:
    """By how many levels a light is brighter than the nearest known one, in the mean."""
    if not known:
        return 0.0
    return float((light - min(known, key=lambda other: distance(light, other))).mean())
