"""The probe's scripted episodes and their truth, and classifiers judged by them and as those who end episodes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_models
import pytest

from steadyhand_models.artifact import Artifact
from steadyhand_models.cli import UserError
from steadyhand_models.registry import Registry
from steadyhand_runtime.sim import probe
from steadyhand_runtime.sim.evaluation import EvaluateSettings, evaluate
from steadyhand_runtime.sim.light import Light
from steadyhand_runtime.sim.probe import Frames

pytest.importorskip("mujoco")
TASK = onnx_models.lift()
CONTRACT = TASK.contract()
DARK = Light(intensity=0.2, ambient=0.1)


@pytest.fixture(scope="module")
def four() -> Frames:
    """One episode of each turn, under the usual light."""
    return probe.record(TASK, 4, 5, Light(), lambda done: None)


def classifier(threshold: float, version: int = 1) -> Artifact:
    """One that calls a picture a success when it is bright enough."""
    return onnx_models.classifier(CONTRACT, version, threshold=threshold)


def registry(folder: Path, *artifacts: Artifact) -> Path:
    for artifact in artifacts:
        Registry(folder / "registry").publish(artifact)
    return folder / "registry"


def brightness(frames: Frames) -> float:
    return float(frames.frames.mean()) / 255


def test_clean_lifts_succeed_and_the_other_manners_never_do(four: Frames) -> None:
    won = [bool(four.success[four.episode == e].any()) for e in (1, 2, 3, 4)]
    assert won == [True, False, True, False]
    assert four.frames.shape[1:] == CONTRACT.frames_shape and len(four.frames) == len(four.success)
    first = four.success[four.episode == 1]
    assert not first[:8].any() and first[-5:].all()


def test_only_frames_near_the_height_of_success_are_unclear(four: Frames) -> None:
    unclear = np.flatnonzero(~four.clear)
    assert len(unclear) < 0.1 * len(four.clear)
    turns = np.flatnonzero(np.diff(four.success.astype(int)))
    assert all(np.abs(turns - at).min() <= 2 for at in unclear)


def test_equal_seeds_give_the_same_episodes_under_any_light(four: Frames) -> None:
    again = probe.record(TASK, 2, 5, DARK, lambda done: None)
    count = len(again.success)
    assert np.array_equal(again.success, four.success[:count])
    assert brightness(again) < 0.6 * brightness(four)


def test_a_classifier_that_always_fires_finds_all_and_ends_every_episode_falsely(four: Frames) -> None:
    verdict = probe.judge(classifier(0.01), four, TASK)
    assert (verdict.found, verdict.false) == (verdict.positives, verdict.negatives)
    assert verdict.positives == int((four.success & four.clear).sum())
    assert (verdict.false_episodes, verdict.episodes_without) == (2, 2)
    assert verdict.balanced_accuracy == pytest.approx(0.5)


def test_a_classifier_is_judged_by_its_own_threshold(four: Frames) -> None:
    mean = four.frames.mean((1, 2, 3, 4), dtype=np.float64) / 255
    said = mean > np.median(mean)
    verdict = probe.judge(classifier(float(np.median(mean))), four, TASK)
    assert verdict.found == int((said & four.success & four.clear).sum())
    assert verdict.false == int((said & ~four.success & four.clear).sum())


def test_the_command_keeps_its_frames_and_judges_every_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, four: Frames
) -> None:
    frames, result = tmp_path / "probe.npz", tmp_path / "verdicts.json"
    probe.write(frames, four)
    monkeypatch.setattr(probe, "record", lambda *_: pytest.fail("the frames were there"))
    root = registry(tmp_path, classifier(0.01, 1), classifier(0.99, 2))
    words = ["--registry", str(root), "--frames", str(frames), "--json", str(result)]
    assert probe.main(words) == 0
    data = json.loads(result.read_text())
    assert [(v["version"], v["found"] > 0) for v in data["verdicts"]] == [(1, True), (2, False)]
    assert data["positives"] + data["negatives"] + data["unclear"] == len(four.success)


def test_a_file_that_is_no_probe_of_this_task_is_refused(tmp_path: Path, four: Frames) -> None:
    (broken := tmp_path / "broken.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="remove it to make a new one"):
        probe.read(broken, TASK)
    probe.write(other := tmp_path / "other.npz", dataclasses.replace(four, frames=four.frames[:, :1]))
    with pytest.raises(UserError, match="of another task"):
        probe.read(other, TASK)


def test_an_episode_that_the_classifier_ends_without_a_lift_is_a_false_success(tmp_path: Path) -> None:
    root = registry(tmp_path, onnx_models.policy(CONTRACT, 1, bias=0.0), classifier(0.01))
    alone = EvaluateSettings(registry=root, episodes=2, seed=4)
    result = evaluate(dataclasses.replace(alone, classifier=0), lambda judged: None)
    assert result["classifier_version"] == 1 and result["false_successes"] == 2 and result["successes"] == 0
    assert all(e["end"] == "success" and e["by_classifier"] and e["steps"] <= 3 for e in result["episodes"])
    places = [(e["cube_x_m"], e["cube_y_m"]) for e in result["episodes"]]
    result = evaluate(dataclasses.replace(alone, episodes=1), lambda judged: None)
    assert result["classifier_version"] is None and result["false_successes"] == 0
    assert places[0] == (result["episodes"][0]["cube_x_m"], result["episodes"][0]["cube_y_m"])


def test_an_evaluation_is_run_under_the_light_that_it_names(tmp_path: Path, four: Frames) -> None:
    """The classifier fires under the light that it knows and is silent once the lamp has dimmed."""
    root = registry(tmp_path, onnx_models.policy(CONTRACT, 1, bias=0.0), classifier(0.8 * brightness(four)))
    chosen = EvaluateSettings(registry=root, episodes=1, seed=4, classifier=1, light="moved_lamp", at_step=1999)
    before = evaluate(chosen, lambda judged: None)
    after = evaluate(dataclasses.replace(chosen, at_step=2000), lambda judged: None)
    assert [r["episodes"][0]["by_classifier"] for r in (before, after)] == [True, False]
