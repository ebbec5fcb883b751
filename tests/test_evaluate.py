"""The evaluation's figures, and what it says when the simulation cannot help."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import av
import pytest
from test_publish import made
from test_report import LENGTH, episode, fill_journal
from training_steps import label

from steadyhand_models.artifact import ArtifactError
from steadyhand_models.cli import UserError
from steadyhand_models.messages import EndReason, LabelKind
from steadyhand_models.registry import Registry
from steadyhand_training import evaluate, video
from steadyhand_training.evaluate import EvaluateSettings, summarise

# Stands in for `steadyhand`: writes the words it got and three episodes.
FAKE = """
import json, sys
words = sys.argv[1:]
options = dict(zip(words[2::2], words[3::2]))
assert words[:2] == ["sim", "evaluate"], words
rows = [{"success": True, "steps": 10}, {"success": False, "steps": 60}, {"success": True, "steps": 20}]
open(options["--json"], "w").write(json.dumps({"episodes": rows, "options": options}))
"""


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    for version in (1, 2):
        Registry(tmp_path / "registry").publish(made(version))
    return tmp_path / "registry"


def simulate_with(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(evaluate, "STEADYHAND", (sys.executable, "-c", code))


def test_success_comes_with_its_interval_and_times() -> None:
    rows = [{"success": i < 90, "steps": 20 + i % 2} for i in range(100)]
    result = summarise(rows, 10.0, 7, 1234, 5)
    assert (result.version, result.training_step, result.episodes, result.successes) == (7, 1234, 100, 90)
    assert result.success_lo < 0.9 == result.success_rate < result.success_hi
    assert result.time_to_success_mean_s == pytest.approx(2.05)


def test_without_a_success_there_is_no_time_to_it() -> None:
    result = summarise([{"success": False, "steps": 60}], 10.0, 1, 0, 0)
    assert result.success_rate == 0.0 and math.isnan(result.time_to_success_p50_s)


def test_the_newest_policy_is_evaluated_and_the_result_written(
    monkeypatch: pytest.MonkeyPatch, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_with(monkeypatch, FAKE)
    result = tmp_path / "result.json"
    words = ["--registry", str(registry), "--episodes", "3", "--seed", "9", "--json", str(result)]
    assert evaluate.main(words) == 0
    data = json.loads(result.read_text())
    assert (data["version"], data["successes"], data["episodes"], data["seed"]) == (2, 2, 3, 9)
    assert len(data["rows"]) == 3
    assert "66.7%" in capsys.readouterr().out


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "pass"])
def test_a_simulation_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch, registry: Path, code: str) -> None:
    simulate_with(monkeypatch, code)
    with pytest.raises(UserError, match="ended with code"):
        evaluate.evaluate(EvaluateSettings(registry=registry))


def test_a_registry_without_policies_or_with_other_versions_is_named(tmp_path: Path, registry: Path) -> None:
    with pytest.raises(UserError, match="no policy there"):
        evaluate.evaluate(EvaluateSettings(registry=tmp_path / "empty"))
    with pytest.raises(ArtifactError, match="newest: v1, v2"):
        evaluate.evaluate(EvaluateSettings(registry=registry, version=9))


def test_a_video_shows_the_first_episodes_with_their_outcome(
    monkeypatch: pytest.MonkeyPatch, registry: Path, tmp_path: Path
) -> None:
    film = """
import numpy
from pathlib import Path
pictures = numpy.zeros((5, 128, 128, 3), numpy.uint8)
numpy.savez(options["--frames"], episode_000=pictures, episode_001=pictures)
"""
    simulate_with(monkeypatch, FAKE + film)
    path = tmp_path / "film.mp4"
    evaluate.evaluate(EvaluateSettings(registry=registry, video=path))
    with av.open(str(path)) as shown:
        assert sum(1 for _ in shown.decode(video=0)) == 2 * (5 + video.REST_FRAMES)


# By the verdicts of a recorded run


def recorded_run(root: Path) -> Path:
    """Version 1: three episodes alone, two of them judged, and one with a takeover. Version 2: one, not judged."""
    fill_journal(
        root,
        [
            *episode(1, EndReason.SUCCESS, "classifier"),
            label(1, LENGTH + 5, LabelKind.VERDICT_SUCCESS),
            *episode(2, EndReason.SUCCESS, "classifier"),
            label(2, LENGTH + 5, LabelKind.FALSE_POSITIVE),
            *episode(3, EndReason.SUCCESS, "classifier"),
            *episode(4, EndReason.SUCCESS, "operator", takeover_steps=3),
            label(4, LENGTH, LabelKind.SUCCESS),
            *(dataclasses.replace(s, policy_version=2) for s in episode(5, EndReason.SUCCESS, "classifier")),
        ],
    )
    return root


def test_verdicts_count_and_the_classifiers_word_alone_does_not(tmp_path: Path) -> None:
    result, rows = evaluate.recorded(EvaluateSettings(by=evaluate.By.VERDICT, run=recorded_run(tmp_path)))
    assert (result.version, result.episodes, result.successes) == (1, 2, 1)
    assert (result.takeovers, result.unjudged, result.by) == (1, 1, "verdict")
    assert result.time_to_success_p50_s == pytest.approx(LENGTH / 10)
    assert [(r["episode"], r["success"]) for r in rows] == [(1, True), (2, False)]


def test_the_command_says_who_judged_and_films_what_was_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = tmp_path / "film.mp4"
    words = ["--run", str(recorded_run(tmp_path)), "--by", "verdict", "--version", "1", "--video", str(film)]
    assert evaluate.main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "50.0%" in shown and "by verdict" in shown and "1 episodes with a takeover" in shown
    assert film.stat().st_size > 1000


def test_a_version_without_verdicts_is_not_judged(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    with pytest.raises(UserError, match="nobody gave a verdict"):
        evaluate.recorded(EvaluateSettings(by=evaluate.By.VERDICT, run=run, version=2))
    with pytest.raises(UserError, match="give --run"):
        evaluate.recorded(EvaluateSettings(by=evaluate.By.VERDICT))
