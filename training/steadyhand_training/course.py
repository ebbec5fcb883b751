"""Growing networks from evidence: first classifiers, candidates and SiLRI steps, in slices; pure of clocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from steadyhand_models.contract import Contract
from steadyhand_models.nets import classifier
from steadyhand_models.nets.classifier import Classifier
from steadyhand_training import fitting, gate
from steadyhand_training.champion import Judge, Standing
from steadyhand_training.correction_settings import CorrectionSettings
from steadyhand_training.evidence import Evidence
from steadyhand_training.fitting import Fit, Pool
from steadyhand_training.gate import Trial
from steadyhand_training.replay import Replay
from steadyhand_training.scenes import Scenes, hide, scenes
from steadyhand_training.strata import by_light

# SiLRI, arXiv 2512.24288: ten batches of 128 frames of each class per flag, and a threshold that nothing moves.
SILRI_BATCHES = 10
SILRI_BATCH = 256
SILRI_THRESHOLD = 0.9
# By how much one promotion may lower the threshold: a few held-out episodes that come out right are no licence.
MOST_LOWERED = 0.1


@dataclass(frozen=True)
class Grown:
    """What came of a course: a network with its trial, and why it may not be put in force (empty when it may)."""

    standing: Standing
    trial: Trial | None
    objection: str


class Grower:
    """Fits networks. Everything drawn comes from `rng`, in an order that time has no part in."""

    def __init__(
        self, contract: Contract, replay: Replay, evidence: Evidence, judge: Judge, settings: CorrectionSettings,
        seed: int, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self._contract, self._replay, self._evidence, self._judge = contract, replay, evidence, judge
        self._settings, self._seed, self._rng = settings, seed, rng

    def network(self, heads: int) -> Classifier:
        """A fresh network."""
        return classifier.build(self._contract.frames_shape, heads, self._seed, self._settings.fit.light_invariant)

    def fresh(self, heads: int, progress: Callable[[float], None] = lambda share: None) -> Generator[None, None, Fit]:
        """A fit of a fresh network to all that is taught."""
        fit, taught = Fit(self.network(heads), self._settings.fit), [self._evidence.pool(self._evidence.taught())]
        known = self._scenes()
        for i, rate in enumerate(fitting.rates(self._settings.first_batches)):
            self._step(fit, taught, self._settings.fit.batch, rate, known)
            progress((i + 1) / self._settings.first_batches)
            yield
        return fit

    def first(self) -> Generator[None, None, Grown]:
        """A first classifier from labels alone, beside rewards that do without one."""
        fit = yield from self.fresh(self._settings.heads)
        standing = self._judge.calibrated(fit.snapshot())
        yield
        quality = self._judge.quality(standing, self._evidence.held_out())
        return Grown(standing, None, gate.unready(quality, self._judge.settings))

    def candidate(self, champion: Standing, lift: float) -> Generator[None, None, Grown]:
        """A candidate from warm start to the gate; one that is refused is trained on a few times.

        `lift` is what is added to its threshold.
        """
        fit = Fit(champion.net, self._settings.fit)
        pools, known = self._evidence.pools(self._settings.recent_episodes), self._scenes()
        # One flag may be a wrong key; the more there are, the less of the champion stands against them.
        share = self._settings.blend ** (1.0 / max(1, len(self._evidence.taught_flags(fresh=True))))
        for _ in range(self._settings.attempts):
            for rate in fitting.rates(self._settings.candidate_batches):
                self._step(fit, pools, self._settings.fit.batch, rate, known)
                yield
            least = max(self._least_threshold(), champion.rule.threshold - MOST_LOWERED)
            net = fitting.blended(champion.net, fit.net, share)
            standing = self._judge.calibrated(net, least, lift)
            yield
            trial = self._judge.trial(standing, champion)
            grown = Grown(standing, trial, gate.objection(trial, self._judge.settings))
            if not grown.objection:
                break
            yield
        return grown

    def silri(self, champion: Standing, flags: int) -> Generator[None, None, Standing]:
        """The champion after ten balanced batches for each flag."""
        fit, taught = Fit(champion.net, self._settings.fit), [self._evidence.pool(self._evidence.taught())]
        for _ in range(SILRI_BATCHES * flags):
            self._step(fit, taught, SILRI_BATCH)
            yield
        return self._judge.standing(fit.snapshot(), SILRI_THRESHOLD)

    def _least_threshold(self) -> float:
        """A floor of the threshold while the newest light is one that little is known of."""
        light, strata = self._evidence.strata.newest_light, self._evidence.strata
        if light < 2:
            return 0.0
        known = [e for e in self._evidence.held_out() if strata.light(e) == light]
        refuted = [e for e in known if len(self._evidence.pool([e]).negative)]
        young = len(refuted) < self._settings.young_light_episodes
        return self._settings.young_light_threshold if young else 0.0

    def _scenes(self) -> Scenes:
        taught = by_light(self._evidence.taught(), self._evidence.strata.light)
        rows = {light: [self._replay.rows(e) for e in episodes] for light, episodes in taught.items()}
        return scenes(rows, lambda some: self._replay.frames[some])

    def _step(
        self, fit: Fit, pools: Sequence[Pool], batch: int, rate: float = 1.0, known: Scenes | None = None
    ) -> None:
        """One update. Where scenes are `known`, one camera of some successes shows nothing, and any light may fall."""
        rows, targets = fitting.draw(pools, batch, self._rng)
        frames, strata, gains = self._replay.frames[rows], self._evidence.strata, None
        if known is not None:
            lights = np.array([strata.light(int(e)) for e in self._replay.episode[rows]])
            hide(frames, rows, targets, lights, known, self._settings.fit.hidden, self._rng)
            gains = strata.relit(rows, self._rng)
        frames = fitting.augment(frames, self._settings.fit, self._rng, gains)
        fit.step(frames, targets, self._evidence.heads(rows, len(fit.net.heads)), rate)
