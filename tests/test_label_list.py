"""Every word of a run is listed with who said it, when and how, of which frames, and whether it stands."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from offline_runs import fill
from rich.console import Console
from training_steps import TASK, demonstration, driven, label

from steadyhand_models.messages import LabelKind, Source
from steadyhand_training import dataset, label_list
from steadyhand_training.label_list import Said, gather, spans


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A demonstration; an episode that was called a failure; one of which the word was taken back."""
    wrong = label(3, 9, LabelKind.VERDICT_FAILURE)
    undo = label(3, 10, LabelKind.UNDO, undo_of=wrong.event_id)
    messages = [
        *demonstration(1),
        *driven(2, Source.POLICY),
        label(2, 9, LabelKind.VERDICT_FAILURE),
        *driven(3, Source.POLICY),
        wrong,
        undo,
    ]
    return fill(tmp_path / "run", messages)


def words(run: Path, episode: int = 0) -> list[Said]:
    return gather(dataset.read([run], TASK), episode)


def test_every_word_says_what_it_is_about_and_what_was_taken_back_stays_listed(run: Path) -> None:
    found = words(run)
    assert [(w.episode, w.word, w.stands) for w in found] == [
        (1, "success", True),
        (2, "verdict_failure", True),
        (3, "verdict_failure", False),
    ]
    shown, denied, _ = found
    assert shown.positive and shown.negative and max(shown.negative) < min(shown.positive)
    assert not denied.positive and denied.negative == tuple(range(len(denied.negative)))
    assert all(w.who and w.device and w.at_s > 0 for w in found)


def test_one_episode_can_be_asked_for(run: Path) -> None:
    assert [w.episode for w in words(run, episode=2)] == [2]


def test_the_table_and_the_json_hold_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    label_list.show(words(run), Console(file=out, width=200))
    assert "undone" in out.getvalue() and "3 words, 2 of them stand" in out.getvalue()
    assert label_list.main(["--run", str(run), "--task", TASK.name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [w["episode"] for w in told] == [1, 2, 3] and told[2]["stands"] is False


@pytest.mark.parametrize(("frames", "shown"), [((), ""), ((4,), "4"), ((0, 1, 2, 5, 7, 8), "0-2, 5, 7-8")])
def test_frames_in_a_row_are_shown_as_one_span(frames: tuple[int, ...], shown: str) -> None:
    assert spans(frames) == shown
