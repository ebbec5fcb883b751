"""Recorded runs are read side by side, each with its own words, and nothing of them is changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from offline_runs import fill, lessons, refuted, write_truth
from training_steps import RUN, TASK, demonstration, driven, label

from steadyhand_models.cli import UserError
from steadyhand_models.messages import EndReason, LabelKind, Source
from steadyhand_training import dataset
from steadyhand_training.discards import Discards, Episode
from steadyhand_training.run_folder import RunFolder


def test_episodes_have_their_labels_and_those_nobody_spoke_of_have_none(tmp_path: Path) -> None:
    fill(tmp_path, [*demonstration(1), *refuted(2), *driven(3, Source.POLICY)])
    data = dataset.read([tmp_path], TASK)
    shown, failed, silent = data.episodes
    assert (shown.labels > 0).sum() == 7 and (shown.labels < 0).any()
    assert (failed.labels < 0).all() and failed.end is EndReason.TIMEOUT
    assert not silent.spoken_of
    assert [e.origin.episode.number for e in data.spoken_of] == [1, 2]


def test_an_undo_in_one_run_leaves_the_words_of_another_alone(tmp_path: Path) -> None:
    undo = label(2, 50, LabelKind.UNDO, event_id="undo")
    one = fill(tmp_path / "one", [*refuted(1), *refuted(2), undo])
    other = fill(tmp_path / "other", [*refuted(1), *refuted(2)])
    data = dataset.read([one, other], TASK)
    assert [e.spoken_of for e in data.episodes] == [True, False, True, True]


def test_rows_find_their_frames_in_whichever_run_they_are(tmp_path: Path) -> None:
    messages = [*demonstration(1), *refuted(2)]
    one, other = fill(tmp_path / "one", messages[:18]), fill(tmp_path / "other", messages[18:])
    data = dataset.read([one, other], TASK)
    steps = [m for m in messages if not hasattr(m, "event_id")]
    rows = np.concatenate([e.rows for e in data.episodes])
    picked = np.array([20, 3, 11])
    assert list(rows) == list(range(len(steps)))
    assert (data.frames(picked) == np.stack([steps[i].frames for i in picked])).all()


def test_discarded_episodes_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, lessons(2, 1))
    Discards(RunFolder(tmp_path).discards).add(Episode("edge", RUN, 2))
    assert [e.origin.episode.number for e in dataset.read([tmp_path], TASK).episodes] == [1, 3]


def test_a_frame_names_the_last_word_that_made_its_label(tmp_path: Path) -> None:
    later = dataclasses.replace(label(1, 30, LabelKind.FAILURE), who="bob")
    first = label(1, 20, LabelKind.VERDICT_FAILURE)
    fill(tmp_path, [*driven(1, Source.POLICY), first, later])
    data = dataset.read([tmp_path], TASK)
    assert data.said_by(data.episodes[0], 0) == later
    fill(tmp_path / "silent", driven(1, Source.POLICY))
    silent = dataset.read([tmp_path / "silent"], TASK)
    assert silent.said_by(silent.episodes[0], 0) is None


def test_truth_is_joined_by_stamp_and_unknown_without_a_file(tmp_path: Path) -> None:
    messages = demonstration(1)
    fill(tmp_path, messages)
    data = dataset.read([tmp_path], TASK)
    assert not data.truth(data.episodes[0]).any()
    write_truth(tmp_path, messages)
    truth = data.truth(data.episodes[0])
    assert (truth[:10] == -1).all() and (truth[10:] == 1).all()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no journal there"):
        dataset.read([tmp_path], TASK)
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_task_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, demonstration(1))
    other = dataclasses.replace(TASK, rate_hz=20.0)
    with pytest.raises(UserError, match="recorded for another task"):
        dataset.read([tmp_path], other)
