"""Collecting: frames and places are counted, the last episode can be taken back, and training goes on from it."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_ingest import HELLO, Robot
from test_trainer import TINY
from training_steps import CONTRACT, RUN, TASK, demonstration, driven, label, records

from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import EndReason, LabelKind, Records, Source, Step, TrainerStatus
from steadyhand_training import collect
from steadyhand_training.collect import Collector, CollectSettings
from steadyhand_training.collection import COLUMNS, ROWS, Collection
from steadyhand_training.discards import Discards, Episode
from steadyhand_training.journal import Journal
from steadyhand_training.metrics import read_json_lines
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.status import build
from steadyhand_training.trainer import Phase, Trainer

CHOSEN = CollectSettings(
    listen="tcp://127.0.0.1:*", status="tcp://127.0.0.1:*", demonstrations=2, positive_frames=8, negative_frames=10
)


def fill(root: Path, messages: list[object], first: int = 1) -> None:
    journal = Journal(RunFolder(root).journal)
    journal.commit("edge", RUN, list(records(messages, first)), CONTRACT)
    journal.close()


def collected(root: Path) -> Collection:
    collection = Collection(TASK, Discards(RunFolder(root).discards))
    journal = Journal(RunFolder(root).journal)
    collection.take_in(journal.replay())
    journal.close()
    return collection


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    made = Collector(dataclasses.replace(CHOSEN, run=tmp_path), RunFolder(tmp_path))
    made.start()
    yield made
    made.close()


def test_demonstrations_and_labelled_frames_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, [*demonstration(1), *demonstration(2, success=False), *driven(3, Source.POLICY)])
    progress = collected(tmp_path).progress()
    assert (progress.demonstrations, progress.failed) == (1, 1)
    assert progress.positive == 7  # the frames held after success
    assert progress.negative > 10
    assert 0 < progress.brightness[0] <= progress.brightness[1] < 255


def at(steps: list[object], x_m: float, y_m: float) -> list[object]:
    """The same steps with the tip low above one place."""
    names = [field.name for field in CONTRACT.state]
    moved: list[object] = []
    for message in steps:
        if isinstance(message, Step):
            state = message.state.copy()
            state[[names.index(f"tip_{axis}") for axis in "xyz"]] = (x_m, y_m, 0.02)
            message = dataclasses.replace(message, state=state)
        moved.append(message)
    return moved


def test_places_are_where_the_arm_went_low(tmp_path: Path) -> None:
    lo, hi = TASK.workspace.lo_m, TASK.workspace.hi_m
    near_right, far_left = (lo[0] + 0.001, lo[1] + 0.001), (hi[0] - 0.001, hi[1] - 0.001)
    fill(
        tmp_path,
        [*at(demonstration(1), *near_right), *at(demonstration(2), *far_left), *at(demonstration(3), *far_left)],
    )
    progress = collected(tmp_path).progress()
    assert progress.places == 2
    assert progress.cells[0, 0] == 1 and progress.cells[ROWS - 1, COLUMNS - 1] == 2


def test_the_last_episode_can_be_taken_back_and_counted_again(collector: Collector, tmp_path: Path) -> None:
    fill(tmp_path, [*demonstration(1), *demonstration(2)])
    collector.turn(0.0)
    collector.undo()
    assert collector.collection.progress().demonstrations == 1
    assert "episode 2 is taken back" in collector.message
    collector.undo()
    collector.undo()
    assert collector.collection.progress().demonstrations == 0 and "no episode" in collector.message
    collector.redo()
    assert collector.collection.progress().demonstrations == 1 and "episode 1 counts again" in collector.message
    assert [Discards(RunFolder(tmp_path).discards).restore(), collector.discarded] == [Episode("edge", RUN, 2), 1]


def test_a_discarded_episode_stays_in_the_journal_and_out_of_training(tmp_path: Path) -> None:
    fill(tmp_path, [*demonstration(1), *demonstration(2), *demonstration(3)])
    Discards(RunFolder(tmp_path).discards).add(Episode("edge", RUN, 2))
    trainer = Trainer(dataclasses.replace(TINY, demonstrations=3), RunFolder(tmp_path))
    try:
        while trainer._turn():
            pass
        assert trainer.phase is Phase.COLLECT
        assert trainer.memory.tally.demonstrations == 2 and trainer.memory.replay.episodes == [1, 3]
    finally:
        trainer.close()
    journal = Journal(RunFolder(tmp_path).journal)
    assert len(journal.episode(RUN, 2)) == 17
    journal.close()


def test_what_was_collected_over_the_link_is_what_training_begins_with(tmp_path: Path) -> None:
    collector = Collector(dataclasses.replace(CHOSEN, run=tmp_path, until_enough=True), RunFolder(tmp_path))
    collector.start()
    robot = Robot(collector._ingest.endpoint)
    try:
        robot.send(HELLO)
        robot.send(Records(records([*demonstration(1), *demonstration(2), *demonstration(3, success=False)])))
        stop = threading.Event()
        watchdog = threading.Timer(60.0, stop.set)
        watchdog.start()
        collect.serve(collector, stop, Console(quiet=True))
        watchdog.cancel()
        assert collector.enough and not stop.is_set()
    finally:
        robot.close()
        collector.close()
    assert not RunFolder(tmp_path).address.exists()
    statuses = [row for row in read_json_lines(RunFolder(tmp_path).metrics) if row["kind"] == "status"]
    assert statuses[-1]["phase"] == "collect" and statuses[-1]["metrics"]["positive_frames"] >= 8
    trainer = Trainer(dataclasses.replace(TINY, failed_demonstrations=1), RunFolder(tmp_path))
    try:
        while trainer._turn():
            pass
        assert trainer.phase is Phase.LEARN
    finally:
        trainer.close()


def test_the_view_says_how_much_is_missing(collector: Collector, tmp_path: Path) -> None:
    fill(tmp_path, demonstration(1))
    collector.turn(0.0)
    text = collect.line(collector)
    assert "demonstrations 1 of 2" in text and "demonstration 1: 17 steps, success" in text
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(collect.table(collector))
    shown = console.export_text()
    assert "none connected yet" in shown and collect.KEYS in shown and f"1 of {ROWS * COLUMNS} parts" in shown


@pytest.mark.parametrize(("key", "effect"), [("u", 0), ("r", 1), ("x", 1)])
def test_keys_do_what_the_caption_says(collector: Collector, tmp_path: Path, key: str, effect: int) -> None:
    fill(tmp_path, demonstration(1))
    collector.turn(0.0)
    stop = threading.Event()
    collect.press(collector, key, stop)
    assert collector.collection.progress().demonstrations == effect and not stop.is_set()
    collect.press(collector, "q", stop)
    assert stop.is_set()


def test_labels_that_come_after_the_episode_change_its_count(collector: Collector, tmp_path: Path) -> None:
    episode: list[object] = list(driven(1, Source.POLICY, end=EndReason.TIMEOUT))
    fill(tmp_path, episode)
    collector.turn(0.0)
    assert collector.collection.progress().negative == 0
    fill(tmp_path, [label(1, 20, LabelKind.VERDICT_FAILURE)], first=len(episode) + 1)
    collector.turn(0.0)
    assert collector.collection.progress().negative == 9


def test_a_broken_list_of_discards_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).discards
    path.write_text('[{"edge": 1}]')
    with pytest.raises(UserError, match="remove it to keep all"):
        Discards(path)


def test_the_status_of_collecting_is_one_that_trainers_send(collector: Collector) -> None:
    status = build(collector._view(), 0.0, 1)
    assert wire.decode(wire.encode(status), TrainerStatus).phase == "collect"
    assert np.isfinite(status.utd_ratio)


def test_light_and_phases_of_what_is_labelled_are_counted(collector: Collector, tmp_path: Path) -> None:
    dim = [
        dataclasses.replace(m, frames=m.frames // 3) if isinstance(m, Step) else m
        for m in demonstration(2, success=False)
    ]
    fill(tmp_path, [*demonstration(1, success=False), *dim])
    collector.turn(0.0)
    progress = collector.collection.progress()
    assert progress.lights == 2
    assert progress.phases.sum(axis=0).tolist() == [progress.positive, progress.negative] == [0, 22]
    shown = dict(collect.rows(collector))
    assert shown["light"].startswith("2 lights") and "approach" in shown["phases"]
