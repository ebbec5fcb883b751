"""The watch over learning: which values the reward makes possible, and warnings in an operator's words."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models.messages import Source
from steadyhand_models.reward import RewardForm, RewardSettings

F32 = npt.NDArray[np.float32]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ValueBounds:
    """The least and the most that any state can be worth."""

    lo: float
    hi: float


def value_bounds(reward: RewardSettings, discount: float, *, penalty: float = 0.0, bonus: float = 0.0) -> ValueBounds:
    """What the reward makes possible from any state.

    `penalty` <= 0 and `bonus` >= 0 are the most that each step can cost or add beside the form (a change of the jaws,
    the entropy); both may come at every step for ever. A success that ends the episode pays once, one that does not
    pays at every step. A probability pays at every step, also where success ends episodes: an arm that hovers below the
    threshold never ends one. Shaping by a potential between 0 and the success reward telescopes to minus the potential
    of where it began (Ng, Harada and Russell 1999).
    """
    if not 0.0 < discount < 1.0:
        raise ValueError(f"discount {discount} must lie between 0 and 1: without it nothing bounds a value")
    if penalty > 0.0 or bonus < 0.0:
        raise ValueError(f"penalty {penalty} must not be positive, bonus {bonus} not negative")
    steps = 1.0 / (1.0 - discount)
    once = reward.terminate_on_success and reward.form is not RewardForm.PROBABILITY
    lo = -reward.success_reward if reward.form is RewardForm.POTENTIAL else 0.0
    hi = reward.success_reward * (1.0 if once else steps)
    return ValueBounds(lo + penalty * steps, hi + bonus * steps)


class WarningCode(str, enum.Enum):
    """What can go wrong with learning while everything runs."""

    VALUES_TOO_HIGH = "values_too_high"
    ENTROPY_COLLAPSED = "entropy_collapsed"
    ACTIONS_SATURATED = "actions_saturated"
    ARM_FROZEN = "arm_frozen"
    TAKEOVERS_REFUSED = "takeovers_refused"
    WEIGHTS_RESTORED = "weights_restored"


@dataclass(frozen=True)
class Warning_:
    """One thing that is wrong now: a code for programs, a sentence and what to do for people."""

    code: WarningCode
    sentence: str
    remedy: str


REMEDIES = {
    WarningCode.VALUES_TOO_HIGH: "Look for false successes and flag them; if it stays, lower learner.learning_rate.",
    WarningCode.ENTROPY_COLLAPSED: "Take over and show another way; if it stays, raise learner.temperature.",
    WarningCode.ACTIONS_SATURATED: "Take over with small movements; if it stays, raise learner.bc_weight_end.",
    WarningCode.ARM_FROZEN: "Take over and move the arm on; check that exploration is not set to 0 on the robot.",
    WarningCode.TAKEOVERS_REFUSED: "Check the input device: its calibration, its range, and that it drives this arm.",
    WarningCode.WEIGHTS_RESTORED: "Nothing now; if it comes again, lower learner.learning_rate.",
}


@dataclass(frozen=True)
class WatchSettings:
    """From where on something is worth a person's attention."""

    over_bound: Annotated[float, Field(gt=0)] = 0.25  # of the span between the bounds; fitting noise stays below .1
    least_entropy: Annotated[float, Field(lt=0)] = -2.0  # nats per action dimension; SAC's target is -0.5
    saturated: Share = 0.75  # of all dimensions: the jaws alone, always at one end, make .25
    looks: Count = 3  # in a row, so that one batch alarms nobody
    still: Annotated[float, Field(ge=0)] = 0.03  # largest share of a full action that counts as standing
    still_steps: Count = 40  # 4 s at 10 Hz


class Watch:
    """Collects what learner and replay notice; pure but for its memory of what it was told."""

    def __init__(self, bounds: ValueBounds, actions: int, settings: WatchSettings | None = None) -> None:
        """`actions` is the number of the contract's action dimensions."""
        self.bounds = bounds
        self.actions = actions
        self.settings = settings or WatchSettings()
        self._metrics: dict[str, float] = {}
        self._in_a_row: Counter[WarningCode] = Counter()
        self._still = 0
        self._refused: Counter[str] = Counter()
        self._restores = 0

    def look(self, metrics: Mapping[str, float]) -> None:
        """The learner's metrics: `q_over_bound`, `saturated` and `entropy`, where it has them."""
        self._metrics = dict(metrics)
        for code, wrong in self._judged().items():
            self._in_a_row[code] = self._in_a_row[code] + 1 if wrong else 0

    def acted(self, source: Source, motion: F32) -> None:
        """One recorded action: who chose it, and how it moved the tip (M,) in shares of a full action."""
        if source is not Source.POLICY:
            self._still = 0
        elif float(np.abs(motion).max(initial=0.0)) <= self.settings.still:
            self._still += 1
        else:
            self._still = 0

    def refused(self, reasons: Mapping[str, int]) -> None:
        """How many takeover actions replay has refused so far, by reason."""
        self._refused = Counter(reasons)

    def restored(self, times: int) -> None:
        """How often the last good weights had to be taken back so far."""
        self._restores = times

    def warnings(self) -> tuple[Warning_, ...]:
        """What is wrong now, the gravest first."""
        found = [code for code in WarningCode if self._in_a_row[code] >= self.settings.looks]
        found += [WarningCode.ARM_FROZEN] * (self._still >= self.settings.still_steps)
        found += [WarningCode.TAKEOVERS_REFUSED] * bool(self._refused.total())
        found += [WarningCode.WEIGHTS_RESTORED] * (self._restores > 0)
        return tuple(Warning_(code, self._sentence(code), REMEDIES[code]) for code in found)

    def _judged(self) -> dict[WarningCode, bool]:
        s, seen = self.settings, self._metrics
        span = self.bounds.hi - self.bounds.lo
        over = seen.get("q_over_bound", 0.0)
        return {
            WarningCode.VALUES_TOO_HIGH: over > s.over_bound * span,
            WarningCode.ENTROPY_COLLAPSED: seen.get("entropy", math.inf) < s.least_entropy * self.actions,
            WarningCode.ACTIONS_SATURATED: seen.get("saturated", 0.0) > s.saturated,
        }

    def _sentence(self, code: WarningCode) -> str:
        seen = self._metrics
        if code is WarningCode.VALUES_TOO_HIGH:
            highest = self.bounds.hi + seen["q_over_bound"]
            return f"The critics expect {highest:.2f}, more than the {self.bounds.hi:.2f} that can be earned."
        if code is WarningCode.ENTROPY_COLLAPSED:
            return (
                f"The policy hardly varies its actions any more (entropy {seen['entropy']:.1f}): it explores nothing."
            )
        if code is WarningCode.ACTIONS_SATURATED:
            return f"{100 * seen['saturated']:.0f}% of the policy's movements are at full speed: it no longer steers."
        if code is WarningCode.ARM_FROZEN:
            return f"The policy has driven for {self._still} steps in a row without moving the arm."
        if code is WarningCode.TAKEOVERS_REFUSED:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(self._refused.items()))
            return f"Actions of takeovers were not learned from because they cannot be right: {why}."
        return (
            f"Learning produced numbers that are not finite and went back to the last good weights ({self._restores}x)."
        )
