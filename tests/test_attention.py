"""A trainer notices a changed light within two episodes, says so, is more careful, and calms down once it knows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_trainer import DEMONSTRATIONS, TINY, Bench, one_thread, versions
from training_steps import demonstration, driven

from steadyhand_models.messages import Channel, Label, Source, Step
from steadyhand_training.asking import AskingSettings
from steadyhand_training.drift import REMEDIES, DriftCode
from steadyhand_training.gate import THRESHOLDS

__all__ = ["one_thread"]
SETTINGS = dataclasses.replace(TINY, asking=AskingSettings(least_score=0.0))


def dimmed(messages: list[Step | Label]) -> list[Step | Label]:
    """The same under a lamp that gives much less light."""
    return [dataclasses.replace(m, frames=m.frames // 2) if isinstance(m, Step) else m for m in messages]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, SETTINGS)
    bench.feed(DEMONSTRATIONS)
    yield bench
    bench.close()


def light_warnings(bench: Bench) -> list[str]:
    return [w for w in bench.trainer._view().warnings if w.startswith("The light has changed")]


def test_an_unchanged_light_warns_of_nothing(bench: Bench) -> None:
    for episode in range(4, 9):
        bench.feed(driven(episode, Source.POLICY))
    assert DriftCode.LIGHT_CHANGED not in bench.trainer.attention.drift.active and light_warnings(bench) == []


def test_a_changed_light_warns_with_a_remedy_and_raises_the_threshold_at_once(bench: Bench) -> None:
    before, known = bench.trainer.correction.threshold, bench.trainer.attention._known
    bench.feed(dimmed(driven(4, Source.POLICY)))
    assert light_warnings(bench) == []
    bench.feed(dimmed(driven(5, Source.POLICY)))
    (warning,) = light_warnings(bench)
    assert "darker" in warning and warning.endswith(REMEDIES[DriftCode.LIGHT_CHANGED])
    metrics = bench.trainer._view().metrics
    step = SETTINGS.drift.threshold_step
    assert metrics["drift_light_changed"] == 1.0 and metrics["threshold_lift"] == step
    bench.drain()
    correction = bench.trainer.correction
    assert (correction.threshold, correction.version) == (pytest.approx(min(before + step, THRESHOLDS[-1])), 2)
    assert correction.threshold > before
    assert versions(bench, Channel.CLASSIFIER)[-1] == 2
    bench.feed(dimmed(driven(6, Source.POLICY)))
    assert bench.trainer.attention._known is known is not None, "its weights know no more than before"
    assert light_warnings(bench)


def test_the_warning_ends_when_a_champion_was_fitted_under_the_new_light(bench: Bench) -> None:
    for episode in (4, 5):
        bench.feed(dimmed(driven(episode, Source.POLICY)))
    bench.feed([*dimmed(demonstration(6)), *dimmed(demonstration(7, success=False))])
    attention = bench.trainer.attention
    attention._known = None  # as after a promotion: what the champion learned from is looked at anew
    for episode in (8, 9, 10):
        bench.feed(dimmed(driven(episode, Source.POLICY)))
    assert DriftCode.LIGHT_CHANGED not in attention.drift.active and light_warnings(bench) == []


def test_a_restart_from_a_checkpoint_remembers_what_drifts_and_what_was_asked(bench: Bench) -> None:
    for episode in (4, 5):
        bench.feed(dimmed(driven(episode, Source.POLICY)))
    bench.trainer._save()
    before = bench.trainer.attention.state()
    asked = [q.id for q in bench.trainer.attention.questions.open]
    bench.restart()
    assert bench.trainer.attention.state() == before
    assert [q.id for q in bench.trainer.attention.questions.open] == asked != []


def test_equal_journals_make_equal_questions(bench: Bench, tmp_path: Path) -> None:
    twin = Bench(tmp_path / "twin", SETTINGS)
    twin.feed(DEMONSTRATIONS)
    for each in (bench, twin):
        each.feed([*driven(4, Source.POLICY), *driven(5, Source.POLICY)])
    assert twin.trainer.attention.questions.open == bench.trainer.attention.questions.open != []
    twin.close()
