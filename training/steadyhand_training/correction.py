"""The ever-correcting reward classifier: first fit, candidates grown from labels, promotion and relabelling."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from steadyhand_models import reward
from steadyhand_models.artifact import Artifact, Manifest, digest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel, Label, LabelKind
from steadyhand_models.nets import classifier, export
from steadyhand_models.task import Task
from steadyhand_training import fitting, gate
from steadyhand_training.evidence import Evidence
from steadyhand_training.fitting import Fit, FitSettings, Pool, Scores
from steadyhand_training.gate import GateSettings, Judged, Quality, Trial
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay

Count = Annotated[int, Field(ge=1, le=100_000)]

# Largest difference between runtimes that a probability may show.
TOLERANCE = 1e-4
GOLDEN_FRAMES = 8


class CorrectionError(RuntimeError):
    """The classifier cannot be fitted or restored; the message says what is missing."""


@dataclass(frozen=True)
class CorrectionSettings:
    """How the classifier is grown and corrected."""

    correct: bool = True  # false keeps the first classifier, and takes rewards from it alone
    heads: Annotated[int, Field(ge=1, le=16)] = classifier.DEFAULT_HEADS
    pessimism: Annotated[float, Field(ge=0, le=5)] = 1.0
    first_batches: Count = 200
    candidate_batches: Count = 50
    attempts: Annotated[int, Field(ge=1, le=10)] = 3  # a refused candidate is trained on, this often in all
    held_out_every: Annotated[int, Field(ge=2, le=100)] = 4
    recent_episodes: Count = 20
    least_steps: Annotated[int, Field(ge=0, le=100_000)] = 40  # recorded steps from one candidate to the next
    quiet_labels: Count = 8  # labels that agree with the classifier start a candidate only in such numbers
    fit: FitSettings = field(default_factory=FitSettings)
    gate: GateSettings = field(default_factory=GateSettings)


@dataclass(frozen=True)
class Promotion:
    """A classifier that took over, its held-out quality, and how many of the stored rewards it changed."""

    version: int
    previous: int
    threshold: float
    flipped: int
    actions: int
    quality: Quality

    @property
    def flip_rate(self) -> float:
        return self.flipped / self.actions if self.actions else 0.0


@dataclass(frozen=True)
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
        self.evidence = Evidence(replay, ledger, settings.held_out_every)
        self.version = 0
        self.promotions = 0
        self.rejections = 0
        self.last_rejection = ""
        self.last_promotion: Promotion | None = None
        self._contract, self._task, self._replay, self._ledger = contract, task, replay, ledger
        self._clock = clock
        self._exporter = export.Exporter()
        self._seed = seed
        self._rng = np.random.default_rng([seed, 1])
        self._champion: _Standing | None = None
        self._taught_accuracy = 0.0
        self._waiting: list[int] = []
        self._quiet = 0
        self._begun_at: int | None = None
        self._course: Generator[None, None, Promotion | None] | None = None

    # -- what is in force ------------------------------------------------------------------------------------------

    @property
    def rule(self) -> reward.Rule:
        """How the champion's probabilities become success."""
        return self._champion.rule if self._champion else self._rule_of(0.5)

    @property
    def threshold(self) -> float:
        return self.rule.threshold

    @property
    def busy(self) -> bool:
        """Whether a candidate is being grown."""
        return self._course is not None

    def outcomes(self, episode: int) -> reward.Outcome:
        """Reward, terminal and usable of an episode's actions, under the champion and the labels as they stand."""
        labels = self._ledger.frame_labels(episode, self._replay)
        lower = None
        if self._champion is not None:
            lower = reward.lower_bound(self._champion.scores.of(self._replay.rows(episode)), self.rule.pessimism)
            if not self.settings.correct:
                labels = np.zeros_like(labels)
        return reward.outcome(reward.success_frames(lower, labels, self.rule), self._replay.ended(episode))

    def settle(self, episodes: Sequence[int] | None = None) -> tuple[int, int]:
        """Write the outcomes of these episodes (of all ended ones) into the replay: (rewards changed, actions)."""
        flipped = actions = 0
        for episode in self.evidence.ended() if episodes is None else episodes:
            acted = self._replay.rows(episode)[:-1]
            outcome = self.outcomes(episode)
            flipped += int((self._replay.reward[acted] != outcome.reward).sum())
            actions += len(acted)
            self._replay.set_outcome(episode, outcome)
        return flipped, actions

    @property
    def metrics(self) -> dict[str, float]:
        """What is known of the champion, and how candidates fared."""
        known: dict[str, float] = {
            "version": self.version,
            "threshold": self.threshold,
            "promotions": self.promotions,
            "rejections": self.rejections,
            "labels": len(self._ledger),
            "flags": len(self._ledger.flags()),
            "review": len(self.evidence.review),
        }
        if self._champion is not None and self.last_promotion is not None:
            quality = self.last_promotion.quality
            known |= {
                "temperature": float(self._champion.scores.net.temperature),
                "taught_balanced_accuracy": self._taught_accuracy,
                "held_out_balanced_accuracy": quality.balanced_accuracy,
                "held_out_refuted_episodes": quality.refuted,
                "held_out_false_episodes": quality.false,
                "held_out_false_bound": quality.false_bound,
                "held_out_recall": quality.recall,
                "flip_rate": self.last_promotion.flip_rate,
            }
        return {name: float(value) for name, value in known.items()}

    def artifact(self, version: int) -> Artifact:
        """The champion, exported and checked. Raises ExportError when the graph does not repeat the network."""
        champion = self._in_force()
        rows = np.unique(np.linspace(0, self._replay.size - 1, GOLDEN_FRAMES).astype(np.int64))
        model, golden = self._exporter.classifier(champion.scores.net, self._contract, self._replay.frames[rows])
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

    # -- growing ---------------------------------------------------------------------------------------------------

    def first_fit(self, progress: Callable[[float], None] = lambda share: None) -> Promotion:
        """Fit the first classifier from every ended, labelled episode and put it in force; progress in 0..1.

        Raises CorrectionError when either class has no frames to learn from, or none to be judged by.
        """
        self.evidence.anchor()
        self._waiting = [e for e in self._waiting if e not in self.evidence.anchors]
        taught = self.evidence.pool(self.evidence.taught())
        judged = self.evidence.pool(self.evidence.held_out())
        if not len(taught.positive) or not len(taught.negative):
            raise CorrectionError("no frames of success, or none without, to learn from; demonstrate and press success")
        if not len(judged.positive) or not len(judged.negative):
            raise CorrectionError("no episode is left to judge the classifier by; give at least two demonstrations")
        fit = Fit(classifier.build(self._contract.frames_shape, self.settings.heads, self._seed), self.settings.fit)
        for i in range(self.settings.first_batches):
            self._step(fit, [taught])
            progress((i + 1) / self.settings.first_batches)
        growth = self._put_in_force(self._calibrated(fit))
        while True:
            try:
                next(growth)
            except StopIteration as done:
                promotion: Promotion = done.value
                return promotion

    def notice(self, label: Label) -> None:
        """A label was added to the ledger: its episode's outcome follows at once, the classifier during `work`."""
        episode = self._wait_for(label)
        if episode is not None and self._replay.ended(episode) is not None:
            self.settle([episode])

    def _wait_for(self, label: Label) -> int | None:
        """Remember the episode that a label is about, for the next candidate."""
        named = self._ledger.target(label) if label.kind is LabelKind.UNDO else label
        if named is None:
            return None
        if named.episode not in self._waiting:
            self._waiting.append(named.episode)
        return named.episode

    def work(self, budget_s: float) -> Promotion | None:
        """Go on with correcting for about budget_s; a promotion if there was one. An infinite budget ends a course."""
        deadline_s = self._clock() + budget_s
        if self._champion is None or not self.settings.correct:
            return None
        if self._course is None and self._is_due():
            self._begun_at = self._replay.size
            self._course = self._correct()
        while self._course is not None:
            try:
                next(self._course)
            except StopIteration as done:
                self._course = None
                promotion: Promotion | None = done.value
                return promotion
            if self._clock() >= deadline_s:
                break
        return None

    def _is_due(self) -> bool:
        """Look at the episodes that were spoken of since, and say whether they ask for a candidate."""
        if self._begun_at is not None and self._replay.size - self._begun_at < self.settings.least_steps:
            return False
        ready = [e for e in self._waiting if self._replay.ended(e) is not None]
        self._waiting = [e for e in self._waiting if e not in ready]
        contradicted = [e for e in ready if self._admit(e)]
        self._quiet += len(ready)
        if not contradicted and self._quiet < self.settings.quiet_labels:
            return False
        self._quiet = 0
        return True

    def _admit(self, episode: int) -> bool:
        """Sort an episode that was spoken of; whether the champion contradicts what was said."""
        if not self._ledger.frame_labels(episode, self._replay).any():
            self.evidence.forget(episode)
            return False
        self.evidence.admit(episode)
        wrong = not gate.right(self._judged(self._in_force(), episode), self.rule)
        if wrong or self.evidence.is_flagged(episode):
            self.evidence.flag(episode)
        return wrong

    def _correct(self) -> Generator[None, None, Promotion | None]:
        """One candidate from warm start to promotion or rejection, in slices."""
        objection = ""
        fit = Fit(self._in_force().scores.net, self.settings.fit)
        pools = self.evidence.pools(self.settings.recent_episodes)
        fresh, past = self.evidence.taught_flags(fresh=True), self.evidence.taught_flags(fresh=False)
        for _ in range(self.settings.attempts):
            for _ in range(self.settings.candidate_batches):
                self._step(fit, pools)
                yield
            candidate = self._calibrated(fit)
            yield
            objection = gate.objection(self._trial(candidate, fresh, past), self.settings.gate)
            if not objection:
                return (yield from self._put_in_force(candidate))
            yield
        self.rejections += 1
        self.last_rejection = objection
        self.evidence.set_aside([e for e in fresh if not self._right(candidate, [e])])
        return None

    def _trial(self, candidate: _Standing, fresh: Sequence[int], past: Sequence[int]) -> Trial:
        champion = self._in_force()
        return Trial(
            candidate=self._quality(candidate, self.evidence.held_out()),
            champion=self._quality(champion, self.evidence.held_out()),
            fresh=len(fresh),
            fresh_fixed=self._right(candidate, fresh),
            past=len(past),
            past_kept_candidate=self._right(candidate, past),
            past_kept_champion=self._right(champion, past),
        )

    def _put_in_force(self, standing: _Standing) -> Generator[None, None, Promotion]:
        """Score every stored frame; then, in one go, promote and relabel."""
        while len(missing := standing.scores.missing()):
            standing.scores.of(missing[: fitting.SCORE_BATCH])
            yield
        previous, self._champion = self.version, standing
        self.version += 1
        self.promotions += previous > 0
        self.evidence.fresh = []
        self._taught_accuracy = self._quality(standing, self.evidence.taught()).balanced_accuracy
        quality = self._quality(standing, self.evidence.held_out())
        flipped, actions = self.settle()
        self.last_promotion = Promotion(self.version, previous, self.threshold, flipped, actions, quality)
        return self.last_promotion

    def _step(self, fit: Fit, pools: Sequence[Pool]) -> None:
        rows, targets = fitting.draw(pools, self.settings.fit.batch, self._rng)
        frames = fitting.augment(self._replay.frames[rows], self.settings.fit, self._rng)
        fit.step(frames, targets, self.evidence.heads(rows, self.settings.heads))

    def _calibrated(self, fit: Fit) -> _Standing:
        """A copy of a network as it is now, with temperature and threshold from the held-out episodes."""
        net = fit.snapshot()
        held_out = self.evidence.held_out()
        rows, labels = self.evidence.rows(held_out)
        known = labels != 0
        logits = fitting.log_odds(net, self._replay.frames[rows[known]])
        net.temperature.fill_(fitting.temperature(logits, labels[known] > 0))
        scores = Scores(net, self._replay)
        judged = [self._judged(_Standing(scores, self._rule_of(0.5)), e) for e in held_out]
        return _Standing(scores, gate.choose_rule(judged, self._rule_of(0.5), self.settings.gate))

    # -- judging ---------------------------------------------------------------------------------------------------

    def _rule_of(self, threshold: float) -> reward.Rule:
        return reward.Rule(threshold, self._task.debounce_frames, self.settings.pessimism)

    def _judged(self, standing: _Standing, episode: int) -> Judged:
        probabilities = standing.scores.of(self._replay.rows(episode))
        lower = reward.lower_bound(probabilities, standing.rule.pessimism)
        return Judged(lower, self._ledger.frame_labels(episode, self._replay))

    def _quality(self, standing: _Standing, episodes: Sequence[int]) -> Quality:
        return gate.judge([self._judged(standing, e) for e in episodes], standing.rule)

    def _right(self, standing: _Standing, episodes: Sequence[int]) -> int:
        return sum(gate.right(self._judged(standing, e), standing.rule) for e in episodes)

    def _in_force(self) -> _Standing:
        if self._champion is None:
            raise CorrectionError("there is no classifier yet; the first fit needs demonstrations")
        return self._champion

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write champion and decisions; a candidate in growth is begun anew after `load`."""
        promotion = dataclasses.asdict(self.last_promotion) if self.last_promotion else None
        state = {
            "version": self.version,
            "threshold": self.threshold,
            "promotions": self.promotions,
            "rejections": self.rejections,
            "last_rejection": self.last_rejection,
            "promotion": promotion,
            "taught_accuracy": self._taught_accuracy,
            "waiting": self._waiting + [e for e in self.evidence.fresh if self.busy and e not in self._waiting],
            "heard": len(self._ledger),
            "quiet": self._quiet,
            "begun_at": self._begun_at,
            "evidence": self.evidence.state(),
            "rng": self._rng.bit_generator.state,
        }
        net = self._champion.scores.net.state_dict() if self._champion else {}
        torch.save({"state": json.dumps(state), "net": net}, path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; labels that the ledger has beyond it are noticed. Settles every episode.

        Replay and ledger must be filled already. Raises CorrectionError.
        """
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
            state = json.loads(data["state"])
            self._restore(state, data["net"])
        except (OSError, RuntimeError, UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
            raise CorrectionError(f"{path}: no usable classifier checkpoint ({error}); remove it to fit anew") from None

    def _restore(self, state: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        self._course = None
        self.version, self.promotions, self.rejections = state["version"], state["promotions"], state["rejections"]
        self.last_rejection, self._taught_accuracy = state["last_rejection"], state["taught_accuracy"]
        self._waiting, self._quiet, self._begun_at = state["waiting"], state["quiet"], state["begun_at"]
        self.evidence.restore(state["evidence"])
        self._rng.bit_generator.state = state["rng"]
        for label in self._ledger.after(state["heard"]):
            self._wait_for(label)
        if state["promotion"] is not None:
            self.last_promotion = Promotion(
                **state["promotion"] | {"quality": Quality(**state["promotion"]["quality"])}
            )
        if self.version > 0:
            net = classifier.build(self._contract.frames_shape, self.settings.heads, self._seed)
            net.load_state_dict(weights)
            self._champion = _Standing(Scores(net, self._replay), self._rule_of(state["threshold"]))
        self.settle()
