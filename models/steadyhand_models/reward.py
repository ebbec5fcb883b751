"""Reward and terminal of every step of an episode, from probabilities, labels and the classifier's manifest; pure.

The reward of action t is judged on the frame after it, t + 1. An episode of N actions has N + 1 frames.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models.messages import EndReason

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
I8 = npt.NDArray[np.int8]

FLIP_SHARE = 0.1  # of the success reward: a change of an action's reward beyond it counts as a flip


class RewardSource(str, enum.Enum):
    """Whose word counts. HYBRID: the classifier's, and a person's wins; the others: one of them alone."""

    HYBRID = "hybrid"
    MANUAL = "manual"
    CLASSIFIER = "classifier"


class RewardForm(str, enum.Enum):
    """What a step pays: success alone; the classifier's probability, always; or success and shaping by it."""

    SUCCESS = "success"
    PROBABILITY = "probability"
    POTENTIAL = "potential"


@dataclass(frozen=True)
class RewardSettings:
    """What an action is paid for. Names and meanings are LeRobot's where it has them."""

    source: RewardSource = RewardSource.HYBRID
    form: RewardForm = RewardForm.SUCCESS
    # None: calibrated on held-out episodes and carried in the classifier's manifest. LeRobot .5, its docs .7.
    success_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    success_reward: Annotated[float, Field(gt=0, le=1000)] = 1.0  # LeRobot, HIL-SERL
    terminate_on_success: bool = True  # LeRobot
    force: bool = False  # allows `probability` where success ends the episode

    def __post_init__(self) -> None:
        """Raises ValueError where two settings exclude each other."""
        if self.form is not RewardForm.SUCCESS and self.source is RewardSource.MANUAL:
            raise ValueError(
                f"form '{self.form.value}' pays the classifier's probability and source 'manual' asks no classifier; "
                "set reward.source to 'hybrid', or reward.form to 'success'"
            )
        if self.form is RewardForm.PROBABILITY and self.terminate_on_success and not self.force:
            raise ValueError(
                "form 'probability' pays at every step, so where success ends the episode an arm earns more by "
                "hovering short of it; set reward.terminate_on_success to false, or reward.form to 'potential', "
                "or reward.force to true if that is what you want"
            )


DEFAULT = RewardSettings()


@dataclass(frozen=True)
class Rule:
    """How probabilities become success: the threshold, and K frames in a row that must exceed it."""

    threshold: float
    debounce_frames: int
    pessimism: float = 1.0  # standard deviations of the ensemble below its mean


@dataclass(frozen=True)
class Outcome:
    """What the learner may use of an episode's N actions.

    reward (N,) float32; terminal (N,) bool, false is bootstrapped; usable (N,) bool, false behind the first terminal.
    """

    reward: F32
    terminal: Bool
    usable: Bool


def lower_bound(probabilities: F32, pessimism: float) -> F32:
    """Pessimistic probability (T,) of an ensemble (T, heads): mean minus `pessimism` standard deviations, in [0, 1]."""
    spread = probabilities.std(axis=-1) if probabilities.shape[-1] > 1 else np.float32(0.0)
    return np.clip(probabilities.mean(axis=-1) - pessimism * spread, 0.0, 1.0).astype(np.float32)


def fires(lower: F32, rule: Rule, cut: bool = False) -> Bool:
    """Frames (T,) at which the last K lower bounds all exceed the threshold.

    `cut` says that a declared success ended the episode. Frames that would complete a run at its end were never
    recorded then: the last one counts with those before it that exceed the threshold, however few.
    """
    above = np.concatenate([np.zeros(rule.debounce_frames, np.int64), np.cumsum(lower > rule.threshold)])
    k = rule.debounce_frames
    runs = above[k:] - above[:-k]
    # The first K - 1 frames of an episode have no K predecessors of their own.
    runs = np.where(np.arange(1, len(lower) + 1) >= k, runs, 0)
    fired: Bool = runs >= k
    if cut and len(lower):
        fired[-1] |= lower[-1] > rule.threshold
    return fired


def success_frames(lower: F32 | None, labels: I8, rule: Rule, cut: bool = False) -> Bool:
    """Frames (T,) that count as success: the human's label (+1, -1; 0 is silence) wins over the classifier.

    `cut` as in `fires`.
    """
    fired = fires(lower, rule, cut) if lower is not None else np.zeros(len(labels), np.bool_)
    return np.where(labels == 0, fired, labels > 0)


