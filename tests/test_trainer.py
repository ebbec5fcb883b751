"""The trainer learns from what is streamed, and a crash costs it nothing that was recorded."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ingest import HELLO, Robot
from training_steps import CONTRACT, RUN, demonstration, driven, label, records

from steadyhand_models import settings as toml
from steadyhand_models import wire
from steadyhand_models.artifact import ArtifactError
from steadyhand_models.cli import UserError
from steadyhand_models.messages import (
    Ack,
    Channel,
    EndReason,
    LabelKind,
    ModelNotice,
    Records,
    Source,
    Swap,
    SwapOutcome,
    TrainerStatus,
    Welcome,
)
from steadyhand_models.registry import Registry
from steadyhand_training.config import BackboneSettings, Encoders, LearnerSettings
from steadyhand_training.correction import CorrectionSettings
from steadyhand_training.fitting import FitSettings
from steadyhand_training.journal import Journal
from steadyhand_training.metrics import read_json_lines
from steadyhand_training.publish import PublishSettings
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.trainer import Phase, Trainer
from steadyhand_training.trainer_settings import LockstepSettings, TrainerSettings
from steadyhand_training.watch import Warning_, WarningCode

DEADLINE_S = 60.0
TINY = TrainerSettings(
    listen="tcp://127.0.0.1:*",
    status="tcp://127.0.0.1:*",
    demonstrations=2,
    utd_ratio=1.0,
    nice=0,
    checkpoint_every_s=0.2,
    publish=PublishSettings(policy_every_s=0.1, least_updates=4, in_flight_s=0.1),
    learner=LearnerSettings(
        batch=4,
        hidden=16,
        features_per_camera=4,
        shifted_copies=1,
        pretrain_batches=2,
        pretrain_batch=4,
        warmup_updates=2,
    ),
    correction=CorrectionSettings(
        heads=2, first_batches=2, candidate_batches=1, attempts=1, held_out_every=2, fit=FitSettings(batch=8)
    ),
)
LOCKSTEP = dataclasses.replace(TINY, lockstep=LockstepSettings(enabled=True))
DEMONSTRATIONS = [*demonstration(1), *demonstration(2), *demonstration(3, success=False)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Bench:
    """A trainer in this process whose journal is filled by hand and whose turns are taken by hand."""

    def __init__(self, root: Path, settings: TrainerSettings) -> None:
        self.folder = RunFolder(root)
        self.folder.settings.parent.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.sent = 0
        self.trainer = Trainer(settings, self.folder)

    def feed(self, messages: Sequence[object]) -> None:
        journal = Journal(self.folder.journal)
        for record in records(messages, first=self.sent + 1):
            journal.commit("edge", RUN, [record], CONTRACT)
        self.sent += len(messages)
        journal.close()
        self.drain()

    def drain(self) -> None:
        """Turns until nothing is left to do."""
        while self.trainer._turn():
            pass

    def restart(self) -> None:
        """Drop the trainer as a crash would, and start another on the same folder."""
        self.close()
        self.trainer = Trainer(self.settings, self.folder)
        self.trainer._resume()
        self.drain()

    def close(self) -> None:
        self.trainer.close()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.trainer.learner.algorithm.networks().items()}


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[list[Bench]]:
    opened: list[Bench] = []
    yield opened
    for bench in opened:
        bench.close()


def open_bench(benches: list[Bench], root: Path, settings: TrainerSettings = LOCKSTEP) -> Bench:
    benches.append(Bench(root, settings))
    return benches[-1]


def versions(bench: Bench, channel: Channel) -> list[int]:
    return Registry(bench.folder.registry).versions(channel)


def test_it_waits_for_the_demonstrations_and_then_publishes_both_models(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path)
    bench.feed([*demonstration(1), *demonstration(2, success=False)])
    assert bench.trainer.phase is Phase.COLLECT
    assert versions(bench, Channel.POLICY) == []
    bench.feed(demonstration(3))
    assert bench.trainer.phase is Phase.LEARN
    assert (versions(bench, Channel.CLASSIFIER), versions(bench, Channel.POLICY)) == ([1], [1])


def test_demonstrations_that_no_classifier_can_grow_from_leave_it_collecting(
    benches: list[Bench], tmp_path: Path
) -> None:
    bench = open_bench(benches, tmp_path)
    silent = [m for e in (1, 2) for m in demonstration(e) if not hasattr(m, "kind")]
    bench.feed(silent)
    assert bench.trainer.phase is Phase.COLLECT
    assert "press success" in bench.trainer.message
    bench.feed([*demonstration(3), *demonstration(4)])
    assert bench.trainer.phase is Phase.LEARN


def test_updates_follow_the_steps_at_the_ratio(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path, dataclasses.replace(LOCKSTEP, utd_ratio=2.0))
    bench.feed(DEMONSTRATIONS)
    before = bench.trainer.steps_learning
    bench.feed(driven(10, Source.POLICY, count=8))
    assert bench.trainer.steps_learning - before == 9
    assert bench.trainer.learner.updates == 2 * bench.trainer.steps_learning


def test_equal_journals_and_seeds_make_equal_policies_in_lockstep(benches: list[Bench], tmp_path: Path) -> None:
    course = [
        *DEMONSTRATIONS,
        *driven(10, Source.POLICY),
        label(10, 9, LabelKind.FAILURE),
        *driven(11, Source.TAKEOVER),
    ]
    first = open_bench(benches, tmp_path / "a")
    first.feed(course)
    second = open_bench(benches, tmp_path / "b")
    second.feed(course)
    assert first.trainer.learner.updates > 10
    ours, theirs = first.weights(), second.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert versions(first, Channel.POLICY) == versions(second, Channel.POLICY)


def test_a_restart_from_a_checkpoint_makes_no_difference_to_what_is_learned(
    benches: list[Bench], tmp_path: Path
) -> None:
    rest = [*driven(11, Source.TAKEOVER), *driven(12, Source.POLICY, end=EndReason.FAILURE)]
    through = open_bench(benches, tmp_path / "a")
    through.feed([*DEMONSTRATIONS, *driven(10, Source.POLICY), *rest])
    broken = open_bench(benches, tmp_path / "b")
    broken.feed([*DEMONSTRATIONS, *driven(10, Source.POLICY)])
    broken.trainer._save()
    broken.restart()
    broken.feed(rest)
    assert through.trainer.memory.tally == broken.trainer.memory.tally
    assert through.trainer.learner.updates == broken.trainer.learner.updates
    ours, theirs = through.weights(), broken.weights()
    # Frames are encoded again in other batches, which moves the last bits.
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in ours)


def test_a_crash_without_a_checkpoint_learns_again_from_the_journal(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path)
    bench.feed(demonstration(1))
    bench.restart()
    assert bench.trainer.memory.tally.demonstrations == 1
    bench.feed(demonstration(2))
    assert bench.trainer.phase is Phase.LEARN


def test_steps_behind_the_checkpoint_are_learned_from_after_a_crash(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path)
    bench.feed([*DEMONSTRATIONS, *driven(10, Source.POLICY)])
    bench.trainer._save()
    bench.feed(driven(11, Source.TAKEOVER))
    tally, updates = dataclasses.replace(bench.trainer.memory.tally), bench.trainer.learner.updates
    bench.restart()
    assert bench.trainer.memory.tally == tally
    assert bench.trainer.learner.updates == updates
    assert versions(bench, Channel.POLICY) == sorted(set(versions(bench, Channel.POLICY)))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path)
    bench.feed([*DEMONSTRATIONS, *driven(10, Source.POLICY)])
    bench.trainer._save()
    bench.feed(driven(11, Source.TAKEOVER))
    bench.trainer._save()
    newest = sorted(bench.folder.checkpoints.iterdir())[-1]
    (newest / "learner.pt").write_bytes(b"damaged")
    bench.restart()
    assert bench.trainer.phase is Phase.LEARN
    (newest.parent / sorted(os.listdir(newest.parent))[0] / "learner.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="no checkpoint can be read"):
        bench.restart()


def test_a_policy_in_flight_is_released_by_the_robots_answer(benches: list[Bench], tmp_path: Path) -> None:
    settings = dataclasses.replace(
        LOCKSTEP, publish=PublishSettings(policy_every_s=0.1, least_updates=1, in_flight_s=1e6)
    )
    bench = open_bench(benches, tmp_path, settings)
    bench.feed([*DEMONSTRATIONS, *driven(10, Source.POLICY, count=30)])
    assert versions(bench, Channel.POLICY) == [1]
    swap = Swap(Channel.POLICY, 1, 0, SwapOutcome.SWAPPED, "", 7, 700_000_000, 0.01, 0, 0.0)
    bench.feed([swap, *driven(11, Source.POLICY, count=30)])
    assert versions(bench, Channel.POLICY) == [1, 2]
    assert [row["swap"]["version"] for row in read_json_lines(bench.folder.metrics) if row["kind"] == "swap"] == [1]


def test_models_of_another_contract_in_the_run_folder_are_refused(tmp_path: Path) -> None:
    from test_publish import made

    artifact = made(1)
    foreign = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, contract_hash="0" * 16))
    Registry(tmp_path / "registry").publish(foreign)
    with pytest.raises(UserError, match="another contract"):
        Trainer(TINY, RunFolder(tmp_path))


def test_learner_settings_that_cannot_be_are_refused_in_words(tmp_path: Path) -> None:
    backbone = BackboneSettings(file=tmp_path / "none.pt")
    learner = dataclasses.replace(TINY.learner, encoder=Encoders.BACKBONE, backbone=backbone)
    with pytest.raises(UserError, match=r"none\.pt"):
        Trainer(dataclasses.replace(TINY, learner=learner), RunFolder(tmp_path))


def test_what_the_learner_warns_of_is_in_the_status(
    benches: list[Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(benches, tmp_path)
    warned = Warning_(WarningCode.ARM_FROZEN, "The arm stands still.", "Take over.")
    monkeypatch.setattr(bench.trainer.learner, "warnings", lambda: (warned,))
    assert bench.trainer._view().warnings == ("The arm stands still. Take over.",)


def test_one_run_folder_has_one_trainer(tmp_path: Path) -> None:
    with RunFolder(tmp_path).claim(), pytest.raises(UserError, match="another trainer"):
        RunFolder(tmp_path).claim()
    RunFolder(tmp_path).claim().close()


def test_a_folder_that_cannot_be_made_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another"):
        RunFolder(tmp_path / "file" / "run").claim()


class Process:
    """`steadyhand train` as its users run it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        config = root / "train.toml"
        config.write_text(toml.to_toml(dataclasses.replace(TINY, run=root)))
        self.log = (root / "trainer.log").open("ab")
        command = [sys.executable, "-m", "steadyhand_training.train", "--config", str(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.child = subprocess.Popen(command, stderr=self.log, env=environment)

    def addresses(self) -> dict[str, Any]:
        """Waits until this very process says where it listens."""
        return wait_for(self._addresses, "the trainer's address", self)

    def _addresses(self) -> dict[str, Any] | None:
        path = RunFolder(self.root).address
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return found if found.get("pid") == self.child.pid else None

    def end(self, number: signal.Signals) -> int:
        self.child.send_signal(number)
        code = self.child.wait(DEADLINE_S)
        self.log.close()
        return code


def wait_for(look: Any, what: str, process: Process) -> Any:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if (found := look()) is not None:
            return found
        assert process.child.poll() is None, (process.root / "trainer.log").read_text()[-2000:]
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come: {(process.root / 'trainer.log').read_text()[-2000:]}")


class Edge(Robot):
    """A robot that hears everything and remembers the newest model of each channel."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.models = dict.fromkeys(Channel, 0)
        self.acked = 0

    def pump(self) -> None:
        while self.socket.poll(20):
            message: Any = wire.decode(self.socket.recv(), Welcome, Ack, ModelNotice)
            if isinstance(message, ModelNotice):
                self.models[message.channel] = max(self.models[message.channel], message.version)
            else:
                self.acked = message.number if isinstance(message, Ack) else message.acked

    def until(self, holds: Any, what: str, process: Process) -> None:
        def look() -> bool | None:
            self.pump()
            return True if holds() else None

        wait_for(look, what, process)


def last_status(root: Path) -> dict[str, Any]:
    return [row for row in read_json_lines(RunFolder(root).metrics) if row["kind"] == "status"][-1]


def test_killed_in_the_middle_it_loses_no_step_doubles_none_and_learns_on(tmp_path: Path) -> None:
    course = [m for e in range(10, 22) for m in driven(e, Source.POLICY)]
    stream = records([*DEMONSTRATIONS, *course])
    half = len(DEMONSTRATIONS) + len(course) // 2
    process = Process(tmp_path)
    edge = Edge(process.addresses()["link"])
    edge.send(HELLO)
    edge.send(Records(stream[: len(DEMONSTRATIONS)]))
    edge.until(lambda: edge.models[Channel.POLICY] >= 1, "the first policy", process)
    assert edge.models[Channel.CLASSIFIER] == 1
    edge.send(Records(stream[len(DEMONSTRATIONS) : half]))
    edge.until(lambda: edge.models[Channel.POLICY] >= 2 and edge.acked == half, "a learned policy", process)
    process.end(signal.SIGKILL)
    edge.close()
    killed_at = edge.models[Channel.POLICY]
    before = last_status(tmp_path)

    process = Process(tmp_path)
    edge = Edge(process.addresses()["link"])
    edge.send(HELLO)
    edge.until(lambda: edge.acked == half, "its memory of what was committed", process)
    edge.send(Records(stream[half - 10 :]))  # ten again, as after a lost acknowledgement
    edge.until(lambda: edge.models[Channel.POLICY] > killed_at and edge.acked == len(stream), "the rest", process)
    edge.until(lambda: last_status(tmp_path)["updates"] > before["updates"], "learning on", process)
    assert process.end(signal.SIGTERM) == 0
    edge.close()

    journal = Journal(RunFolder(tmp_path).journal)
    assert [e.number for e in journal.replay()] == list(range(1, len(stream) + 1))
    assert journal.counts().duplicates == 10
    last = last_status(tmp_path)
    assert last["steps"] == journal.counts().steps
    published = Registry(RunFolder(tmp_path).registry)
    assert published.newest(Channel.POLICY) == last["policy_version"] > killed_at
    assert published.manifest(Channel.POLICY, last["policy_version"]).training_step == last["updates"]
    TrainerStatus(**{f.name: last[f.name] for f in dataclasses.fields(TrainerStatus)})
    with pytest.raises(ArtifactError):
        published.manifest(Channel.POLICY, last["policy_version"] + 1)
