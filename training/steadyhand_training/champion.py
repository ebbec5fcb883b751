"""A classifier in force: one calibrated network with its scores and its rule, and how it stands on the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steadyhand_models import reward
from steadyhand_models.messages import EndReason
from steadyhand_models.nets.classifier import Classifier
from steadyhand_training import fitting, gate
from steadyhand_training.evidence import Evidence
from steadyhand_training.fitting import F32, Scores
from steadyhand_training.gate import Comparison, GateSettings, Judged, Quality, Trial
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay

# A single held-out success that is missed asks for all the doubt there is, and then no threshold finds any success.
MOST_OF_ONE = 2.0  # temperature, while no more than one is held out


@dataclass(frozen=True)
class Standing:
    """One calibrated network with its scores and its rule; `found` is the threshold before drift lifts it."""

    scores: Scores
    rule: reward.Rule
    found: float

    @property
    def net(self) -> Classifier:
        return self.scores.net


class Judge:
    """Looks at episodes through a classifier, beside what a human said of them."""

    def __init__(
        self, replay: Replay, ledger: Ledger, evidence: Evidence, debounce_frames: int, pessimism: float,
        settings: GateSettings, threshold: float | None = None,
    ) -> None:  # fmt: skip
        """A threshold that is given stands; without one it is found on held-out episodes."""
        self.settings = settings
        self._replay, self._ledger, self._evidence = replay, ledger, evidence
        self._debounce_frames, self._pessimism, self._threshold = debounce_frames, pessimism, threshold

    def rule(self, threshold: float) -> reward.Rule:
        return reward.Rule(threshold, self._debounce_frames, self._pessimism)

    def standing(self, net: Classifier, threshold: float) -> Standing:
        """A network that is calibrated already."""
        return Standing(Scores(net, self._replay), self.rule(threshold), threshold)

    def lifted(self, standing: Standing, lift: float) -> Standing:
        """The same network, `lift` above the threshold that was found, up to the highest that can be.

        A threshold that was given stands.
        """
        if self._threshold is not None:
            return standing
        threshold = max(standing.found, min(round(standing.found + lift, 2), gate.THRESHOLDS[-1]))
        return replace(standing, rule=self.rule(threshold))

    def calibrated(self, net: Classifier, least_threshold: float = 0.0, lift: float = 0.0) -> Standing:
        """A network with temperature and threshold from the held-out episodes, lifted; its temperature must be 1."""
        held_out = self._evidence.held_out()
        rows, labels = self._evidence.rows(held_out)
        known = labels != 0
        logits = fitting.log_odds(net, self._replay.frames[rows[known]])
        confirmed = [e for e in held_out if (self._ledger.frame_labels(e, self._replay) > 0).any()]
        most = MOST_OF_ONE if len(confirmed) < 2 else float(fitting.TEMPERATURES[-1])
        net.temperature.fill_(fitting.temperature(logits, labels[known] > 0, most))
        standing = self.standing(net, 0.5 if self._threshold is None else self._threshold)
        if self._threshold is not None:
            return standing
        judged = [self.judged(standing, e) for e in held_out]
        chosen = gate.choose_rule(judged, self.rule(0.5), self.settings, least_threshold)
        return self.lifted(replace(standing, found=chosen.threshold), lift)

    def lower(self, standing: Standing, episode: int) -> F32:
        """Pessimistic probability (T,) of an episode's frames."""
        return reward.lower_bound(standing.scores.of(self._replay.rows(episode)), standing.rule.pessimism)

    def judged(self, standing: Standing, episode: int) -> Judged:
        labels = self._ledger.frame_labels(episode, self._replay)
        cut = self._replay.ended(episode) is EndReason.SUCCESS
        return Judged(self.lower(standing, episode), labels, self._evidence.strata.of(episode), cut)

    def quality(self, standing: Standing, episodes: Sequence[int]) -> Quality:
        return gate.judge([self.judged(standing, e) for e in episodes], standing.rule)

    def agrees(self, standing: Standing, episode: int) -> bool:
        """Whether a classifier sees an episode as the human does."""
        return gate.right(self.judged(standing, episode), standing.rule)

    def right(self, standing: Standing, episodes: Sequence[int]) -> int:
        """With how many of these episodes a classifier agrees."""
        return sum(self.agrees(standing, e) for e in episodes)

    def compare(self, candidate: Standing, champion: Standing) -> tuple[Comparison, ...]:
        """Both on every stratum of the held-out episodes."""
        held_out = self._evidence.held_out()
        new = gate.judge_strata([self.judged(candidate, e) for e in held_out], candidate.rule)
        old = gate.judge_strata([self.judged(champion, e) for e in held_out], champion.rule)
        return tuple(Comparison(stratum, new[stratum], old[stratum]) for stratum in new)

    def trial(self, candidate: Standing, champion: Standing) -> Trial:
        """Everything that the gate looks at."""
        fresh, past = self._evidence.taught_flags(fresh=True), self._evidence.taught_flags(fresh=False)
        held_out = self._evidence.held_out()
        return Trial(
            candidate=self.quality(candidate, held_out),
            champion=self.quality(champion, held_out),
            fresh=len(fresh),
            fresh_fixed=self.right(candidate, fresh),
            past=len(past),
            past_kept_candidate=self.right(candidate, past),
            past_kept_champion=self.right(champion, past),
            strata=self.compare(candidate, champion),
        )
