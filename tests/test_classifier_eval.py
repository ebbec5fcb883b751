"""A classifier on episodes that it did not learn from: by light, phase and episode, by labels or by truth."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_runs import fill, lessons, publish, write_truth
from PIL import Image
from test_correction import QUICK
from training_steps import CONTRACT, TASK, demonstration, driven

from steadyhand_models import cli
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Source
from steadyhand_training import checkpoint, classifier_eval, dataset, holdout
from steadyhand_training.correction import Correction
from steadyhand_training.journal import Journal
from steadyhand_training.labels import Ledger
from steadyhand_training.memory import Memory
from steadyhand_training.replay import Replay
from steadyhand_training.run_folder import RunFolder

EVERYTHING, RIGHT = -500.0, 130.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four demonstrations, three failures, one silent episode; v1 sees success everywhere, v2 truly."""
    root = fill(tmp_path / "run", [*lessons(4, 3), *driven(8, Source.POLICY)])
    publish(root, EVERYTHING, RIGHT)
    return root


def judge(run: Path, *words: str) -> dict[str, Any]:
    out = run.parent / "figures.json"
    assert classifier_eval.main(["--run", str(run), "--json", str(out), *words]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def group(found: dict[str, Any], kind: str, name: str = "") -> dict[str, Any]:
    return next(g for g in found["groups"] if g["kind"] == kind and name in g["name"])


def test_figures_are_over_all_then_by_light_phase_and_episode(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = judge(run, "--version", "2", "--all")
    everything = group(found, "all")
    assert (everything["positive"], everything["accuracy"], everything["balanced_accuracy"]) == (28, 1.0, 1.0)
    assert {g["kind"] for g in found["groups"]} == {"all", "light", "phase", "episode"}
    by_phase = [g for g in found["groups"] if g["kind"] == "phase"]
    assert [g["name"] for g in by_phase] == ["approach", "grasp", "lift"]
    assert sum(g["negative"] for g in by_phase) == everything["negative"]
    assert sum(g["negative"] for g in found["groups"] if g["kind"] == "light") == everything["negative"]
    assert len([g for g in found["groups"] if g["kind"] == "episode"]) == 7  # nobody spoke of the eighth
    text = capsys.readouterr().out
    assert "7 of 7 episodes without a mistake" in text and "false positives" in text


def test_a_classifier_that_sees_success_everywhere_is_shown_as_that(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = judge(run, "--version", "1", "--all")
    everything = group(found, "all")
    assert everything["recall"] == 1.0 and everything["balanced_accuracy"] == 0.5
    assert everything["false_positive_rate"]["value"] == 1.0
    assert everything["false_success_episodes"]["false"] == everything["false_success_episodes"]["refuted"] == 7
    assert everything["calibration_error"] > 0.5
    assert "a false success" in capsys.readouterr().out


def test_the_newest_version_is_judged_when_none_is_named(run: Path) -> None:
    assert judge(run, "--all")["classifier"] == "v2"


def test_without_knowing_what_taught_it_only_all_episodes_will_do(run: Path) -> None:
    with pytest.raises(UserError, match="--all"):
        judge(run, "--version", "2")


def corrected(run: Path) -> Correction:
    """A trainer's correction after its first fit from a run, with a checkpoint in the run's folder."""
    folder = RunFolder(run)
    memory = Memory(Replay(CONTRACT, 1000), Ledger())
    journal = Journal(folder.journal)
    for entry in journal.replay():
        memory.consume(entry)
    journal.close()
    made = Correction(CONTRACT, TASK, memory.replay, memory.ledger, QUICK, 0)
    made.first_fit()
    checkpoint.save(folder.checkpoints, lambda where: made.save(where / "correction.pt"))
    return made


def test_episodes_that_a_trainer_held_out_are_what_its_classifier_is_judged_by(run: Path) -> None:
    made = corrected(run)
    held_out = set(made.evidence.held_out())
    found = judge(run, "--version", "2")
    shown = {int(g["name"].split()[-1]) for g in found["groups"] if g["kind"] == "episode"}
    assert shown == held_out and found["held_out"] is True
    data = dataset.read([run], TASK)
    unseen = holdout.unseen(data, RunFolder(run).registry / "classifier" / "v000002")
    assert unseen is not None
    # Of the silent episode it learned nothing either.
    assert {e.origin.episode.number for e in unseen} == held_out | {8}


def test_a_run_that_it_was_not_learned_in_is_new_to_it_as_a_whole(run: Path) -> None:
    corrected(run)
    other = fill(run.parent / "other", lessons(2, 1))
    found = judge(other, "--registry", str(RunFolder(run).registry), "--all")
    assert len([g for g in found["groups"] if g["kind"] == "episode"]) == 3
    both = dataset.read([run, other], TASK)
    unseen = holdout.unseen(both, RunFolder(run).registry / "classifier" / "v000002")
    assert unseen is not None and [e.origin.folder for e in unseen].count(other) == 3


def test_truth_judges_frames_that_nobody_spoke_of_and_says_that_it_does(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"truth\.csv"):
        judge(run, "--version", "2", "--all", "--by", "truth")
    write_truth(run, [*lessons(4, 3), *driven(8, Source.POLICY)])
    found = judge(run, "--version", "2", "--all", "--by", "truth")
    everything = group(found, "all")
    assert found["by"] == "truth"
    assert len([g for g in found["groups"] if g["kind"] == "episode"]) == 8
    assert everything["positive"] + everything["negative"] == 4 * 17 + 4 * 9
    assert everything["accuracy"] == 1.0
    assert "independent check" in " ".join(capsys.readouterr().out.split())


def test_lights_are_told_apart(tmp_path: Path) -> None:
    bright = [
        dataclasses.replace(m, frames=np.clip(m.frames.astype(np.int64) + 40, 0, 255).astype(np.uint8))
        if hasattr(m, "frames")
        else m
        for m in demonstration(9)
    ]
    root = fill(tmp_path / "run", [*demonstration(1), *bright])
    publish(root, RIGHT)
    found = judge(root, "--all")
    assert [g["name"] for g in found["groups"] if g["kind"] == "light"] == ["light 1", "light 2"]


def test_the_gallery_is_written_where_it_was_wanted(run: Path, tmp_path: Path) -> None:
    judge(run, "--version", "1", "--all", "--gallery", str(tmp_path / "worst.html"), "--gallery-frames", "15")
    page = (tmp_path / "worst.html").read_text()
    assert page.count("<img") == 15 and "said by ann: verdict failure" in page and "said by ann: success" in page
    judge(run, "--version", "1", "--all", "--gallery", str(tmp_path / "worst.png"))
    assert Image.open(tmp_path / "worst.png").width > 300


def test_a_run_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classifier", "eval"]) == 1
    assert "give --run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "eval", "replay"])
def test_every_command_is_listed_and_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["classifier", "--help"]) == 0
    assert f"\n  {command} " in capsys.readouterr().out
    words = [sys.executable, "-m", "steadyhand_models.cli", "classifier", command, "--help"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0
    assert f"Example: steadyhand classifier {command} " in " ".join(result.stdout.split())
