"""The ever-correcting reward classifier: first fit, candidates grown from labels, promotion and relabelling."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from steadyhand_models import reward
from steadyhand_models.artifact import Artifact, Manifest, digest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel, Label, LabelKind
from steadyhand_models.nets import classifier, export
from steadyhand_models.task import Task
from steadyhand_training import fitting, gate
from steadyhand_training.fitting import Fit, FitSettings, Pool, Scores
from steadyhand_training.gate import GateSettings, Judged, Trial
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay

I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
Count = Annotated[int, Field(ge=1, le=100_000)]

# Largest difference between runtimes that a probability may show.
TOLERANCE = 1e-4
FLAGS = (LabelKind.FALSE_POSITIVE, LabelKind.FALSE_NEGATIVE)


class CorrectionError(RuntimeError):
    """The classifier cannot be fitted from what was collected; the message says what is missing."""


@dataclass(frozen=True)
class CorrectionSettings:
    """How the classifier is grown and corrected."""

    correct: bool = True  # false keeps the first classifier, and takes rewards from it alone
    heads: Annotated[int, Field(ge=1, le=16)] = classifier.DEFAULT_HEADS
    pessimism: Annotated[float, Field(ge=0, le=5)] = 1.0
    first_batches: Count = 200
    candidate_batches: Count = 60
    attempts: Annotated[int, Field(ge=1, le=10)] = 3  # a candidate that the gate refuses is trained on, this often
    held_out_every: Annotated[int, Field(ge=2, le=100)] = 4
    recent_episodes: Count = 20
    quiet_labels: Count = 5  # labels that agree with the classifier start a candidate only in such numbers
    fit: FitSettings = field(default_factory=FitSettings)
    gate: GateSettings = field(default_factory=GateSettings)


@dataclass(frozen=True)
class Promotion:
    """A classifier that took over, and what that changed. `flip_rate` is the share of stored rewards that changed."""

    version: int
    previous: int
    threshold: float
    flipped: int
    actions: int
    quality: gate.Quality

    @property
    def flip_rate(self) -> float:
        return self.flipped / self.actions if self.actions else 0.0


@dataclass
class _Standing:
    """One calibrated network with its scores and its rule."""

    scores: Scores
    rule: reward.Rule


class Correction:
    """Owns the champion and at most one candidate; everything else it asks of the ledger and the replay.

    Nothing here waits: `work` goes on with a candidate for as long as it is told, in the trainer's own thread.
    """

    def __init__(
        self,
        contract: Contract,
        task: Task,
        replay: Replay,
        ledger: Ledger,
        settings: CorrectionSettings,
        seed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.version = 0
        self.promotions = 0
        self.rejections = 0
        self.last_rejection = ""
        self.last_promotion: Promotion | None = None
        self._contract, self._task, self._replay, self._ledger = contract, task, replay, ledger
        self._clock = clock
        self._seed = seed
        self._rng = np.random.default_rng([seed, 0xC1A55])
        self._champion: _Standing | None = None
        self._train_quality = gate.judge((), self.rule)
        self._held_out: dict[int, bool] = {}
        self._anchors: list[int] = []
        self._flagged: list[int] = []
        self._fresh: list[int] = []
        self._waiting: list[int] = []
        self._quiet = 0
        self._course: Generator[None, None, Promotion | None] | None = None

    # -- what is in force ------------------------------------------------------------------------------------------

    @property
    def rule(self) -> reward.Rule:
        """How the champion's probabilities become success."""
        if self._champion is not None:
            return self._champion.rule
        return reward.Rule(0.5, self._task.debounce_frames, self.settings.pessimism)

    @property
    def threshold(self) -> float:
        return self.rule.threshold

    def outcomes(self, episode: int) -> reward.Outcome:
        """Reward, terminal and usable of an episode's actions, under the champion and the labels as they stand."""
        rows = self._replay.rows(episode)
        labels = self._ledger.frame_labels(episode, self._replay)
        lower = None
        if self._champion is not None:
            lower = reward.lower_bound(self._champion.scores.of(rows), self.rule.pessimism)
            if not self.settings.correct:
                labels = np.zeros_like(labels)
        return reward.outcome(reward.success_frames(lower, labels, self.rule), self._replay.ended(episode))

    def settle(self, episodes: Sequence[int] | None = None) -> tuple[int, int]:
        """Write the outcomes of these episodes (of all ended ones) into the replay: (rewards changed, actions)."""
        flipped = actions = 0
        for episode in self._ended() if episodes is None else episodes:
            acted = self._replay.rows(episode)[:-1]
            outcome = self.outcomes(episode)
            flipped += int((self._replay.reward[acted] != outcome.reward).sum())
            actions += len(acted)
            self._replay.set_outcome(episode, outcome)
        return flipped, actions

    @property
    def metrics(self) -> dict[str, float]:
        """What is known of the champion and of the candidates so far."""
        known = {
            "version": self.version,
            "threshold": self.threshold,
            "promotions": self.promotions,
            "rejections": self.rejections,
            "flagged_episodes": len(self._flagged),
            "labels": len(self._ledger),
        }
        if self.last_promotion is not None:
            quality = self.last_promotion.quality
            known |= {
                "train_balanced_accuracy": self._train_quality.balanced_accuracy,
                "held_out_balanced_accuracy": quality.balanced_accuracy,
                "held_out_false_episodes": quality.false,
                "held_out_refuted_episodes": quality.refuted,
                "held_out_false_bound": quality.false_bound,
                "held_out_recall": quality.recall,
                "flip_rate": self.last_promotion.flip_rate,
            }
        if self._champion is not None:
            known["temperature"] = float(self._champion.scores.net.temperature)
        return {name: float(value) for name, value in known.items()}

    def artifact(self, version: int) -> Artifact:
        """The champion, exported and checked. Raises ExportError when the graph does not repeat the network."""
        champion = self._standing()
        rows = np.unique(np.linspace(0, self._replay.size - 1, 8).astype(np.int64))
        model, golden = export.classifier(champion.scores.net, self._contract, self._replay.frames[rows])
        manifest = Manifest(
            channel=Channel.CLASSIFIER,
            version=version,
            parent=self.last_promotion.previous if self.last_promotion else 0,
            contract_hash=self._contract.hash,
            sha256=digest(model, golden),
            training_step=self._replay.size,
            created_unix_s=time.time(),
            boundary="episode",
            tolerance=TOLERANCE,
            threshold=champion.rule.threshold,
            debounce_frames=champion.rule.debounce_frames,
            pessimism=champion.rule.pessimism,
            metrics=self.metrics,
        )
        return Artifact(manifest, model, golden)

    # -- first fit -------------------------------------------------------------------------------------------------

    def first_fit(self, progress: Callable[[float], None] = lambda share: None) -> Promotion:
        """Fit the first classifier from every ended, labelled episode and put it in force.

        Raises CorrectionError when either class has no frames to learn from or none to be judged by.
        """
        self._anchors = self._labelled()
        for episode in self._anchors:
            self._assign(episode)
        pool = self._pool([e for e in self._anchors if not self._held_out[e]])
        judged = self._pool([e for e in self._anchors if self._held_out[e]])
        for name, rows in (("success", pool.positive), ("no success", pool.negative)):
            if not len(rows):
                raise CorrectionError(f"no frame of {name} to learn from; demonstrate, and press success at its end")
        if not len(judged.positive) or not len(judged.negative):
            raise CorrectionError("no episode is left to judge the classifier by; give at least two demonstrations")
        fit = Fit(classifier.build(self._contract.frames_shape, self.settings.heads, self._seed), self.settings.fit)
        for i in range(self.settings.first_batches):
            self._step(fit, [pool])
            progress((i + 1) / self.settings.first_batches)
        standing = self._calibrated(fit)
        for _ in self._put_in_force(standing):
            pass
        return self._standing_promotion()

    # -- correction ------------------------------------------------------------------------------------------------

    def notice(self, label: Label) -> None:
        """A label has been added to the ledger: its episode's outcome follows at once, the classifier in `work`."""
        episode = label.episode
        if label.kind is LabelKind.UNDO and (named := self._ledger.target(label)) is not None:
            episode = named.episode
        if episode not in self._waiting:
            self._waiting.append(episode)
        if self._replay.ended(episode) is not None:
            self.settle([episode])

    def work(self, budget_s: float) -> Promotion | None:
        """Go on with correcting for about budget_s; a promotion when one happened. An infinite budget ends a course."""
        deadline_s = self._clock() + budget_s
        if self._champion is None or not self.settings.correct:
            return None
        if self._course is None and self._is_due():
            self._course = self._correct()
        while self._course is not None:
            try:
                next(self._course)
            except StopIteration as done:
                self._course = None
                return done.value
            if self._clock() >= deadline_s:
                break
        return None

    @property
    def busy(self) -> bool:
        """Whether a candidate is being grown."""
        return self._course is not None

    def _is_due(self) -> bool:
        """Sort the episodes that were spoken of since, and say whether they ask for a candidate."""
        ready = [e for e in self._waiting if self._replay.ended(e) is not None]
        self._waiting = [e for e in self._waiting if e not in ready]
        asked = False
        for episode in ready:
            self._quiet += 1
            labels = self._ledger.frame_labels(episode, self._replay)
            if not labels.any():
                self._forget(episode)
                continue
            self._assign(episode)
            flagged = any(v.kind in FLAGS for v in self._ledger.labels(episode))
            if flagged or not gate.right(self._judged(self._standing(), episode), self.rule):
                asked = True
                self._forget(episode)
                self._flagged.append(episode)
                self._fresh.append(episode)
        if not asked and self._quiet < self.settings.quiet_labels:
            return False
        self._quiet = 0
        return True

    def _forget(self, episode: int) -> None:
        for known in (self._flagged, self._fresh):
            if episode in known:
                known.remove(episode)

    def _correct(self) -> Generator[None, None, Promotion | None]:
        """One candidate from warm start to promotion or rejection, in slices."""
        champion = self._standing()
        fit = Fit(champion.scores.net, self.settings.fit)
        pools = self._pools()
        for _ in range(self.settings.attempts):
            for _ in range(self.settings.candidate_batches):
                self._step(fit, pools)
                yield
            candidate = self._calibrated(fit)
            yield
            trial = self._trial(candidate, champion)
            objection = gate.objection(trial, self.settings.gate)
            if objection is None:
                yield from self._put_in_force(candidate)
                return self._standing_promotion()
            self.last_rejection = objection
            yield
        self.rejections += 1
        return None

    def _trial(self, candidate: _Standing, champion: _Standing) -> Trial:
        held_out = [e for e in self._labelled() if self._held_out.get(e)]
        taught = [e for e in self._flagged if not self._held_out[e]]
        fresh = [e for e in taught if e in self._fresh]
        past = [e for e in taught if e not in self._fresh]
        return Trial(
            candidate=gate.judge([self._judged(candidate, e) for e in held_out], candidate.rule),
            champion=gate.judge([self._judged(champion, e) for e in held_out], champion.rule),
            fresh=len(fresh),
            fresh_fixed=self._right(candidate, fresh),
            past=len(past),
            past_kept_candidate=self._right(candidate, past),
            past_kept_champion=self._right(champion, past),
        )

    def _right(self, standing: _Standing, episodes: Sequence[int]) -> int:
        return sum(gate.right(self._judged(standing, e), standing.rule) for e in episodes)

    def _put_in_force(self, standing: _Standing) -> Generator[None, None, None]:
        """Score every stored frame, then, in one go, promote and relabel."""
        while len(missing := standing.scores.missing()):
            standing.scores.of(missing[: fitting.SCORE_BATCH])
            yield
        previous, self._champion = self.version, standing
        self.version += 1
        self.promotions += previous > 0
        self._fresh = []
        labelled = self._labelled()
        self._train_quality = self._quality([e for e in labelled if not self._held_out.get(e, True)])
        quality = self._quality([e for e in labelled if self._held_out.get(e)])
        flipped, actions = self.settle()
        self.last_promotion = Promotion(
            self.version, previous, standing.rule.threshold, flipped, actions, quality
        )

    # -- evidence --------------------------------------------------------------------------------------------------

    def _ended(self) -> list[int]:
        return [e for e in self._replay.episodes if self._replay.ended(e) is not None]

    def _labelled(self) -> list[int]:
        """Ended episodes of which at least one frame is labelled."""
        spoken = [e for e in self._ledger.episodes if self._replay.ended(e) is not None]
        return [e for e in spoken if self._ledger.frame_labels(e, self._replay).any()]

    def _assign(self, episode: int) -> None:
        """Decide once and for all whether an episode is held out: every n-th of its kind, whole episodes only."""
        if episode in self._held_out:
            return
        kind = self._kind(episode)
        before = sum(1 for e in self._held_out if self._kind(e) == kind)
        n = self.settings.held_out_every
        # The second demonstration is held out, so that few suffice; of corrections the first ones teach.
        self._held_out[episode] = before % n == (1 if episode in self._anchors else n - 1)

    def _kind(self, episode: int) -> tuple[bool, bool]:
        positive = bool((self._ledger.frame_labels(episode, self._replay) > 0).any())
        return episode in self._anchors, positive

    def _pool(self, episodes: Sequence[int]) -> Pool:
        rows, labels = self._evidence(episodes)
        return Pool(rows[labels > 0], rows[labels < 0])

    def _evidence(self, episodes: Sequence[int]) -> tuple[I64, I8]:
        """All rows of episodes and their labels."""
        rows = [np.zeros(0, np.int64), *(self._replay.rows(e) for e in episodes)]
        labels = [np.zeros(0, np.int8), *(self._ledger.frame_labels(e, self._replay) for e in episodes)]
        return np.concatenate(rows), np.concatenate(labels)

    def _pools(self) -> list[Pool]:
        """Anchor set, corrections and recent frames, held-out episodes left out of each."""
        taught = [e for e in self._labelled() if not self._held_out.get(e, True)]
        anchors = [e for e in taught if e in self._anchors]
        flagged = [e for e in taught if e in self._flagged]
        recent = [e for e in taught if e not in self._anchors][-self.settings.recent_episodes :]
        return [self._pool(anchors), self._pool(flagged), self._pool(recent)]

    def _step(self, fit: Fit, pools: Sequence[Pool]) -> None:
        rows, targets = fitting.draw(pools, self.settings.fit.batch, self._rng)
        frames = fitting.augment(self._replay.frames[rows], self.settings.fit, self._rng)
        fit.step(frames, targets, self._heads(rows))

    def _heads(self, rows: I64) -> npt.NDArray[np.bool_]:
        """Which heads learn from which rows (N, H): each head misses a share of the anchor episodes, so they differ."""
        count = self.settings.heads
        turn = {e: i for i, e in enumerate(self._anchors)}
        missed = np.array([turn.get(int(e), -1) for e in self._replay.episode[rows]])
        heads: npt.NDArray[np.bool_] = (missed[:, None] % count != np.arange(count)) | (missed < 0)[:, None]
        return heads | (count < 2)

    def _calibrated(self, fit: Fit) -> _Standing:
        """Temperature and threshold from held-out episodes, for a network that training may go on with."""
        net = Fit(fit.net, self.settings.fit).net
        held_out = [e for e in self._labelled() if self._held_out.get(e)]
        rows, labels = self._evidence(held_out)
        known = labels != 0
        logits = fitting.log_odds(net, self._replay.frames[rows[known]])
        net.temperature.fill_(fitting.temperature(logits, (labels[known] > 0).astype(np.float32)))
        s = self.settings
        standing = _Standing(Scores(net, self._replay), reward.Rule(0.5, self._task.debounce_frames, s.pessimism))
        judged = [self._judged(standing, e) for e in held_out]
        budget = s.gate.false_success_budget
        threshold = gate.choose_threshold(judged, self._task.debounce_frames, s.pessimism, budget)
        standing.rule = dataclasses.replace(standing.rule, threshold=threshold)
        return standing

    def _judged(self, standing: _Standing, episode: int) -> Judged:
        probabilities = standing.scores.of(self._replay.rows(episode))
        lower = reward.lower_bound(probabilities, standing.rule.pessimism)
        return Judged(lower, self._ledger.frame_labels(episode, self._replay))

    def _quality(self, episodes: Sequence[int]) -> gate.Quality:
        champion = self._standing()
        return gate.judge([self._judged(champion, e) for e in episodes], champion.rule)

    def _standing(self) -> _Standing:
        if self._champion is None:
            raise CorrectionError("there is no classifier yet; the first fit needs demonstrations")
        return self._champion

    def _standing_promotion(self) -> Promotion:
        if self.last_promotion is None:
            raise CorrectionError("no classifier was put in force yet")
        return self.last_promotion
