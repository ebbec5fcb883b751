"""A classifier from recordings: whole episodes apart, a target it must reach, and an artifact that robots run."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_runs import fill, lessons, refuted
from training_steps import CONTRACT, TASK, demonstration, label

from steadyhand_models import artifact, cli, keys, signing
from steadyhand_models import settings as toml
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, LabelKind, Step
from steadyhand_models.registry import Registry
from steadyhand_runtime.swap import Quarantine, Staged, Standby
from steadyhand_training import classifier_fit, crossfit, dataset, fitting, holdout, scoring
from steadyhand_training.crossfit import CrossfitSettings
from steadyhand_training.dataset import Dataset
from steadyhand_training.fitting import FitSettings
from steadyhand_training.gate import GateSettings
from steadyhand_training.scoring import Scorer

QUICK = CrossfitSettings(folds=2, batches=12, fit=FitSettings(batch=16, shift_px=0, learning_rate=3e-3))
LENIENT = GateSettings(false_success_budget=0.5)
WORDS = (
    *("--positive-frames", "20", "--negative-frames", "40", "--crossfit.folds", "2", "--crossfit.batches", "12"),
    *("--crossfit.fit.batch", "16", "--crossfit.fit.shift-px", "0", "--crossfit.fit.learning-rate", "0.003"),
)
EASY = ("--crossfit.gate.false-success-budget", "0.5")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("runs") / "run", lessons(4, 4))


@pytest.fixture(scope="module")
def data(run: Path) -> Dataset:
    return dataset.read([run], TASK)


def fit(run: Path, *words: str) -> int:
    return classifier_fit.main(["--run", str(run), *WORDS, *words])


# -- the split ---------------------------------------------------------------------------------------------------------


def test_folds_hold_whole_episodes_and_some_of_each_kind(data: Dataset) -> None:
    dealt = crossfit.folds(data.spoken_of, 2)
    assert Counter(e.origin.episode.number for fold in dealt for e in fold) == Counter(range(1, 9))
    assert [sum(bool((e.labels > 0).any()) for e in fold) for fold in dealt] == [2, 2]


def test_no_network_learns_from_a_frame_that_it_judges(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, judged = list[set[int]](), list[set[int]]()
    dealt = crossfit.folds(data.spoken_of, QUICK.folds)
    plain_draw, plain_odds = fitting.draw, fitting.log_odds

    def spy(pools: Any, batch: int, rng: np.random.Generator) -> Any:
        drawn.append(set(plain_draw(pools, batch, rng)[0].tolist()))
        return plain_draw(pools, batch, rng)

    def spy_odds(net: Any, frames: Any) -> Any:
        if drawn:
            judged.append(set().union(*drawn))
            drawn.clear()
        return plain_odds(net, frames)

    monkeypatch.setattr(fitting, "draw", spy)
    monkeypatch.setattr(fitting, "log_odds", spy_odds)
    crossfit.crossfit(data, QUICK, 0)
    own = [{int(row) for e in fold for row in e.rows} for fold in dealt]
    assert len(judged) == 2
    assert not judged[0] & own[0] and not judged[1] & own[1]
    assert judged[0] & own[1] and judged[1] & own[0]


def test_what_only_tells_episodes_apart_does_not_pass_for_knowledge(tmp_path: Path) -> None:
    """Success shows nowhere, but every episode has a background of its own that could be learned by heart."""
    rng = np.random.default_rng(0)
    messages = []
    for number in range(1, 9):
        background = rng.integers(40, 215, CONTRACT.frames_shape, dtype=np.uint8)
        made = demonstration(number) if number % 2 else refuted(number)
        messages += [dataclasses.replace(m, frames=background) if hasattr(m, "frames") else m for m in made]
    found = crossfit.crossfit(dataset.read([fill(tmp_path, messages)], TASK), QUICK, 0)
    assert found.quality.balanced_accuracy < 0.8


def test_equal_seeds_make_equal_networks(data: Dataset) -> None:
    one, again, other = (crossfit.crossfit(data, QUICK, seed) for seed in (3, 3, 4))
    rows = data.episodes[0].rows
    first = fitting.log_odds(one.net, data.frames(rows))
    assert (first == fitting.log_odds(again.net, data.frames(rows))).all()
    assert (first != fitting.log_odds(other.net, data.frames(rows))).any()
    assert one.quality == again.quality


# -- the target --------------------------------------------------------------------------------------------------------


def test_a_classifier_below_the_target_is_not_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    assert fit(run, "--out", str(out), "--json", str(tmp_path / "figures.json")) == 1
    text = capsys.readouterr().out
    assert "not ready: false successes in 0 of 8 episodes" in text and "44 more without one would show it" in text
    assert "--even-if-not-ready" in text and not out.exists()
    assert json.loads((tmp_path / "figures.json").read_text())["ready"] is False


def test_told_to_it_writes_it_and_marks_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    assert fit(run, "--out", str(out), "--even-if-not-ready") == 0
    assert "marked as not ready" in capsys.readouterr().out
    assert scoring.load(out).manifest.metrics["ready"] == 0.0
    assert json.loads((out / holdout.FIT_FILE).read_text())["objections"]


def test_the_bound_asks_for_as_many_episodes_as_it_takes() -> None:
    for budget in (0.05, 0.1, 0.3):
        enough = crossfit.episodes_for(budget)
        bounds = [crossfit.gate.Quality(n, 0, 1, 1, 1.0).false_bound for n in (enough - 1, enough)]
        assert bounds[1] <= budget < bounds[0]
    assert crossfit.episodes_for(0.05) == 52


def test_a_bad_balanced_accuracy_is_an_objection_of_its_own(data: Dataset) -> None:
    found = crossfit.crossfit(data, QUICK, 0)
    assert crossfit.objections(found, LENIENT) == ()
    poor = dataclasses.replace(found, quality=dataclasses.replace(found.quality, balanced_accuracy=0.9))
    assert crossfit.objections(poor, LENIENT) == ("balanced accuracy is 90.0%, the target 95%",)


def test_too_few_frames_are_counted_with_the_way_to_get_more(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        classifier_fit.main(["--run", str(run), "--out", str(tmp_path / "made")])
    text = str(caught.value)
    assert "172 labelled frames of success (28 of 200)" in text and "of anything else" in text
    assert f"steadyhand collect --run {run}" in text


def test_too_few_episodes_are_named_however_many_frames_they_have(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", demonstration(1, approach=60, hold=30))
    with pytest.raises(UserError, match=r"1 episodes with success \(1 of 2\)"):
        classifier_fit.main(["--run", str(one), *WORDS])


def test_a_wrong_word_is_found_by_the_network_that_never_heard_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lie = [m for m in demonstration(9) if isinstance(m, Step)]
    run = fill(tmp_path / "run", [*lessons(4, 4), *lie, label(9, 99, LabelKind.VERDICT_FAILURE)])
    page = tmp_path / "doubts.html"
    fit(run, "--out", str(tmp_path / "made"), "--gallery", str(page))
    assert "wrong there, or the words are: run episode 9; --gallery" in capsys.readouterr().out
    first = page.read_text().split("<figcaption>")[1]
    assert "called success; label: no success" in first and "run episode 9" in first and "ann: verdict failure" in first


# -- the artifact ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit") / "made"
    assert fit(run, "--out", str(out), *EASY) == 0
    return out


def test_the_artifact_verifies_and_tells_success_from_the_rest(made: Path, data: Dataset) -> None:
    loaded = scoring.load(made)
    artifact.verify(loaded, CONTRACT.hash)
    scorer = Scorer(loaded, CONTRACT)
    shown = data.episodes[0]
    probabilities = scorer.probabilities(data.frames(shown.rows)).mean(axis=1)
    assert probabilities[shown.labels > 0].min() > 0.5 > probabilities[shown.labels < 0].max()
    assert loaded.manifest.metrics["ready"] == 1.0
    assert loaded.manifest.debounce_frames == TASK.debounce_frames


def test_the_record_beside_it_names_the_episodes_that_it_did_not_learn_from(made: Path, data: Dataset) -> None:
    unseen = holdout.unseen(data, made)
    assert unseen is not None
    held_out = {e.origin.episode.number for e in crossfit.folds(data.spoken_of, 2)[0]}
    assert {e.origin.episode.number for e in unseen} == held_out


def test_a_broken_record_is_refused_by_name(made: Path, data: Dataset, tmp_path: Path) -> None:
    (tmp_path / holdout.FIT_FILE).write_text('{"ready": 1, "tought": []}')
    with pytest.raises(toml.SettingsError, match="did you mean 'taught'"):
        holdout.unseen(data, tmp_path)


def test_a_registry_gets_the_next_version(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert fit(run, "--registry", str(tmp_path), *EASY) == 0
    registry = Registry(tmp_path)
    assert registry.versions(Channel.CLASSIFIER) == [1, 2]
    assert registry.manifest(Channel.CLASSIFIER, 2).parent == 1
    artifact.verify(registry.load(Channel.CLASSIFIER, 2), CONTRACT.hash)


def test_whoever_has_a_key_signs(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "default_path", lambda: tmp_path / "signing.key")
    public = keys.make(tmp_path / "signing.key")
    found = crossfit.crossfit(data, QUICK, 0)
    signed = classifier_fit.artifact_of(found, data, 1, 0, ready=True)
    assert signing.verify(signed) == public


def test_a_place_that_is_taken_is_refused_before_anything_is_fitted(run: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        fit(run, "--out", str(made))
    with pytest.raises(UserError, match="give one of them"):
        fit(run, "--out", str(tmp_path / "a"), "--registry", str(tmp_path / "b"))


def test_a_run_that_is_not_named_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classifier", "fit"]) == 1
    assert "give --run" in capsys.readouterr().err


def test_a_robot_starts_with_what_lies_in_its_registry(run: Path, tmp_path: Path) -> None:
    assert fit(run, "--registry", str(tmp_path), *EASY) == 0
    standby = Standby(Registry(tmp_path), CONTRACT, Quarantine(tmp_path / "quarantine.txt"))
    standby.look()
    staged = standby.take(Channel.CLASSIFIER)
    assert standby.refusals() == [] and isinstance(staged, Staged)
    assert staged.model.manifest.version == 1