def deny(lower: F32, frames: Sequence[int], rule: Rule) -> F32:
    """Lower bounds (T,) without what a person has denied: behind each of `frames`, the last ones of successes that were
    vetoed, 0 until a bound is at the threshold or below. The robot, too, declares again only then."""
    out = lower.copy()
    for frame in frames:
        below = np.flatnonzero(lower[frame:] <= rule.threshold)
        out[frame + 1 : frame + int(below[0]) if len(below) else len(out)] = 0.0
    return out


def success_probability(lower: F32 | None, labels: I8) -> F32:
    """Probability (T,) of success on each frame: 1 or 0 where the human spoke, else the classifier's lower bound."""
    model = lower if lower is not None else np.zeros(len(labels), np.float32)
    return np.where(labels == 0, model, labels > 0).astype(np.float32)


def heard(lower: F32 | None, labels: I8, source: RewardSource) -> tuple[F32 | None, I8]:
    """The lower bounds and labels (T,) that a source lets count. Without a classifier the labels are all there is."""
    if source is RewardSource.MANUAL:
        return None, labels
    if source is RewardSource.CLASSIFIER and lower is not None:
        return lower, np.zeros_like(labels)
    return lower, labels


def worth(
    lower: F32 | None,
    labels: I8,
    rule: Rule,
    end: EndReason | None,
    settings: RewardSettings,
    discount: float,
    denied: Sequence[int] = (),
) -> Outcome:
    """Outcome of an episode from the classifier's lower bounds and the labels (T,) of its T frames.

    `denied` are the frames with which successes were declared that a person has vetoed.
    """
    lower, labels = heard(lower, labels, settings.source)
    if lower is not None and settings.source is RewardSource.HYBRID:
        lower = deny(lower, denied, rule)
    success = success_frames(lower, labels, rule, cut=end is EndReason.SUCCESS)
    return outcome(success, end, success_probability(lower, labels), settings, discount)


def outcome(
    success: Bool,
    end: EndReason | None,
    probability: F32 | None = None,
    settings: RewardSettings = DEFAULT,
    discount: float = 1.0,
) -> Outcome:
    """Reward, terminal and usable of the N actions of an episode with N + 1 frames.

    Where success ends episodes the first one is terminal and everything behind it is masked, so that a missed success
    repairs itself; an end by success that no longer counts as one becomes a truncation. Where it does not, every
    frame of success pays and none is terminal. A human's FAILURE is terminal without reward.

    The dense forms need the `probability` (N + 1,) of each frame, all of one classifier version, and POTENTIAL the
    learner's `discount`: gamma Phi(s') - Phi(s) leaves the best policy what it was (Ng, Harada and Russell 1999) as
    long as Phi is 0 at a terminal.
    """
    terminal, usable = _ends(success[1:], end, settings.terminate_on_success)
    paid = success[1:].astype(np.float32)
    if settings.form is not RewardForm.SUCCESS:
        if probability is None:
            raise ValueError(f"form '{settings.form.value}' needs the probability of every frame")
        paid = _dense(paid, terminal, probability, settings.form, discount)
    return Outcome((settings.success_reward * paid * usable).astype(np.float32), terminal, usable)


def _ends(success: Bool, end: EndReason | None, terminate_on_success: bool) -> tuple[Bool, Bool]:
    """Terminal and usable (N,) of the actions that led to these frames (N,)."""
    terminal = np.zeros(len(success), np.bool_)
    usable = np.ones(len(success), np.bool_)
    hits = np.flatnonzero(success)
    if len(hits) and terminate_on_success:
        terminal[hits[0]] = True
        usable[hits[0] + 1 :] = False
    elif end is EndReason.FAILURE and len(success):
        terminal[-1] = True
    return terminal, usable


def _dense(success: F32, terminal: Bool, probability: F32, form: RewardForm, discount: float) -> F32:
    """What the actions (N,) pay, as a share of the success reward."""
    if form is RewardForm.PROBABILITY:
        return probability[1:]
    after = np.where(terminal, np.float32(0.0), probability[1:])
    return success + np.float32(discount) * after - probability[:-1]


def flips(reward: F32, terminal: Bool, now: Outcome, settings: RewardSettings = DEFAULT) -> Bool:
    """Actions (N,) whose stored reward or terminal an outcome changes by more than a nuance."""
    apart = np.abs(now.reward - reward) > FLIP_SHARE * settings.success_reward
    return apart | (now.terminal != terminal)
