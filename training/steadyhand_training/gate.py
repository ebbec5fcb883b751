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
from steadyhand_training.strata import Stratum

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
Bool = npt.NDArray[np.bool_]
Share = Annotated[float, Field(ge=0, le=1)]

Z_ONE_SIDED_95 = 1.6448536269514722  # one-sided 95% quantile of the normal distribution
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(9))
# A false success ends an episode and pays for nothing; a missed one costs a few ticks until later frames are clearer.
HARM_OF_FALSE = 3.0
# So many episodes outweigh one that carries a wrong key or that reaction times have blurred.
FEW = 4
HARDLY = 0.01  # balanced accuracies closer than this are equal
# Of thresholds that judge equally the highest up to here. Measured on 22 recorded episodes, success being taught from
# 0.25 s after it was seen: at .5 eight were declared too early, at .8 none; at .95 a fifth of its frames are missed.
HIGH = 0.8


@dataclass(frozen=True)
class GateSettings:
    """What a candidate must show on held-out episodes, in every stratum of them, and on everything that was flagged.

    The declared margin of false successes among n held-out episodes is `most_false_rise` of them, and one episode in
    any case. Below it a candidate may be worse than the champion, beyond it never; so many small rises do not add up.
    """

    false_success_budget: Share = 0.05  # upper bound of the rate of episodes with a false success
    most_false_rise: Share = 0.05  # share of held-out episodes, of a stratum and of all, that may newly be false
    most_recall_loss: Share = 0.1  # share of held-out or flagged episodes, of a stratum and of all, that may be lost
    most_accuracy_loss: Share = 0.03  # balanced accuracy over held-out frames that may be lost; few episodes swing
    least_fixed: Share = 0.6  # share of the newly flagged episodes; people press wrong keys
    ready_balanced_accuracy: Share = 0.95  # of a first classifier that grows while rewards are a person's words alone

    def margin(self, episodes: int) -> float:
        """Episodes among so many that may be false although the champion got them right."""
        return _slack(self.most_false_rise, episodes)

    def accuracy_margin(self, confirmed: int) -> float:
        """Balanced accuracy that may be lost: of a few successes what the one that may be lost takes with it."""
        return 0.5 / max(confirmed, 1) if confirmed < FEW else self.most_accuracy_loss


def _slack(share: float, episodes: int) -> float:
    """A share of the episodes, and one in any case: it may be a wrong key, or an unusual place."""
    return max(share * episodes, 1.0)


@dataclass(frozen=True)
class Judged:
    """One episode as a classifier sees it: lower bounds (T,), the human's labels (T,), and the strata (T,) if known.

    A success that runs to the end of a `cut` episode is found, as `reward.fires` has it; it is false only once K frames
    say so. What was never recorded speaks neither for a candidate nor against it.
    """

    lower: F32
    labels: I8
    strata: Sequence[Stratum] = ()
    cut: bool = False


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
    fired, positive = reward.fires(episode.lower, rule), episode.labels > 0
    heard = bool(reward.fires(episode.lower, rule, episode.cut)[positive].any()) or not positive.any()
    return heard and not fired[episode.labels < 0].any()


def judge(episodes: Sequence[Judged], rule: reward.Rule) -> Quality:
    """A classifier's quality under a rule."""
    everywhere = [np.ones(len(e.labels), np.bool_) for e in episodes]
    return _judge(episodes, everywhere, rule)


def judge_strata(episodes: Sequence[Judged], rule: reward.Rule) -> dict[Stratum, Quality]:
    """The same, of the frames of each stratum by themselves. An episode counts in every stratum that it has labels in.

    A success fires on a frame after K of them, which may lie in the phase before.
    """
    places = [np.array([str(s) for s in e.strata]) for e in episodes]
    known = sorted({s for e in episodes for s, word in zip(e.strata, e.labels) if word})
    return {s: _judge(episodes, [place == str(s) for place in places], rule) for s in known}


def _judge(episodes: Sequence[Judged], where: Sequence[Bool], rule: reward.Rule) -> Quality:
    refuted = false = confirmed = found = 0
    said: list[Bool] = [np.zeros(0, np.bool_)]
    labels: list[I8] = [np.zeros(0, np.int8)]
    for episode, here in zip(episodes, where):
        fired = reward.fires(episode.lower, rule)
        positive, negative = here & (episode.labels > 0), here & (episode.labels < 0)
        refuted += bool(negative.any())
        false += bool(fired[negative].any())
        confirmed += bool(positive.any())
        found += bool(reward.fires(episode.lower, rule, episode.cut)[positive].any())
        said.append((episode.lower > rule.threshold)[here])
        labels.append(episode.labels[here])
    return Quality(refuted, false, confirmed, found, _balanced_accuracy(np.concatenate(said), np.concatenate(labels)))


def _balanced_accuracy(said: Bool, labels: I8) -> float:
    """Mean of the two classes' accuracies, over the classes that occur; 0 when none does."""
    parts = [float((said[labels == value] == (value > 0)).mean()) for value in (1, -1) if (labels == value).any()]
    return sum(parts) / len(parts) if parts else 0.0


