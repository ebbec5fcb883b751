"""The ever-correcting reward classifier: which is in force, when a candidate is grown, promotion and relabelling."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from steadyhand_models import reward
from steadyhand_models.artifact import Artifact
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Label
from steadyhand_models.task import Task
from steadyhand_training import correction_state, gate
from steadyhand_training.champion import Judge, Standing
from steadyhand_training.correction_settings import CorrectionRule, CorrectionSettings, Start
from steadyhand_training.correction_state import CorrectionError, Kept, Weights
from steadyhand_training.course import SILRI_THRESHOLD, Grower
from steadyhand_training.decisions import Decision, Verdict
from steadyhand_training.docket import Docket
from steadyhand_training.evidence import Evidence
from steadyhand_training.fitting import Scores
from steadyhand_training.gate import Quality, Trial
from steadyhand_training.in_force import InForce
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay
from steadyhand_training.strata import ONE_CAMERA, Strata
from steadyhand_training.vetoes import Vetoes

__all__ = ["Correction", "CorrectionError", "CorrectionRule", "CorrectionSettings", "Promotion", "Start"]


@dataclass(frozen=True)
class Promotion:
    """A classifier that took over, its held-out quality, and how many of the stored rewards it changed."""

    version: int
    previous: int
    threshold: float
    flipped: int
    actions: int
    quality: Quality
    reason: str = ""  # why an older one was taken up again or a threshold moved; empty for one that was grown

    @property
    def flip_rate(self) -> float:
        return self.flipped / self.actions if self.actions else 0.0


T = TypeVar("T")
Course = Generator[None, None, Promotion | None]


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
        paid: reward.RewardSettings = reward.DEFAULT,
        discount: float = 1.0,
        camera_of: Callable[[int], str] = lambda episode: ONE_CAMERA,
        record: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        """`paid` says what is a reward; `discount` is the learner's, by which a potential shapes it.

        camera_of names the camera set-up that recorded an episode; `record` keeps every decision.
        """
        self.settings = settings
        silri = settings.rule is CorrectionRule.SILRI
        self.evidence = Evidence(
            replay, ledger, Strata(replay, task, camera_of), 0 if silri else settings.held_out_every
        )
        self.kept = Kept()
        self.last_promotion: Promotion | None = None
        self.caution = 0.0  # added to the threshold, of the champion and of candidates, while something drifts
        self._replay, self._ledger = replay, ledger
        self._clock, self._record = clock, record
        # A classifier that nobody may correct is one whose word alone counts.
        fixed = settings.rule is CorrectionRule.FIXED
        paid = dataclasses.replace(paid, source=reward.RewardSource.CLASSIFIER) if fixed else paid
        self._rng = np.random.default_rng([seed, 1])
        self._heads, pessimism = (1, 0.0) if silri else (settings.heads, settings.pessimism)
        threshold = SILRI_THRESHOLD if silri else paid.success_threshold
        self.judge = Judge(replay, ledger, self.evidence, task.debounce_frames, pessimism, settings.gate, threshold)
        self._grower = Grower(contract, replay, self.evidence, self.judge, settings, seed, self._rng)
        self._docket = Docket(replay, ledger, self.evidence, self.judge, settings)
        self._vetoes = Vetoes(replay, ledger, self.evidence.strata, settings.veto)
        self._in_force = InForce(contract, replay, ledger, self.evidence, self.judge, self._vetoes, paid, discount)
        self._course: Course | None = None

    # -- what is in force ------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Counts the classifiers that were in force; 0 before the first."""
        return self._in_force.version

    @property
    def since(self) -> int:
        """The version with which the champion's weights came into force: drift lifts their threshold under others."""
        return self._in_force.since

    @property
    def promotions(self) -> int:
        return self.kept.promotions

    @property
    def rejections(self) -> int:
        return self.kept.rejections

    @property
    def last_rejection(self) -> str:
        return self.kept.last_rejection

    @property
    def champion(self) -> Standing | None:
        """The classifier in force; None before the first."""
        return self._in_force.champion

    @property
    def scores(self) -> Scores | None:
        """The champion's; None before the first."""
        return self.champion.scores if self.champion else None

    @property
    def rule(self) -> reward.Rule:
        """How the champion's probabilities become success."""
        return self._in_force.rule

    @property
    def threshold(self) -> float:
        return self.rule.threshold

    @property
    def busy(self) -> bool:
        """Whether a candidate is being grown, or a promotion relabels."""
        return self._course is not None

    @property
    def contradicted(self) -> tuple[int, ...]:
        """Flagged episodes that the classifier in force still sees otherwise than the person who flagged them."""
        champion = self.champion
        return tuple(e for e in self.evidence.fresh if champion and not self.judge.agrees(champion, e))

    @property
    def offer(self) -> str:
        """What a person may want to do about a classifier that has grown from their words; empty when nothing."""
        q = self._in_force.quality
        if self.settings.start is not Start.LABELS or self.version != 1 or q is None:
            return ""
        return (
            f"the first classifier is ready: held out, it finds {q.found} of {q.confirmed} successes and is "
            f"wrong about {q.false} of {q.refuted} without; control.reward_source 'hybrid' lets it end episodes"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know of the classifier, in sentences."""
        return (f"The classifier was taken back: {self.kept.rolled_back}.",) if self.kept.rolled_back else ()

    def outcomes(self, episode: int) -> reward.Outcome:
        """Reward, terminal and usable of an episode's actions, under the champion and the labels as they stand."""
        return self._in_force.outcomes(episode)

    def settle(self, episodes: Sequence[int] | None = None) -> tuple[int, int]:
        """Write the outcomes of these episodes (of all ended ones) into the replay: (rewards changed, actions)."""
        return self._in_force.settle(self.evidence.ended() if episodes is None else episodes)

    @property
    def metrics(self) -> dict[str, float]:
        """What is known of the champion, and how candidates fared."""
        known: dict[str, float] = {
            "version": self.version,
            "threshold": self.threshold,
            "promotions": self.promotions,
            "rejections": self.rejections,
            "rollbacks": self.kept.rollbacks,
            "labels": len(self._ledger),
            "flags": len(self._ledger.flags()),
            "review": len(self.evidence.review),
            "lights": len(self.evidence.strata.lights.known),
            "golden_episodes": len(self.evidence.golden),
        }
        known |= self._in_force.metrics
        if self.last_promotion is not None:
            known |= {"flip_rate": self.last_promotion.flip_rate}
        return {name: float(value) for name, value in known.items()}

    def artifact(self, version: int) -> Artifact:
        """The champion, exported and checked. Raises ExportError when the graph does not repeat the network."""
        return self._in_force.artifact(version, self.metrics)

    # -- the first classifier --------------------------------------------------------------------------------------

    def first_fit(self, progress: Callable[[float], None] = lambda share: None) -> Promotion:
        """Fit the first classifier from every ended, labelled episode and put it in force; progress in 0..1.

        Raises CorrectionError when either class has no frames to learn from, or none to be judged by.
        """
        self._take_stock()
        fit = _finish(self._grower.fresh(self._heads, progress))
        if self.settings.rule is CorrectionRule.SILRI:
            standing = self.judge.standing(fit.snapshot(), SILRI_THRESHOLD)
        else:
            standing = self.judge.calibrated(fit.snapshot())
        return _finish(self._put_in_force(standing))

    def _take_stock(self) -> None:
        """Make what is labelled by now the anchor set. Raises CorrectionError when it does not suffice."""
        self.evidence.anchor()
        self._docket.drop(self.evidence.anchors)
        taught = self.evidence.pool(self.evidence.taught())
        judged = self.evidence.pool(self.evidence.held_out())
        if not len(taught.positive) or not len(taught.negative):
            raise CorrectionError("no frames of success, or none without, to learn from; demonstrate and press success")
        if self.settings.rule is CorrectionRule.SILRI:
            return
        if not len(judged.positive) or not len(judged.negative):
            raise CorrectionError("no episode is left to judge the classifier by; give at least two demonstrations")

    def _grow_first(self) -> Course:
        """A first classifier from labels; it is put in force once it is ready, else tried again with more of them."""
        try:
            self._take_stock()
        except CorrectionError:
            return None
        grown = yield from self._grower.first()
        if not grown.objection:
            return (yield from self._put_in_force(grown.standing))
        self._reject(grown.objection, None)
        return None

    # -- growing ---------------------------------------------------------------------------------------------------

    def notice(self, label: Label) -> None:
        """A label was added to the ledger: its episode's outcome follows at once, the classifier during `work`."""
        episode = self._docket.hear(label)
        if episode is not None and self._replay.ended(episode) is not None:
            self.settle([episode])

    def work(self, budget_s: float) -> Promotion | None:
        """Go on with correcting for about budget_s; a promotion if there was one. An infinite budget ends a course.

        A new version is in force, and may be published, before the promotion is returned: what is stored is relabelled
        in between, newest first.
        """
        deadline_s = self._clock() + budget_s
        if self._course is None:
            self._course = self._next_course()
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

    def _next_course(self) -> Course | None:
        """What is to be done now, if anything."""
        if self.settings.rule is CorrectionRule.FIXED:
            return None
        if self.champion is None:
            first = self.settings.start is Start.LABELS and self._docket.first_due()
            return self._begun(self._grow_first()) if first else None
        before = self._in_force.before
        if before is not None and (rise := self._vetoes.rise(self.version, self._in_force.previous)):
            return self._roll_back(str(rise), before)
        lifted = self.judge.lifted(self.champion, self.caution)
        if lifted.rule != self.rule:
            return self._lift(lifted)
        looked = self._docket.look(self.champion)
        self._set_aside(looked.suspects, "a wrong key by the look of it: classifier and neighbours say the contrary")
        silri = self.settings.rule is CorrectionRule.SILRI
        if not looked.due or (silri and not looked.contradicted):
            return None
        return self._begun(self._silri(len(looked.contradicted)) if silri else self._correct())

    def _begun(self, course: Course) -> Course:
        self._docket.begin()
        return course

    def _correct(self) -> Course:
        """One candidate from warm start to promotion or rejection, in slices."""
        fresh = self.evidence.taught_flags(fresh=True)
        grown = yield from self._grower.candidate(self._in_force.standing, self.caution)
        yield from self._doubt(grown.standing)
        if not grown.objection:
            return (yield from self._put_in_force(grown.standing, grown.trial))
        self._reject(grown.objection, grown.trial)
        self._set_aside([e for e in fresh if not self.judge.agrees(grown.standing, e)], "no candidate could agree")
        return None

    def _doubt(self, candidate: Standing) -> Generator[None, None, None]:
        """Held-out words that one candidate after the other contradicts go to review, or they would block for ever."""
        for episode in self.evidence.held_out():
            if self._docket.suspects(candidate, episode) and self.evidence.doubt(episode):
                self._set_aside([episode], "candidates that never heard it and neighbours say the contrary")
            yield

    def _silri(self, flags: int) -> Course:
        """The champion's weights after some steps, in force at once; what is stored stays as it is."""
        standing = yield from self._grower.silri(self._in_force.standing, flags)
        return (yield from self._put_in_force(standing))

    def _reject(self, objection: str, trial: Trial | None) -> None:
        self.kept.rejections += 1
        self.kept.last_rejection = objection
        self._decided(Verdict.REJECTED, objection, trial)

    def _set_aside(self, episodes: Sequence[int], why: str) -> None:
        self.evidence.set_aside(episodes)
        if episodes:
            self._decided(Verdict.REVIEW, why, episodes=episodes)

    # -- promotion and rollback ------------------------------------------------------------------------------------

    def _put_in_force(
        self, standing: Standing, trial: Trial | None = None, reason: str = ""
    ) -> Generator[None, None, Promotion]:
        """Promote in one go; then relabel what is stored."""
        self._in_force.take(standing, again=bool(reason))
        self.kept.promotions += self.version > 1 and not reason
        self.evidence.fresh = []
        self.kept.rolled_back = self.kept.rolled_back if reason else ""
        first = Verdict.ROLLED_BACK if reason else Verdict.FIRST if self.version == 1 else Verdict.PROMOTED
        self._decided(first, reason, trial)
        return (yield from self._relabel(reason))

    def _lift(self, lifted: Standing) -> Course:
        """The champion with another threshold, which drift asks for or, where the gate agrees, asks for no more."""
        why = "drift" if self.caution else "drift is over"
        reason = f"{why}: threshold {self.threshold} -> {lifted.rule.threshold}"
        comparisons = self.judge.compare(lifted, self._in_force.standing)
        if falser := gate.falser(comparisons, self.judge.settings):
            self._in_force.stay()
            self._decided(Verdict.REJECTED, f"{reason}: {falser}")
            return None
        self._in_force.lift(lifted)
        self._decided(Verdict.LIFTED, reason)
        return (yield from self._relabel(reason))

    def _relabel(self, reason: str) -> Generator[None, None, Promotion]:
        """Recompute what is stored under the version that just came into force, newest episodes first."""
        yield
        flipped = actions = 0
        if self.settings.rule is not CorrectionRule.SILRI or self.version == 1:
            for episode in reversed(self.evidence.ended()):
                changed, acted = self.settle([episode])
                flipped, actions = flipped + changed, actions + acted
                yield
        quality = self.judge.quality(self._in_force.standing, self.evidence.held_out())
        version = self.version
        self.last_promotion = Promotion(version, version - 1, self.threshold, flipped, actions, quality, reason)
        return self.last_promotion

    def _roll_back(self, why: str, previous: Standing) -> Course:
        """The version before is in force again, under a new number."""
        self.kept.rollbacks += 1
        self.kept.rolled_back = f"{why}; v{self.version + 1} is v{self._in_force.previous} again"
        return (yield from self._put_in_force(previous, reason=why))

    def _decided(
        self, verdict: Verdict, reason: str = "", trial: Trial | None = None, episodes: Sequence[int] = ()
    ) -> None:
        labels, steps = len(self._ledger), self._replay.size
        quality, about = self._in_force.quality, tuple(episodes)
        self._record(Decision(verdict, self.version, steps, labels, self.threshold, reason, quality, trial, about))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write champion and decisions; a candidate in growth is begun anew after `load`."""
        state = {
            "kept": dataclasses.asdict(self.kept),
            "docket": self._docket.state(self.evidence.fresh if self.busy else ()),
            "in_force": self._in_force.state(),
            "light_invariant": self.settings.fit.light_invariant,
            "promotion": dataclasses.asdict(self.last_promotion) if self.last_promotion else None,
            "heard": len(self._ledger),
            "evidence": self.evidence.state(),
            "rng": self._rng.bit_generator.state,
        }
        weights = self._in_force.weights()
        if self.settings.rule is CorrectionRule.SILRI:
            weights["stored"] = self._in_force.stored()
        correction_state.write(path, state, weights)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; labels that the ledger has beyond it are noticed. Settles every episode.

        Replay and ledger must be filled already. Raises CorrectionError.
        """
        correction_state.read(path, self._restore)

    def _restore(self, state: dict[str, Any], weights: dict[str, Weights]) -> None:
        if state["light_invariant"] != self.settings.fit.light_invariant:
            # The same weights would be loaded, and see something else.
            raise ValueError(f"it was fitted with correction.fit.light_invariant = {state['light_invariant']}")
        self._course = None
        self.kept = Kept(**state["kept"])
        self._docket.restore(state["docket"])
        self.evidence.restore(state["evidence"])
        self._rng.bit_generator.state = state["rng"]
        for label in self._ledger.after(state["heard"]):
            self._docket.hear(label)
        if promotion := state["promotion"]:
            self.last_promotion = Promotion(**promotion | {"quality": Quality(**promotion["quality"])})
        self._in_force.restore(state["in_force"], weights, lambda: self._grower.network(self._heads))
        self.settle()
        self._in_force.restore_stored(weights.get("stored", {}))


def _finish(work: Generator[None, None, T]) -> T:
    """All of it in one go."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
