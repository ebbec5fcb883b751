"""A past run under another classifier: which episodes would have come out otherwise."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_runs import by_brightness, fill, lessons, publish, refuted
from training_steps import TASK, demonstration, label

from steadyhand_models import cli
from steadyhand_models.artifact import ArtifactError, digest
from steadyhand_models.cli import UserError
from steadyhand_models.messages import LabelKind
from steadyhand_training import classifier_replay, dataset
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.scoring import Scorer

EVERYTHING, RIGHT, NOTHING = -500.0, 130.0, 700.0  # levels of brightness from which a frame is a success


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four demonstrations that succeed at step 10, two failures; v1 sees success everywhere, v2 truly, v3 nowhere."""
    fill(tmp_path / "run", lessons(4, 2))
    publish(tmp_path / "run", EVERYTHING, RIGHT, NOTHING)
    return tmp_path / "run"


def replay(run: Path, *words: str) -> dict[str, Any]:
    out = run.parent / "changes.json"
    assert classifier_replay.main(["--run", str(run), "--json", str(out), *words]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_episodes_that_a_version_loses_gains_and_moves_are_listed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replay(run, "--version", "2", "--against", "1")
    # K = 3: seen everywhere, success is at step 2; truly it is at step 12, the third bright frame.
    assert found["totals"] == {"same": 0, "gained": 0, "lost": 2, "moved": 4}
    first = found["episodes"][0]
    assert (first["before"], first["after"], first["change"], first["said"]) == (2, 12, "moved", True)
    assert found["agreed"] == {"before": 4, "after": 6} and found["judged"] == 6
    text = capsys.readouterr().out
    assert "success at step 12" in text and "is no success any more: 2" in text
    assert replay(run, "--version", "1", "--against", "2")["totals"]["gained"] == 2


def test_a_version_against_itself_changes_nothing(run: Path) -> None:
    assert replay(run, "--version", "2", "--against", "2")["totals"] == {"same": 6, "gained": 0, "lost": 0, "moved": 0}


def test_without_another_version_the_recording_is_what_counts(run: Path) -> None:
    found = replay(run, "--version", "3")
    assert found["before"] == classifier_replay.RECORDING
    assert [e["before"] for e in found["episodes"]] == [16, 16, 16, 16, None, None]
    assert found["totals"]["lost"] == 4


def test_the_newest_version_is_taken_when_none_is_named(run: Path) -> None:
    assert replay(run)["after"] == "v3"


def test_words_of_people_win_where_they_are_asked_for(run: Path) -> None:
    found = replay(run, "--version", "3", "--words")
    # The key was pressed on frame 10: from there on it is a success whatever the classifier says.
    assert [e["after"] for e in found["episodes"]] == [10, 10, 10, 10, None, None]


def test_the_rule_is_the_manifests_debounce_included(tmp_path: Path) -> None:
    fill(tmp_path, demonstration(1))
    data = dataset.read([tmp_path], TASK)
    steps = classifier_replay.under(data, Scorer(by_brightness(RIGHT), TASK.contract()), words=False)
    assert steps == [10 + TASK.debounce_frames - 1]


def test_replay_leaves_the_run_as_it_was(run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    replay(run, "--version", "1")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_an_undone_verdict_is_no_word(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", [*refuted(1), label(1, 20, LabelKind.UNDO)])
    publish(run, RIGHT)
    assert replay(run)["judged"] == 0


def test_a_version_that_is_not_there_names_those_that_are(run: Path) -> None:
    with pytest.raises(ArtifactError, match="v1, v2, v3"):
        classifier_replay.main(["--run", str(run), "--version", "9"])


def test_a_run_without_a_classifier_says_how_to_name_one(tmp_path: Path) -> None:
    fill(tmp_path, demonstration(1))
    with pytest.raises(UserError, match="--artifact FOLDER"):
        classifier_replay.main(["--run", str(tmp_path)])
    with pytest.raises(UserError, match="give --run"):
        classifier_replay.main([])


def test_a_damaged_artifact_is_not_believed(run: Path) -> None:
    folder = RunFolder(run).registry / "classifier" / "v000002"
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="sha256"):
        classifier_replay.main(["--run", str(run), "--version", "2"])


def test_an_artifact_that_does_not_repeat_its_golden_vectors_is_not_believed() -> None:
    made = by_brightness(RIGHT)
    golden = dataclasses.replace(made.golden, output=made.golden.output + 0.01)
    forged = dataclasses.replace(
        made, golden=golden, manifest=dataclasses.replace(made.manifest, sha256=digest(made.model, golden))
    )
    with pytest.raises(ArtifactError, match="golden vectors"):
        Scorer(forged, TASK.contract())


def test_without_onnxruntime_the_same_comes_out_more_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset.read([fill(tmp_path, demonstration(1))], TASK)
    frames = data.frames(data.episodes[0].rows[8:12])
    by_runtime = Scorer(by_brightness(RIGHT), TASK.contract()).probabilities(frames)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert np.allclose(Scorer(by_brightness(RIGHT), TASK.contract()).probabilities(frames), by_runtime, atol=1e-5)


def test_a_folder_that_is_no_artifact_names_its_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classifier", "replay", "--run", str(run), "--artifact", str(run)]) == 1
    assert "manifest.json" in capsys.readouterr().err
