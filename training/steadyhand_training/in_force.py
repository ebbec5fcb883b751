"""The classifier in force: what stored episodes are worth under it, its artifact, figures, and the one before it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from steadyhand_models import reward
from steadyhand_models.artifact import Artifact, Manifest, digest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_models.nets import export
from steadyhand_models.nets.classifier import Classifier
from steadyhand_training.champion import Judge, Standing
from steadyhand_training.correction_state import CorrectionError, Weights
from steadyhand_training.evidence import Evidence
from steadyhand_training.gate import Quality
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay
from steadyhand_training.strata import by_light
from steadyhand_training.vetoes import Vetoes

# Largest difference between runtimes that a probability may show.
TOLERANCE = 1e-4
GOLDEN_FRAMES = 8


class InForce:
    """The champion, from which rewards follow, and the version that it replaced."""

    def __init__(
        self, contract: Contract, replay: Replay, ledger: Ledger, evidence: Evidence, judge: Judge, vetoes: Vetoes,
        paid: reward.RewardSettings, discount: float,
    ) -> None:  # fmt: skip
        self.champion: Standing | None = None
        self.before: Standing | None = None  # the one to go back to; None where there is none, or it was just taken up
        self.version = 0  # counts the classifiers that were in force
        self.since = 0  # the version with which the champion's weights came into force: drift lifts their threshold
        self.quality: Quality | None = None  # on held-out episodes, when it came into force
        self.figures: dict[str, float] = {}  # the same and more, by name
        self._contract, self._replay, self._ledger, self._evidence = contract, replay, ledger, evidence
        self._judge, self._vetoes, self._paid, self._discount = judge, vetoes, paid, discount
        self._exporter = export.Exporter()

    @property
    def standing(self) -> Standing:
        """The champion. Raises CorrectionError before the first."""
        if self.champion is None:
            raise CorrectionError("there is no classifier yet; the first fit needs demonstrations")
        return self.champion

    @property
    def previous(self) -> int:
        """The version whose weights the champion's replaced."""
        return self.since - 1

    @property
    def rule(self) -> reward.Rule:
        """How the champion's probabilities become success."""
        return self.champion.rule if self.champion else self._judge.rule(0.5)

    def take(self, standing: Standing, again: bool) -> None:
        """Put a classifier in force under a new version; one that is taken up `again` leaves no way further back."""
        self.before, self.champion = (None if again else self.champion), standing
        self._number(standing)
        self.since = self.version

    def lift(self, standing: Standing) -> None:
        """Put the champion in force with another threshold, under a new version; the way back stays what it was."""
        self.champion = standing
        self._number(standing)

    def stay(self) -> None:
        """Take the champion's threshold as the one that was found: it is not to go back."""
        self.champion = dataclasses.replace(self.standing, found=self.standing.rule.threshold)

    def _number(self, standing: Standing) -> None:
        self.version += 1
        self.quality = self._judge.quality(standing, self._evidence.held_out())
        self.figures = self._figures(standing, self.quality)

    def outcomes(self, episode: int) -> reward.Outcome:
        """Reward, terminal and usable of an episode's actions, under the champion and the labels as they stand."""
        labels = self._ledger.frame_labels(episode, self._replay)
        lower = self._judge.lower(self.champion, episode) if self.champion is not None else None
        denied = self._ledger.denied(episode, self._replay)
        end = self._replay.ended(episode)
        return reward.worth(lower, labels, self.rule, end, self._paid, self._discount, denied)

    def settle(self, episodes: Sequence[int]) -> tuple[int, int]:
        """Write the outcomes of these episodes into the replay: (rewards changed, actions)."""
        flipped = actions = 0
        for episode in episodes:
            acted = self._replay.rows(episode)[:-1]
            outcome = self.outcomes(episode)
            changed = reward.flips(self._replay.reward[acted], self._replay.terminal[acted], outcome, self._paid)
            learned = self._replay.has_action[acted]  # imported frames have none
            flipped += int((changed & learned).sum())
            actions += int(learned.sum())
            self._replay.set_outcome(episode, outcome)
            self._vetoes.notice(episode)
        return flipped, actions

    @property
    def metrics(self) -> dict[str, float]:
        """What is known of the champion; nothing before the first."""
        if self.champion is None:
            return {}
        vetoed, ended = self._vetoes.counts(self.version)
        temperature = float(self.champion.net.temperature)
        return self.figures | {"temperature": temperature, "ended_episodes": ended, "vetoed_episodes": vetoed}

    def artifact(self, version: int, metrics: dict[str, float]) -> Artifact:
        """The champion, exported and checked. Raises ExportError when the graph does not repeat the network."""
        champion = self.standing
        rows = np.unique(np.linspace(0, self._replay.size - 1, GOLDEN_FRAMES).astype(np.int64))
        model, golden = self._exporter.classifier(champion.net, self._contract, self._replay.frames[rows])
        published = self._vetoes.published
        published[self.version] = version
        manifest = Manifest(
            channel=Channel.CLASSIFIER,
            version=version,
            parent=published.get(self.version - 1, self.version - 1),
            contract_hash=self._contract.hash,
            sha256=digest(model, golden),
            training_step=self._replay.size,
            created_unix_s=time.time(),
            boundary="episode",
            tolerance=TOLERANCE,
            threshold=champion.rule.threshold,
            debounce_frames=champion.rule.debounce_frames,
            pessimism=champion.rule.pessimism,
            metrics=metrics,
        )
        return Artifact(manifest, model, golden)

    def _figures(self, standing: Standing, quality: Quality) -> dict[str, float]:
        held_out = self._evidence.held_out()
        known: dict[str, float] = {
            "taught_balanced_accuracy": self._judge.quality(standing, self._evidence.taught()).balanced_accuracy,
            "held_out_balanced_accuracy": quality.balanced_accuracy,
            "held_out_refuted_episodes": quality.refuted,
            "held_out_false_episodes": quality.false,
            "held_out_false_bound": quality.false_bound,
            "held_out_recall": quality.recall,
        }
        for light, episodes in by_light(held_out, self._evidence.strata.light).items():
            by_itself = self._judge.quality(standing, episodes)
            known[f"held_out_light_{light}_balanced_accuracy"] = by_itself.balanced_accuracy
            known[f"held_out_light_{light}_episodes"] = len(episodes)
        return known

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All but the weights, as plain data."""
        return {
            "version": self.version,
            "since": self.since,
            "quality": dataclasses.asdict(self.quality) if self.quality else None,
            "figures": self.figures,
            "thresholds": {name: [each.rule.threshold, each.found] for name, each in self._standings().items()},
            "published": list(self._vetoes.published.items()),
        }

    def weights(self) -> dict[str, Weights]:
        return {name: standing.net.state_dict() for name, standing in self._standings().items()}

    def restore(self, state: dict[str, Any], weights: dict[str, Weights], fresh: Callable[[], Classifier]) -> None:
        """Take up what `state` and `weights` gave, in `fresh` networks."""
        self.version, self.since = int(state["version"]), int(state["since"])
        self.quality = Quality(**state["quality"]) if state["quality"] else None
        self.figures = dict(state["figures"])
        self._vetoes.published = {int(own): int(version) for own, version in state["published"]}
        both = {name: self._standing(weights[name], fresh(), *each) for name, each in state["thresholds"].items()}
        self.champion, self.before = both.get("champion"), both.get("before")

    def _standings(self) -> dict[str, Standing]:
        both = {"champion": self.champion, "before": self.before}
        return {name: standing for name, standing in both.items() if standing is not None}

    def _standing(self, weights: Weights, net: Classifier, threshold: float, found: float) -> Standing:
        net.load_state_dict(weights)
        return dataclasses.replace(self._judge.standing(net, threshold), found=found)

    def stored(self) -> Weights:
        """What the replay holds of rewards, for rules under which nothing but the past can tell them."""
        size, names = self._replay.size, ("reward", "terminal", "usable")
        return {name: torch.from_numpy(getattr(self._replay, name)[:size].copy()) for name in names}

    def restore_stored(self, values: Weights) -> None:
        """Put back what `stored` gave."""
        for name, array in values.items():
            getattr(self._replay, name)[: len(array)] = array.numpy()
