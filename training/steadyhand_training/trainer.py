"""The trainer's main loop: takes in what the journal got, learns, corrects, publishes, and comes back after a crash."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import threading
import time

import numpy as np

from steadyhand_models import task as tasks
from steadyhand_models.artifact import Artifact
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_models.nets.export import ExportError
from steadyhand_models.registry import Registry
from steadyhand_training import log
from steadyhand_training.attention import Attention
from steadyhand_training.correction import Correction, CorrectionError, Promotion, Start
from steadyhand_training.correction_settings import CorrectionRule
from steadyhand_training.decisions import Decision
from steadyhand_training.ingest import Ingest
from steadyhand_training.journal import Entry
from steadyhand_training.labels import Ledger
from steadyhand_training.learner import Learner
from steadyhand_training.memory import Memory
from steadyhand_training.metric_writers import open_writers
from steadyhand_training.metrics import JsonLines
from steadyhand_training.past import ENTRIES_PER_TURN, Past, champion_of
from steadyhand_training.release import Release
from steadyhand_training.replay import Replay
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.status import Candidate, Reporter, View
from steadyhand_training.trainer_settings import TrainerSettings

IDLE_S = 0.05
FIRST_FIT_SHARE = 0.3  # of pretraining's progress; display only


class Phase(str, enum.Enum):
    """Where a run stands."""

    COLLECT = "collect"
    PRETRAIN = "pretrain"
    LEARN = "learn"


class Stopped(Exception):
    """A stop was asked for in the middle of something long."""


class Trainer:
    """The main loop: take in what the journal got, learn, correct, publish. One thread beside it ingests.

    Everything learned follows from the journal's order and the seed; time decides only how much is done when, and in
    lockstep not even that.
    """

    def __init__(self, settings: TrainerSettings, folder: RunFolder) -> None:
        self.settings = settings
        self.folder = folder
        self.stopping = threading.Event()
        self.phase = Phase.COLLECT
        self.message = ""
        task = tasks.load(settings.task)
        self.contract = task.contract()
        self.rate_hz = task.rate_hz
        replay = Replay(self.contract, settings.learner.replay_capacity)
        ledger = Ledger(task=task)
        self.memory = Memory(replay, ledger)
        try:
            self.learner = Learner(self.contract, replay, settings.learner, settings.seed, settings.reward)
        except ValueError as problem:  # weights that are missing, settings that do not fit the task
            raise UserError(str(problem)) from None
        self.correction = Correction(
            self.contract, task, replay, ledger, settings.correction, settings.seed,
            paid=settings.reward, discount=settings.learner.discount,
            camera_of=lambda episode: self.memory.origin(episode)[0], record=self._decided,
        )  # fmt: skip
        # Answers that nothing learns from are not asked for.
        fixed = settings.correction.rule is CorrectionRule.FIXED
        asking = dataclasses.replace(settings.asking, enabled=settings.asking.enabled and not fixed)
        self.attention = Attention(
            self.memory, self.correction.evidence, folder, asking, settings.drift, settings.learner.discount
        )
        registry = Registry(folder.registry)
        self._check_registry(registry)
        self.ingest = Ingest(self.contract, folder.journal, registry, settings.listen)
        self._past = Past(folder, self.memory, self.learner, self.correction, self.attention)
        self._reporter = Reporter(settings.status, folder.metrics, open_writers(settings.metrics, folder.root))
        self.release = Release(self.ingest, registry, self.memory, self._reporter, settings.publish)
        self._decisions = JsonLines(folder.decisions)
        self._learn_from_step = 0  # recorded steps when learning began
        self._collected = (0, 0)  # demonstrations, successful and failed, at the last attempt to begin
        self._classifier = 0  # the correction's version that was handed to publishing
        self._credit = 0
        self._checkpoint_due_s = math.inf

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stopping` is set. Raises Diverged when learning cannot go on."""
        # First of all, so that a robot can hand over its records while the past is remembered.
        self.ingest.start()
        self.folder.write_addresses(self.ingest.endpoint, self._reporter.endpoint)
        self._resume()
        log.info("trainer.ready", link=self.ingest.endpoint, phase=self.phase.value, steps=self.memory.tally.steps)
        self._checkpoint_due_s = time.monotonic() + self.settings.checkpoint_every_s
        try:
            self._grant()
            while not self.stopping.is_set():
                if not self._turn():
                    self.ingest.arrived.wait(IDLE_S)
                self._keep_house()
            self._finish()
        except Stopped:
            log.info("trainer.stopped", phase=self.phase.value, kept="the journal; pretraining starts again")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._past.close()
        self.ingest.stop()
        self._reporter.close()
        self._decisions.close()
        self.folder.address.unlink(missing_ok=True)

    def _turn(self) -> bool:
        """One round; true when there was anything to do."""
        busy = self._take_in()
        if self.phase is Phase.COLLECT and self._has_enough():
            self._pretrain()
        if self.phase is Phase.LEARN:
            busy |= self._update()
            if self._may_publish():
                busy |= self._correct()
                self._publish_when_due()
        self._grant()
        return busy

    def _take_in(self) -> bool:
        self.ingest.arrived.clear()
        entries = self._past.news(1 if self._lockstep else ENTRIES_PER_TURN)
        for entry in entries:
            self._consume(entry)
            if self.phase is Phase.COLLECT and self._has_enough():
                break
        return bool(entries)

    def _consume(self, entry: Entry) -> None:
        news = self._past.remember(entry)
        if news.swap is not None:
            self.release.answered(news.swap)
        if news.row is not None:
            self.learner.observe(np.array([news.row]))
        if news.settled and news.label is None:
            self.correction.settle(news.settled)
        if news.label is not None:
            self.correction.notice(news.label)
            self._reporter.event("label", news.label)
        self.attention.notice(news, champion_of(self.correction))
        self.release.standings.notice(news.settled)

    def _keep_house(self) -> None:
        self._report_when_due()
        if time.monotonic() >= self._checkpoint_due_s:
            self._save(wait=False)

    def _report_when_due(self) -> None:
        now_s = time.monotonic()
        if self._reporter.due(now_s):
            self._reporter.report(self._view(), now_s)

    def _view(self) -> View:
        return View(
            phase=self.phase.value,
            message=self.message or self.release.message or self.correction.offer,
            tally=self.memory.tally,
            arrived=self.ingest.counters,
            updates=self.learner.updates,
            steps_learning=self.steps_learning,
            policy_version=self.release.newest(Channel.POLICY),
            classifier_version=self.release.newest(Channel.CLASSIFIER),
            q_bound=self.learner.q_bound,
            learner=self.learner.metrics,
            correction=self.correction.metrics,
            versions=self.release.standings.metrics,
            attention=self.attention.metrics,
            warnings=self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        """What an operator should know, in sentences."""
        fall = self.release.standings.fall
        fell = () if fall is None else (f"{fall}. Look at what changed, or go back with publish.on_fall = rollback.",)
        return (
            *fell,
            *self.correction.warnings,
            *self.attention.warnings,
            *(f"{w.sentence} {w.remedy}" for w in self.learner.warnings()),
        )

    # -- before learning -------------------------------------------------------------------------------------------

    def _has_enough(self) -> bool:
        tally, wanted = self.memory.tally, self.settings
        have = (tally.demonstrations, tally.failed_demonstrations)
        if have == self._collected:  # these did not suffice before
            return False
        return have[0] >= wanted.demonstrations and have[1] >= wanted.failed_demonstrations

    def _pretrain(self) -> None:
        """First classifier and cloned policy. On what was collected when it cannot be done, collecting goes on."""
        self._collected = (self.memory.tally.demonstrations, self.memory.tally.failed_demonstrations)
        self.phase = Phase.PRETRAIN
        begun_s = time.monotonic()
        try:
            if self.settings.correction.start is Start.DEMONSTRATIONS:
                self.correction.first_fit(lambda share: self._progress(FIRST_FIT_SHARE * share, "first classifier"))
        except CorrectionError as problem:
            self.phase, self.message = Phase.COLLECT, f"not enough to begin: {problem}"
            log.warn("trainer.cannot_begin", reason=problem)
            return
        rest = 1 - FIRST_FIT_SHARE
        metrics = self.learner.pretrain(lambda share, what: self._progress(FIRST_FIT_SHARE + rest * share, what))
        self.phase, self.message = Phase.LEARN, ""
        self._learn_from_step = self.memory.tally.steps
        log.info("trainer.pretrained", took_s=time.monotonic() - begun_s, **metrics)
        self._save()
        self._publish_missing()

    def _progress(self, share: float, what: str) -> None:
        self.message = f"{what}, {100 * share:.0f}%"
        self._report_when_due()
        if self.stopping.is_set():
            raise Stopped

    # -- learning --------------------------------------------------------------------------------------------------

    def _update(self) -> bool:
        """Updates up to the ratio; in lockstep all that are due, else a few at a time."""
        if not self.learner.ready:
            return False
        due = int(self.settings.utd_ratio * self.steps_learning) - self.learner.updates
        count = due if self._lockstep else min(due, self.settings.updates_per_turn)
        for _ in range(count):
            self.learner.update()
        return count > 0

    @property
    def steps_learning(self) -> int:
        """Recorded steps since learning began."""
        return self.memory.tally.steps - self._learn_from_step if self.phase is Phase.LEARN else 0

    def _correct(self) -> bool:
        growing = self.correction.busy
        self.correction.caution = self.attention.lift
        promotion = self.correction.work(math.inf if self._lockstep else self.settings.correction_slice_s)
        if self.correction.busy and not growing:
            self._reporter.event("candidate", Candidate(self.correction.contradicted))
        if promotion is not None:
            self._promoted(promotion)
        if self._classifier != self.correction.version:
            # Saved first: a published version must never be ahead of what a restart would continue from.
            self._save()
            self._publish_classifier()
        return promotion is not None or self.correction.busy

    def _promoted(self, promotion: Promotion) -> None:
        """What is stored has been relabelled; the new version went out when that began."""
        self._reporter.event("promotion", promotion)
        self.learner.promoted(promotion.flipped, promotion.actions)

    def _decided(self, decision: Decision) -> None:
        stamps = {"unix_s": time.time(), "stamp_ns": time.monotonic_ns()}
        self._decisions.write({**stamps, **dataclasses.asdict(decision)})

    # -- publishing ------------------------------------------------------------------------------------------------

    def _may_publish(self) -> bool:
        """In lockstep only while the robot stands still, so that a model always arrives at the same step."""
        return not self._lockstep or self.memory.tally.steps >= self._credit

    def _publish_when_due(self) -> None:
        updates = self.learner.updates
        if self.release.standings.rollback_due:
            self._sent(Channel.POLICY, self.release.roll_back(self._now_s, updates))
        elif self.release.policy_due(self._now_s, updates, self.learner.response.holds):
            self._publish(Channel.POLICY)

    def _publish_missing(self) -> None:
        """Whatever has been learned but never published: at the start of learning, or after a crash in between."""
        if self.release.newest(Channel.CLASSIFIER) < self.correction.version:
            self._publish_classifier()
        self._classifier = self.correction.version
        if self.release.newest(Channel.POLICY) == 0:
            self._publish(Channel.POLICY)

    def _publish_classifier(self) -> None:
        self._classifier = self.correction.version
        self._publish(Channel.CLASSIFIER)

    def _publish(self, channel: Channel) -> None:
        version = self.release.newest(channel) + 1
        try:
            artifact = self._artifact(channel, version)
        except ExportError as error:
            self.release.failed(channel, version, error, self._now_s)
            return
        if self.release.send(artifact, self._now_s, self.learner.updates):
            self._sent(channel, version)

    def _sent(self, channel: Channel, version: int) -> None:
        if self._lockstep and version:
            self.release.wait_until_fetched(channel, version, self.stopping)

    def _artifact(self, channel: Channel, version: int) -> Artifact:
        if channel is Channel.CLASSIFIER:
            return self.correction.artifact(version)
        made = self.learner.artifact(version, version - 1, self.release.encoder(self.learner.encoder))
        # How much the robot had done by then: versions are compared by that, and by nothing that a restart changes.
        metrics = made.manifest.metrics | {"steps": float(self.memory.tally.steps)}
        return dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, metrics=metrics))

    # -- lockstep --------------------------------------------------------------------------------------------------

    @property
    def _lockstep(self) -> bool:
        return self.settings.lockstep.enabled

    @property
    def _now_s(self) -> float:
        """The publishing schedule's clock: the robot's steps in lockstep, else the wall's."""
        return self.memory.tally.steps / self.rate_hz if self._lockstep else time.monotonic()

    def _grant(self) -> None:
        """Let the robot go on once everything it did has been learned from."""
        steps = self.memory.tally.steps
        if self._lockstep and steps >= self._credit:
            # One by one while collecting, so that the robot stands still when the last demonstration has come.
            self._credit = steps + (self.settings.lockstep.ahead_steps if self.phase is Phase.LEARN else 1)
            self.ingest.credit(self._credit)

    # -- crashes and ends ------------------------------------------------------------------------------------------

    def _save(self, wait: bool = True) -> None:
        """A checkpoint of what cannot be worked out from the journal; nothing before there is a classifier.

        Written beside learning unless it is waited for.
        """
        if not wait and self._past.saving:
            return
        self._checkpoint_due_s = time.monotonic() + self.settings.checkpoint_every_s
        if self.phase is not Phase.LEARN:
            return
        try:
            self._past.save(self._learn_from_step, wait)
        except OSError as error:
            log.warn("checkpoint.failed", reason=error, fix="free space on the run folder's disk")
            self.message = f"no checkpoint could be written: {error}"

    def _resume(self) -> None:
        """Go on from the newest checkpoint; what the journal holds beyond it is then new."""
        begun = self._past.resume()
        if begun is None:
            return
        self.phase, self._learn_from_step = Phase.LEARN, begun
        self.release.resume()
        self._publish_missing()

    def _finish(self) -> None:
        """A last checkpoint, which knows all that has arrived, and a last policy."""
        if self.phase is Phase.LEARN:
            self._drain()
            self._save()
            if self.release.policy_waits(self.learner.updates):
                self._publish(Channel.POLICY)
        self._reporter.report(self._view(), time.monotonic())
        log.info("trainer.stopped", steps=self.memory.tally.steps, updates=self.learner.updates)

    def _drain(self) -> None:
        """Take in what is committed by now; it is not waited for more."""
        while entries := self._past.news():
            for entry in entries:
                self._consume(entry)
            if len(entries) < ENTRIES_PER_TURN:
                return

    def _check_registry(self, registry: Registry) -> None:
        for channel in Channel:
            version = registry.newest(channel)
            if version is not None and registry.manifest(channel, version).contract_hash != self.contract.hash:
                raise UserError(
                    f"{self.folder.root}: its models are of another contract than task '{self.settings.task}'; "
                    "choose another --run folder"
                )
