"""How good a classifier is on labelled frames: rates, calibration error, and intervals that know of episodes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models import reward
from steadyhand_training import gate
from steadyhand_training.gate import Judged
from steadyhand_training.metrics import wilson

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

BINS = 10  # of the calibration error; as Guo et al. 2017 use 15 for ten times the frames
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Scored:
    """One episode of T frames: each head's probabilities (T, H), and labels (T,) of +1, -1, 0; `cut` by a success."""

    probabilities: F32
    labels: I8
    cut: bool = False


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval; None where nothing was tried."""

    value: float | None
    lo: float
    hi: float


@dataclass(frozen=True)
class FrameQuality:
    """Over labelled frames, where success means a lower bound above the threshold; shares are None without frames."""

    episodes: int
    positive: int
    negative: int
    true_positive: int
    false_positive: int
    false_positive_rate: Rate  # clustered by episode
    calibration_error: float | None

    @property
    def accuracy(self) -> float | None:
        right = self.true_positive + self.negative - self.false_positive
        return _share(right, self.positive + self.negative)

    @property
    def precision(self) -> float | None:
        return _share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float | None:
        return _share(self.true_positive, self.positive)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of both classes' accuracies; None where one does not occur."""
        if not self.positive or not self.negative:
            return None
        return (self.true_positive / self.positive + 1 - self.false_positive / self.negative) / 2


@dataclass(frozen=True)
class EpisodeQuality:
    """Over whole episodes, where success means K frames in a row above the threshold."""

    refuted: int  # have frames labelled as no success
    false: int  # of these, called a success on such a frame
    confirmed: int  # have frames labelled as success
    found: int  # of these, called a success on such a frame

    @property
    def false_rate(self) -> Rate:
        """Share of false-success episodes with its Wilson interval."""
        return Rate(_share(self.false, self.refuted), *wilson(self.false, self.refuted))

    @property
    def recall(self) -> Rate:
        return Rate(_share(self.found, self.confirmed), *wilson(self.found, self.confirmed))


def said(episode: Scored, rule: reward.Rule) -> Bool:
    """Frames (T,) whose lower bound exceeds the threshold."""
    return reward.lower_bound(episode.probabilities, rule.pessimism) > rule.threshold


def frames(episodes: Sequence[Scored], rule: reward.Rule, seed: int = 0) -> FrameQuality:
    """Quality over the labelled frames of episodes; `seed` draws the resamples of the interval."""
    spoken = [e for e in episodes if e.labels.any()]
    calls = [said(e, rule) for e in spoken]
    negative = np.array([int((e.labels < 0).sum()) for e in spoken], np.int64)
    false = np.array([int((c & (e.labels < 0)).sum()) for e, c in zip(spoken, calls)], np.int64)
    return FrameQuality(
        episodes=len(spoken),
        positive=sum(int((e.labels > 0).sum()) for e in spoken),
        negative=int(negative.sum()),
        true_positive=sum(int((c & (e.labels > 0)).sum()) for e, c in zip(spoken, calls)),
        false_positive=int(false.sum()),
        false_positive_rate=clustered(false, negative, seed),
        calibration_error=calibration_error(spoken),
    )


def episodes(scored: Sequence[Scored], rule: reward.Rule) -> EpisodeQuality:
    """Quality over whole episodes, by the rule that ends them on the robot."""
    quality = gate.judge([view(e, rule.pessimism) for e in scored], rule)
    return EpisodeQuality(quality.refuted, quality.false, quality.confirmed, quality.found)


def view(scored: Scored, pessimism: float) -> Judged:
    """The episode as the gate looks at it."""
    return Judged(reward.lower_bound(scored.probabilities, pessimism), scored.labels, cut=scored.cut)


def clustered(hits: I64, trials: I64, seed: int = 0) -> Rate:
    """Share of hits among trials, both by episode (E,), with a 95% interval over episodes.

    Frames of an episode resemble each other, so the percentile bootstrap resamples episodes, not frames (cluster
    bootstrap, Field and Welsh 2007). It knows nothing where every frame agrees; there the interval is Wilson's, with
    each episode counted as one trial. One episode alone says nothing about others.
    """
    some = trials > 0
    hits, trials = hits[some], trials[some]
    if not len(trials):
        return Rate(None, 0.0, 1.0)
    share = float(hits.sum() / trials.sum())
    if len(trials) == 1:
        return Rate(share, 0.0, 1.0)
    if share in (0.0, 1.0):
        return Rate(share, *wilson(len(trials) if share else 0, len(trials)))
    picks = np.random.default_rng(seed).integers(0, len(trials), (RESAMPLES, len(trials)))
    shares = hits[picks].sum(axis=1) / trials[picks].sum(axis=1)
    lo, hi = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Rate(share, float(lo), float(hi))


def calibration_error(scored: Sequence[Scored]) -> float | None:
    """Expected calibration error of the heads' mean over labelled frames, in BINS equal bins (Guo et al. 2017)."""
    if not any(e.labels.any() for e in scored):
        return None
    mean = np.concatenate([e.probabilities.mean(axis=1)[e.labels != 0] for e in scored]).astype(np.float64)
    success = np.concatenate([e.labels[e.labels != 0] > 0 for e in scored])
    places = np.minimum((mean * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(places, success - mean, BINS)
    return float(np.abs(gap).sum() / len(mean))


def _share(count: int, of: int) -> float | None:
    return count / of if of else None
