"""Learn from streamed steps: journal, replay, policy and classifier, published to the robot on a schedule."""

from __future__ import annotations

import ctypes
import enum
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.artifact import Artifact
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_models.nets.export import ExportError
from steadyhand_models.registry import Registry
from steadyhand_training import checkpoint, log
from steadyhand_training.correction import Correction, CorrectionError, Promotion
from steadyhand_training.ingest import Ingest
from steadyhand_training.journal import Entry, Journal
from steadyhand_training.labels import Ledger
from steadyhand_training.learner import CheckpointError, Diverged, Learner
from steadyhand_training.memory import Memory
from steadyhand_training.publish import Publisher, Schedule
from steadyhand_training.replay import Replay
from steadyhand_training.run_folder import RunFolder, write_whole
from steadyhand_training.status import Reporter, View
from steadyhand_training.trainer_settings import TrainerSettings

ENTRIES_PER_TURN = 64
IDLE_S = 0.05
FETCH_TIMEOUT_S = 10.0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
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
        ledger = Ledger(task.debounce_frames)
        self.memory = Memory(replay, ledger)
        self.learner = Learner(self.contract, replay, settings.learner, settings.seed)
        self.correction = Correction(self.contract, task, replay, ledger, settings.correction, settings.seed)
        registry = Registry(folder.registry)
        self._check_registry(registry)
        self.ingest = Ingest(self.contract, folder.journal, registry, settings.listen)
        self._journal = Journal(folder.journal)
        self.publisher = Publisher(registry, self.ingest.announce)
        self.schedule = Schedule(settings.publish)
        self._reporter = Reporter(settings.status, folder.metrics)
        self._learn_from_step = 0  # recorded steps when learning began
        self._collected = (0, 0)  # demonstrations, successful and failed, at the last attempt to begin
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
        self.ingest.stop()
        self._journal.close()
        self._reporter.close()
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
        entries = self._journal.after(self.memory.position, 1 if self._lockstep else ENTRIES_PER_TURN)
        for entry in entries:
            self._consume(entry)
            if self.phase is Phase.COLLECT and self._has_enough():
                break
        return bool(entries)

    def _consume(self, entry: Entry) -> None:
        news = self.memory.consume(entry)
        if news.swap is not None:
            self.schedule.answered(news.swap)
            self._reporter.event("swap", news.swap)
        if news.row is not None:
            self.learner.observe(np.array([news.row]))
        if news.settled and news.label is None:
            self.correction.settle(news.settled)
        if news.label is not None:
            self.correction.notice(news.label)

    def _keep_house(self) -> None:
        self._report_when_due()
        if time.monotonic() >= self._checkpoint_due_s:
            self._save()

    def _report_when_due(self) -> None:
        now_s = time.monotonic()
        if self._reporter.due(now_s):
            self._reporter.report(self._view(), now_s)

    def _view(self) -> View:
        return View(
            phase=self.phase.value,
            message=self.message,
            tally=self.memory.tally,
            arrived=self.ingest.counters,
            updates=self.learner.updates,
            steps_learning=self.steps_learning,
            policy_version=self.publisher.newest(Channel.POLICY),
            classifier_version=self.publisher.newest(Channel.CLASSIFIER),
            q_bound=self.learner.q_bound,
            learner=self.learner.metrics,
            correction=self.correction.metrics,
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
            first = self.correction.first_fit(lambda share: self._progress(FIRST_FIT_SHARE * share, "first classifier"))
        except CorrectionError as problem:
            self.phase, self.message = Phase.COLLECT, f"not enough to begin: {problem}"
            log.warn("trainer.cannot_begin", reason=problem)
            return
        rest = 1 - FIRST_FIT_SHARE
        metrics = self.learner.pretrain(lambda share, what: self._progress(FIRST_FIT_SHARE + rest * share, what))
        self.phase, self.message = Phase.LEARN, ""
        self._learn_from_step = self.memory.tally.steps
        log.info("trainer.pretrained", took_s=time.monotonic() - begun_s, threshold=first.threshold, **metrics)
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
        promotion = self.correction.work(math.inf if self._lockstep else self.settings.correction_slice_s)
        if promotion is not None:
            self._promoted(promotion)
        return promotion is not None or self.correction.busy

    def _promoted(self, promotion: Promotion) -> None:
        self._reporter.event("promotion", promotion)
        # Saved first: a published version must never be ahead of what a restart would continue from.
        self._save()
        self._publish(Channel.CLASSIFIER)

    # -- publishing ------------------------------------------------------------------------------------------------

    def _may_publish(self) -> bool:
        """In lockstep only while the robot stands still, so that a model always arrives at the same step."""
        return not self._lockstep or self.memory.tally.steps >= self._credit

    def _publish_when_due(self) -> None:
        if self.schedule.due(self._now_s, self.learner.updates):
            self._publish(Channel.POLICY)

    def _publish_missing(self) -> None:
        """Whatever has been learned but never published: at the start of learning, or after a crash in between."""
        if self.publisher.newest(Channel.CLASSIFIER) < self.correction.version:
            self._publish(Channel.CLASSIFIER)
        if self.publisher.newest(Channel.POLICY) == 0:
            self._publish(Channel.POLICY)

    def _publish(self, channel: Channel) -> None:
        version = self.publisher.newest(channel) + 1
        try:
            artifact = self._artifact(channel, version)
            self.publisher.publish(artifact)
        except (ExportError, OSError) as error:
            log.warn("publish.failed", channel=channel.value, version=version, reason=error)
            self.message = f"{channel.value} v{version} could not be published: {error}"
            self.schedule.put_off(self._now_s)
            return
        self._reporter.event("publish", artifact.manifest)
        if channel is Channel.POLICY:
            self.schedule.sent(version, self._now_s, self.learner.updates)
        if self._lockstep:
            self._wait_until_fetched(channel, version)

    def _artifact(self, channel: Channel, version: int) -> Artifact:
        if channel is Channel.CLASSIFIER:
            return self.correction.artifact(version)
        return self.learner.artifact(version, version - 1)

    def _wait_until_fetched(self, channel: Channel, version: int) -> None:
        deadline_s = time.monotonic() + FETCH_TIMEOUT_S
        while self.ingest.robots and not self.ingest.fetched(channel, version) and not self.stopping.is_set():
            if time.monotonic() > deadline_s:
                log.warn("lockstep.not_fetched", channel=channel.value, version=version)
                return
            self.ingest.arrived.wait(IDLE_S)
            self.ingest.arrived.clear()

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

    def _save(self) -> None:
        """A checkpoint of what cannot be worked out from the journal; nothing before there is a classifier."""
        self._checkpoint_due_s = time.monotonic() + self.settings.checkpoint_every_s
        if self.phase is not Phase.LEARN:
            return
        try:
            checkpoint.save(self.folder.checkpoints, self._fill_checkpoint)
        except OSError as error:
            log.warn("checkpoint.failed", reason=error, fix="free space on the run folder's disk")
            self.message = f"no checkpoint could be written: {error}"

    def _fill_checkpoint(self, folder: Path) -> None:
        self.learner.save(folder / "learner.pt")
        self.correction.save(folder / "correction.pt")
        state = {"position": self.memory.position, "learn_from_step": self._learn_from_step}
        (folder / "trainer.json").write_text(json.dumps(state), encoding="utf-8")

    def _resume(self) -> None:
        """Back to the newest checkpoint that can be read; what the journal holds beyond it is then new."""
        for folder in reversed(checkpoint.listing(self.folder.checkpoints)):
            try:
                state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
                self._recall(int(state["position"]))
                self.correction.load(folder / "correction.pt")
                self.learner.load(folder / "learner.pt")
                self._learn_from_step = int(state["learn_from_step"])
            except (OSError, ValueError, KeyError, CorrectionError) as problem:
                log.warn("checkpoint.unusable", folder=folder, reason=problem)
                continue
            self.phase = Phase.LEARN
            log.info("trainer.resumed", checkpoint=folder.name, updates=self.learner.updates)
            if newest := self.publisher.newest(Channel.POLICY):
                self.schedule.recall(self.publisher.registry.manifest(Channel.POLICY, newest).training_step)
            self._publish_missing()
            return
        if checkpoint.listing(self.folder.checkpoints):
            raise UserError(
                f"{self.folder.checkpoints}: no checkpoint can be read; "
                "move the folder away to learn again from the journal"
            )

    def _recall(self, position: int) -> None:
        """Remember the journal up to a checkpoint's position, without learning from it again."""
        while self.memory.position < position:
            entries = self._journal.after(self.memory.position, ENTRIES_PER_TURN)
            if not entries:
                raise CheckpointError(f"the journal ends at {self.memory.position}, the checkpoint is of {position}")
            for entry in entries:
                if entry.position <= position:
                    self.memory.consume(entry)

    def _finish(self) -> None:
        """A last checkpoint, which knows all that has arrived, and a last policy."""
        if self.phase is Phase.LEARN:
            self._drain()
            self._save()
            if self.schedule.fresh(self.learner.updates) > 0:
                self._publish(Channel.POLICY)
        self._reporter.report(self._view(), time.monotonic())
        log.info("trainer.stopped", steps=self.memory.tally.steps, updates=self.learner.updates)

    def _drain(self) -> None:
        """Take in what is committed by now; it is not waited for more."""
        while entries := self._journal.after(self.memory.position, ENTRIES_PER_TURN):
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


def _keep_freed_memory() -> None:
    """Have glibc keep what torch frees: handing megabytes back and forth costs a third of an encoder's update."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _stop_on_signals(trainer: Trainer) -> None:
    """The first Ctrl-C or SIGTERM ends the run in order, the second at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        trainer.stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)


def main(argv: Sequence[str]) -> int:
    """`steadyhand train`: run until told to stop."""
    settings = toml.parse_command_line(
        TrainerSettings,
        argv,
        prog="steadyhand train",
        description="Learn from streamed steps and publish policies and classifiers.\n\n"
        "Example: steadyhand train --run runs/lift --demonstrations 10",
    )
    folder = RunFolder(settings.run)
    log.configure()
    torch.set_num_threads(settings.threads)
    os.nice(settings.nice)
    _keep_freed_memory()
    with folder.claim():
        text = toml.to_toml(settings)
        write_whole(folder.settings, text)
        log.info("trainer.settings", text=text)
        trainer = Trainer(settings, folder)
        _stop_on_signals(trainer)
        try:
            trainer.run()
        except Diverged as problem:
            raise UserError(f"{problem}; start again to go on from the last checkpoint, or lower the rates") from None
        finally:
            trainer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