def choose_rule(
    episodes: Sequence[Judged], like: reward.Rule, settings: GateSettings, least_threshold: float = 0.0
) -> reward.Rule:
    """The rule `like` with the threshold of THRESHOLDS, not below the least one, that suits held-out episodes.

    Of those whose bound meets the budget it is one that finds most. When none can, as with few episodes, or only by
    missing most of what can be found, it is one that does the least harm. Those that find hardly less at no more harm
    are its equals, or one hard episode would lower the threshold for all. Equals are settled by their frames, and
    where those hardly differ by caution: few episodes that come out right say little.
    """
    allowed = [t for t in THRESHOLDS if t >= least_threshold] or [THRESHOLDS[-1]]
    rules = [dataclasses.replace(like, threshold=t) for t in allowed]
    judged = [judge(episodes, rule) for rule in rules]
    useful = max(q.recall for q in judged) / 2
    within = [q.false_bound <= settings.false_success_budget and q.recall >= useful for q in judged]
    if any(within):
        costs = [1.0 - q.recall if ok else math.inf for q, ok in zip(judged, within)]
    else:
        costs = [1.0 - q.recall + HARM_OF_FALSE * q.false_rate for q in judged]
    least = judged[costs.index(min(costs))]
    equal = [
        (rule, q.balanced_accuracy - q.recall / 2)  # less what episodes that are missed whole cost it
        for rule, q in zip(rules, judged)
        if q.false <= least.false and q.recall >= least.recall - settings.most_recall_loss
    ]
    best = [rule for rule, accuracy in equal if accuracy >= max(a for _, a in equal) - HARDLY]
    return max((r for r in best if r.threshold <= HIGH), key=lambda r: r.threshold, default=best[0])


@dataclass(frozen=True)
class Comparison:
    """One stratum of the held-out episodes, as the candidate and the champion see it."""

    stratum: Stratum
    candidate: Quality
    champion: Quality

    def __str__(self) -> str:
        new, old = self.candidate, self.champion
        false = f"false_success {old.false} -> {new.false} of {new.refuted}"
        return f"{self.stratum}: {false}, recall {old.found} -> {new.found} of {new.confirmed}"


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
    strata: tuple[Comparison, ...] = ()


def objection(trial: Trial, settings: GateSettings) -> str:
    """Why a candidate may not replace the champion; empty when it may."""
    new, old = trial.candidate, trial.champion
    if _falser(new, old, settings):
        return f"false_success {old.false} -> {new.false} of {new.refuted} held-out episodes"
    if _lost(new, old, settings):
        return f"recall {old.found} -> {new.found} of {new.confirmed} held-out episodes"
    if old.balanced_accuracy - new.balanced_accuracy > settings.accuracy_margin(new.confirmed):
        return f"balanced_accuracy {old.balanced_accuracy:.3f} -> {new.balanced_accuracy:.3f} on held-out frames"
    for comparison in trial.strata:
        if reason := _stratum_objection(comparison, settings):
            return reason
    if trial.past_kept_champion - trial.past_kept_candidate > _slack(settings.most_recall_loss, trial.past):
        kept = f"{trial.past_kept_champion} -> {trial.past_kept_candidate}"
        return f"past_flags {kept} of {trial.past} still right"
    if trial.fresh_fixed < settings.least_fixed * trial.fresh:
        return f"not_fixed {trial.fresh_fixed} of {trial.fresh} flagged episodes fixed"
    return ""


def _falser(new: Quality, old: Quality, settings: GateSettings) -> bool:
    """Whether false successes rise beyond the declared margin."""
    return new.false > old.false and new.false > settings.margin(new.refuted)


def _lost(new: Quality, old: Quality, settings: GateSettings) -> bool:
    """Whether successes are lost beyond the slack. Of several not all may be, however few they are."""
    all_lost = old.found > new.found == 0 and new.confirmed > 1
    return all_lost or old.found - new.found > _slack(settings.most_recall_loss, new.confirmed)


def _false_objection(comparison: Comparison, settings: GateSettings) -> str:
    new, old, where = comparison.candidate, comparison.champion, comparison.stratum
    if not _falser(new, old, settings):
        return ""
    return f"{where}: false_success {old.false} -> {new.false} of {new.refuted} held-out episodes"


def _stratum_objection(comparison: Comparison, settings: GateSettings) -> str:
    new, old, where = comparison.candidate, comparison.champion, comparison.stratum
    if reason := _false_objection(comparison, settings):
        return reason
    # A single frame that a reaction time has put into the wrong phase is no evidence of recall.
    if new.confirmed >= FEW and _lost(new, old, settings):
        return f"{where}: recall {old.found} -> {new.found} of {new.confirmed} held-out episodes"
    return ""


def falser(comparisons: Sequence[Comparison], settings: GateSettings) -> str:
    """In which stratum false successes rise beyond the margin; empty where they do in none."""
    reasons = (_false_objection(each, settings) for each in comparisons)
    return next(filter(None, reasons), "")


def unready(quality: Quality, settings: GateSettings) -> str:
    """Why a first classifier may not pay rewards yet; empty when it may."""
    if not quality.refuted or not quality.confirmed:
        return f"no_evidence {quality.confirmed} episodes with success held out, {quality.refuted} without"
    if quality.balanced_accuracy < settings.ready_balanced_accuracy:
        return f"balanced_accuracy {quality.balanced_accuracy:.3f}, wanted {settings.ready_balanced_accuracy:.3f}"
    if quality.false > settings.false_success_budget * quality.refuted:
        return f"false_success {quality.false} of {quality.refuted} held-out episodes"
    return ""
