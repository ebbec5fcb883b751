"""A classifier from recorded runs: folds of whole episodes, each judged by a network that never saw it. No files."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models import reward
from steadyhand_models.nets import classifier
from steadyhand_models.nets.classifier import Classifier
from steadyhand_training import fitting, frame_quality, gate
from steadyhand_training.dataset import Dataset, Recorded
from steadyhand_training.fitting import Fit, FitSettings, Pool
from steadyhand_training.frame_quality import EpisodeQuality, FrameQuality, Scored
from steadyhand_training.gate import GateSettings, Quality
from steadyhand_training.scenes import hide, scenes
from steadyhand_training.strata import by_light

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CrossfitSettings:
    """How a classifier is fitted and judged from recordings."""

    folds: Annotated[int, Field(ge=2, le=20)] = 4  # a quarter is held out, as during a run
    heads: Annotated[int, Field(ge=1, le=16)] = classifier.DEFAULT_HEADS
    pessimism: Annotated[float, Field(ge=0, le=5)] = 1.0  # as during a run
    batches: Annotated[int, Field(ge=1, le=100_000)] = 300  # per fold
    # Weaker than during a run, where lamps are expected to change: here the lights that count are in the recordings.
    fit: FitSettings = field(
        default_factory=lambda: FitSettings(learning_rate=1e-3, brightness=0.1, colour=0.0, shade=0.0)
    )
    gate: GateSettings = field(default_factory=GateSettings)


@dataclass(frozen=True)
class Crossfit:
    """A fitted network, which held out the first fold, and what all folds together say of its kind.

    `quality` is the gate's view of every episode, each judged by the network that did not see it: `judged`, `scored`.
    """

    net: Classifier
    rule: reward.Rule
    quality: Quality
    frames: FrameQuality
    episodes: EpisodeQuality
    taught: tuple[Recorded, ...]
    held_out: tuple[Recorded, ...]
    judged: tuple[Recorded, ...]
    scored: tuple[Scored, ...]

    @property
    def contradicted(self) -> list[Recorded]:
        """Episodes whose words a network that never heard them contradicts: its mistakes, or wrong words."""
        views = ((e, frame_quality.view(s, self.rule.pessimism)) for e, s in zip(self.judged, self.scored))
        return [e for e, view in views if not gate.right(view, self.rule)]


def folds(episodes: Sequence[Recorded], count: int) -> list[list[Recorded]]:
    """Whole episodes dealt out in turn, those with and without success, and those of each light, by themselves."""
    dealt: list[list[Recorded]] = [[] for _ in range(count)]
    turns: dict[tuple[bool, int], int] = {}
    for episode in episodes:
        kind = bool((episode.labels > 0).any()), episode.light
        turns[kind] = turn = turns.get(kind, -1) + 1
        dealt[turn % count].append(episode)
    return dealt


def crossfit(
    dataset: Dataset, settings: CrossfitSettings, seed: int, progress: Callable[[float], None] = lambda share: None
) -> Crossfit:
    """Fit one network per fold from the other folds, and calibrate and judge by what they say of their own.

    Every fold needs an episode of each kind to learn from; `dataset` is checked for that by the caller.
    """
    dealt = folds(dataset.spoken_of, settings.folds)
    nets, judged, logits = [], list[Recorded](), list[F32]()
    for i, fold in enumerate(dealt):
        others = [e for other in dealt if other is not fold for e in other]
        nets.append(_fit(dataset, others, settings, seed + i, lambda share, i=i: progress((i + share) / len(dealt))))  # type: ignore[misc]
        judged += fold
        logits += [fitting.log_odds(nets[i], dataset.frames(e.rows)) for e in fold]
    temperature = _temperature(judged, logits)
    for net in nets:
        net.temperature.fill_(temperature)
    scored = [Scored(_probabilities(each, temperature), e.labels, e.cut) for e, each in zip(judged, logits)]
    views = [frame_quality.view(s, settings.pessimism) for s in scored]
    like = reward.Rule(0.5, dataset.task.debounce_frames, settings.pessimism)
    rule = gate.choose_rule(views, like, settings.gate)
    return Crossfit(
        net=nets[0],
        rule=rule,
        quality=gate.judge(views, rule),
        frames=frame_quality.frames(scored, rule, seed),
        episodes=frame_quality.episodes(scored, rule),
        taught=tuple(e for fold in dealt[1:] for e in fold),
        held_out=tuple(dealt[0]),
        judged=tuple(judged),
        scored=tuple(scored),
    )


def _fit(
    dataset: Dataset,
    taught: Sequence[Recorded],
    settings: CrossfitSettings,
    seed: int,
    progress: Callable[[float], None],
) -> Classifier:
    """A network from these episodes; each head misses its share of them, so that the heads differ."""
    rng = np.random.default_rng([seed, 2])
    shape, invariant = dataset.task.contract().frames_shape, settings.fit.light_invariant
    fit = Fit(classifier.build(shape, settings.heads, seed, invariant), settings.fit)
    turns = {int(row): turn for turn, episode in enumerate(taught) for row in episode.rows}
    lit = by_light(taught, lambda e: e.light)
    pools = _pools(lit)
    known = scenes({light: [e.rows for e in episodes] for light, episodes in lit.items()}, dataset.frames)
    for i in range(settings.batches):
        rows, targets = fitting.draw(pools, settings.fit.batch, rng)
        frames = dataset.frames(rows)
        lights = np.array([taught[turns[int(row)]].light for row in rows])
        hide(frames, rows, targets, lights, known, settings.fit.hidden, rng)
        frames = fitting.augment(frames, settings.fit, rng)
        heads = _heads(np.array([turns[int(row)] for row in rows]), settings.heads)
        fit.step(frames, targets, heads)
        progress((i + 1) / settings.batches)
    return fit.snapshot()


def _pools(lit: Mapping[int, Sequence[Recorded]]) -> list[Pool]:
    """The labelled rows of each light by themselves, so that a rare one gets its share."""
    return [
        Pool(
            np.concatenate([e.rows[e.labels > 0] for e in episodes]),
            np.concatenate([e.rows[e.labels < 0] for e in episodes]),
        )
        for episodes in lit.values()
    ]


def _heads(turns: I64, count: int) -> Bool:
    """Which heads (N, count) learn from rows whose episodes have these turns (N,)."""
    heads: Bool = turns[:, None] % count != np.arange(count)
    return heads | (count < 2)


def _temperature(episodes: Sequence[Recorded], logits: Sequence[F32]) -> float:
    labels = np.concatenate([e.labels for e in episodes])
    return fitting.temperature(np.concatenate(logits)[labels != 0], labels[labels != 0] > 0)


def _probabilities(logits: F32, temperature: float) -> F32:
    scaled = np.clip(logits / np.float32(temperature), -60.0, 60.0)
    return (1.0 / (1.0 + np.exp(-scaled))).astype(np.float32)


def objections(found: Crossfit, settings: GateSettings) -> tuple[str, ...]:
    """Why a classifier is not ready to judge on its own, in sentences; empty when it is."""
    quality, budget, target = found.quality, settings.false_success_budget, settings.ready_balanced_accuracy
    said = []
    if quality.balanced_accuracy < target:
        said.append(f"balanced accuracy is {quality.balanced_accuracy:.1%}, the target {target:.0%}")
    if quality.false_bound > budget:
        more = episodes_for(budget) - quality.refuted
        advice = f"; {more} more without one would show it" if quality.false == 0 and more > 0 else ""
        said.append(
            f"false successes in {quality.false} of {quality.refuted} episodes: the rate may be as high as "
            f"{quality.false_bound:.1%}, the budget is {budget:.0%}{advice}"
        )
    return tuple(said)


def episodes_for(budget: float) -> int:
    """How many episodes without a false success it takes until the upper bound of their rate is within a budget."""
    # Wilson's bound for no hits is z^2 / (n + z^2).
    return math.ceil(gate.Z_ONE_SIDED_95**2 * (1 - budget) / budget) if budget > 0 else sys.maxsize
