"""Which stored frames are worth a human's glance: ranked by disagreement, novelty and effect on the return; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models import reward

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MOST_PER_EPISODE = 5
Weight = Annotated[float, Field(ge=0, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class AskingSettings:
    """How much a person is asked, and what makes a frame worth it."""

    enabled: bool = True
    per_episode: Annotated[int, Field(ge=0, le=MOST_PER_EPISODE)] = MOST_PER_EPISODE
    most_open: Annotated[int, Field(ge=1, le=500)] = 20  # a sitting of a minute or two; better ones push out others
    most_open_in_drift: Annotated[int, Field(ge=1, le=500)] = 40
    least_score: Share = 0.2  # measured: of an ordinary lift run's frames about 3% come above it
    least_score_in_drift: Share = 0.1
    spacing_steps: Annotated[int, Field(ge=1, le=1000)] = 8  # neighbours at 10 Hz show the same; as far as 0.8 s
    look_back_episodes: Annotated[int, Field(ge=1, le=10_000)] = 100
    disagreement_weight: Weight = 1.0
    novelty_weight: Weight = 0.5
    effect_weight: Weight = 1.0


@dataclass(frozen=True)
class Glances:
    """N frames that might be asked about. The terms (N,) lie in [0, 1]; `silent` (N,) are those nobody spoke of."""

    episode: I64
    seq: I64
    disagreement: F32
    novelty: F32
    effect: F32
    silent: Bool

    def scores(self, settings: AskingSettings) -> F32:
        """The weighted mean of the terms (N,)."""
        weights = (settings.disagreement_weight, settings.novelty_weight, settings.effect_weight)
        terms = (self.disagreement, self.novelty, self.effect)
        total = sum(w * t for w, t in zip(weights, terms))
        return np.asarray(total / max(sum(weights), 1e-9), np.float32)


def disagreement(probabilities: F32) -> F32:
    """How far the heads of an ensemble (N, heads) are apart (N,): 1 when one half is sure of what the other denies."""
    return np.asarray(np.clip(2.0 * probabilities.std(axis=1), 0.0, 1.0), np.float32)


def novelty(features: F32, known: F32) -> F32:
    """How far frames (N, F) lie from the nearest of the labelled ones (M, F), (N,).

    1 is the typical distance of two labelled frames and anything beyond; everything is new where nothing is labelled.
    """
    if len(known) < 2:
        return np.ones(len(features), np.float32)
    return np.clip(nearest(features, known) / typical(known), 0.0, 1.0).astype(np.float32)


def nearest(features: F32, known: F32) -> F32:
    """Distance (N,) of each of features (N, F) to the nearest of known (M, F)."""
    return np.asarray(np.sqrt(_squared(features, known).min(axis=1)), np.float32)


def typical(known: F32) -> float:
    """The median distance between two of known (M, F); never 0."""
    apart = _squared(known, known)[np.triu_indices(len(known), 1)]
    return float(np.sqrt(np.median(apart))) + 1e-6 if len(apart) else 1.0


def _squared(one: F32, other: F32) -> F32:
    product = one @ other.T
    squares = (one * one).sum(axis=1)[:, None] + (other * other).sum(axis=1)[None, :] - 2.0 * product
    return np.asarray(np.maximum(squares, 0.0), np.float32)


def effects(probabilities: F32, labels: I8, rule: reward.Rule, discount: float) -> F32:
    """What an answer about each frame (T,) of an ended episode is expected to change of its return.

    That is the share of the return from that frame on which the other answer would take away or add, times the
    probability (of heads, (T, heads)) of that answer. A run of frames that fire is one claim: a "not" to its first
    frame denies it. Frames behind the first success are never reached, and change nothing.
    """
    success = reward.success_frames(reward.lower_bound(probabilities, rule.pessimism), labels, rule)
    mean = probabilities.mean(axis=1)
    found = np.zeros(len(labels), np.float32)
    hits = np.flatnonzero(success[1:]) + 1
    first = int(hits[0]) if len(hits) else len(labels)
    before = np.arange(1, min(first, len(labels)))
    have = discount ** (first - before) if len(hits) else np.zeros(len(before))
    found[before] = mean[before] * (1.0 - have)
    if len(hits):
        found[first] = (1.0 - mean[first]) * (1.0 - _after_claim(hits, discount))
    return np.where(labels == 0, found, np.float32(0.0))


def _after_claim(hits: I64, discount: float) -> float:
    """What remains of the return when the first run of hits is denied: the next run's, discounted; else nothing."""
    later = hits[1:][np.diff(hits) > 1]
    return float(discount ** (later[0] - hits[0])) if len(later) else 0.0


def rank(glances: Glances, taken: Iterable[tuple[int, int]], settings: AskingSettings, *, drift: bool) -> list[int]:
    """Places in `glances` that are worth asking about, the best first, at most `per_episode`.

    `taken` are the (episode, seq) that were asked about or answered before; neither they nor their neighbours come
    again, nor two neighbours at once. Frames of which somebody spoke are never asked about.
    """
    least = settings.least_score_in_drift if drift else settings.least_score
    scores = glances.scores(settings)
    near: dict[int, list[int]] = {}
    for episode, seq in taken:
        near.setdefault(episode, []).append(seq)
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if len(chosen) == settings.per_episode or scores[i] < least:
            break
        episode, seq = int(glances.episode[i]), int(glances.seq[i])
        known = near.setdefault(episode, [])
        if not glances.silent[i] or any(abs(seq - other) < settings.spacing_steps for other in known):
            continue
        known.append(seq)
        chosen.append(int(i))
    return chosen
