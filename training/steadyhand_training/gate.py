"""How good a classifier is by whole episodes, which threshold it should use, and whether a candidate may replace it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models import reward
from steadyhand_training.metrics import wilson

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
Share = Annotated[float, Field(ge=0, le=1)]

Z_ONE_SIDED_95 = 1.6448536269514722  # one-sided 95% quantile of the normal distribution
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(9))
# A false success ends an episode and pays for nothing; a missed one costs a few ticks until the person's key.
HARM_OF_FALSE = 2.0
# So many episodes outweigh one that carries a wrong key or that reaction times have blurred.
FEW = 4


@dataclass(frozen=True)
class GateSettings:
    """What a candidate must show on held-out episodes and on everything that was flagged."""

    false_success_budget: Share = 0.05  # upper bound of the rate of episodes with a false success
    most_false_rise: Share = 0.05  # share of held-out episodes by which false successes may rise
    most_recall_loss: Share = 0.1  # share of held-out or flagged episodes that may be lost
    least_fixed: Share = 0.6  # share of the newly flagged episodes; people press wrong keys


@dataclass(frozen=True)
class Judged:
    """One episode as a classifier sees it: lower bounds (T,) and the human's labels (T,)."""

    lower: F32
    labels: I8


@dataclass(frozen=True)
class Quality:
    """Counts over episodes: `refuted` have frames labelled -1, `confirmed` have frames labelled +1."""

    refuted: int
    false: int  # of the refuted, those with a success on a frame labelled -1
    confirmed: int
    found: int  # of the confirmed, those with a success on a frame labelled +1
    balanced_accuracy: float  # over frames

    @property
    def false_rate(self) -> float:
        return self.false / self.refuted if self.refuted else 0.0

    @property
    def recall(self) -> float:
        return self.found / self.confirmed if self.confirmed else 1.0

    @property
    def false_bound(self) -> float:
        """Upper 95% bound of the rate of episodes with a false success; 1 when there was none to judge."""
        return wilson(self.false, self.refuted, Z_ONE_SIDED_95)[1]


def right(episode: Judged, rule: reward.Rule) -> bool:
    """Whether the classifier agrees with the human: silent where it must be, and heard where there was success."""
    fired = reward.fires(episode.lower, rule)
    heard = bool(fired[episode.labels > 0].any()) or not (episode.labels > 0).any()
    return heard and not fired[episode.labels < 0].any()


def judge(episodes: Sequence[Judged], rule: reward.Rule) -> Quality:
    """A classifier's quality under a rule."""
    refuted = false = confirmed = found = 0
    above: list[npt.NDArray[np.bool_]] = []
    for episode in episodes:
        fired = reward.fires(episode.lower, rule)
        positive, negative = episode.labels > 0, episode.labels < 0
        refuted += bool(negative.any())
        false += bool(fired[negative].any())
        confirmed += bool(positive.any())
        found += bool(fired[positive].any())
        above.append(episode.lower > rule.threshold)
    labels = np.concatenate([e.labels for e in episodes]) if episodes else np.zeros(0, np.int8)
    said = np.concatenate(above) if above else np.zeros(0, np.bool_)
    return Quality(refuted, false, confirmed, found, _balanced_accuracy(said, labels))


def _balanced_accuracy(said: npt.NDArray[np.bool_], labels: I8) -> float:
    """Mean of the two classes' accuracies, over the classes that occur; 0 when none does."""
    parts = [float((said[labels == value] == (value > 0)).mean()) for value in (1, -1) if (labels == value).any()]
    return sum(parts) / len(parts) if parts else 0.0


def choose_rule(episodes: Sequence[Judged], like: reward.Rule, settings: GateSettings) -> reward.Rule:
    """The rule `like` with the threshold of THRESHOLDS that suits held-out episodes.

    Of those whose bound meets the budget it is one that finds most. When none can, as with few episodes, or only by
    missing most of what can be found, it is one that does the least harm. Equals are settled by the middle one, the
    farthest from either mistake.
    """
    rules = [dataclasses.replace(like, threshold=t) for t in THRESHOLDS]
    judged = [judge(episodes, rule) for rule in rules]
    useful = max(q.recall for q in judged) / 2
    within = [q.false_bound <= settings.false_success_budget and q.recall >= useful for q in judged]
    if any(within):
        costs = [1.0 - q.recall if ok else math.inf for q, ok in zip(judged, within)]
    else:
        costs = [1.0 - q.recall + HARM_OF_FALSE * q.false_rate for q in judged]
    best = [rule for rule, cost in zip(rules, costs) if cost == min(costs)]
    return best[len(best) // 2]


@dataclass(frozen=True)
class Trial:
    """A candidate beside the champion: held-out quality, and how many flagged episodes each gets right."""

    candidate: Quality
    champion: Quality
    fresh: int  # episodes flagged since the champion was promoted
    fresh_fixed: int
    past: int  # episodes flagged before
    past_kept_candidate: int
    past_kept_champion: int


def objection(trial: Trial, settings: GateSettings) -> str:
    """Why a candidate may not replace the champion; empty when it may."""
    new, old = trial.candidate, trial.champion
    if new.false - old.false > settings.most_false_rise * new.refuted:
        return f"false_success {old.false} -> {new.false} of {new.refuted} held-out episodes"
    if old.found - new.found > _slack(new.confirmed, settings):
        return f"recall {old.found} -> {new.found} of {new.confirmed} held-out episodes"
    if trial.past_kept_champion - trial.past_kept_candidate > _slack(trial.past, settings):
        kept = f"{trial.past_kept_champion} -> {trial.past_kept_candidate}"
        return f"past_flags {kept} of {trial.past} still right"
    if trial.fresh_fixed < settings.least_fixed * trial.fresh:
        return f"not_fixed {trial.fresh_fixed} of {trial.fresh} flagged episodes fixed"
    return ""


def _slack(episodes: int, settings: GateSettings) -> float:
    """Episodes that may be lost; one in any case where it may be a wrong key among others."""
    return max(settings.most_recall_loss * episodes, 1.0 if episodes >= FEW else 0.0)
