"""The live view shows the best policy, values against their bound, and every warning in words."""

from __future__ import annotations

import dataclasses

from test_demo import TRAINER

from steadyhand_training import live
from steadyhand_training.status import WARNING, build

from test_metric_writers import view  # isort: skip


def shown(*metrics: str) -> dict[str, str]:
    tally = live.LiveTally()
    tally.learning(dataclasses.replace(TRAINER, metrics=metrics), 0)
    return dict(live.rows(tally, 0, 1.0))


def test_the_best_policy_comes_with_its_interval_and_the_newest_beside_it() -> None:
    text = shown("best_version=12", "best_success=0.92", "best_lo=0.81", "best_hi=0.97", "recent_success=0.6")
    assert text["best policy"] == "v12: 92% alone by verdicts (81% to 97%); the newest 60%"


def test_without_a_judged_version_none_is_called_best() -> None:
    assert "best policy" not in shown("fallen=0", "recent_success=0.5")


def test_values_stand_beside_the_most_there_is_to_earn() -> None:
    assert shown()["values"] == "expected 0.10 of at most 1.00"


def test_a_warning_reaches_the_operator_as_the_trainer_wrote_it() -> None:
    status = build(view(), 2.0, 1)
    assert f"{WARNING}=The arm stands still." in status.metrics
    tally = live.LiveTally()
    tally.learning(status, 0)
    assert ("warning", "The arm stands still.") in live.rows(tally, 0, 1.0)
    assert live.measured(status)["best_version"] == 2.0


def test_open_questions_are_shown_with_the_command_that_answers_them() -> None:
    assert shown("questions=3")["questions"] == "3 open: steadyhand classifier review"
    assert "questions" not in shown("questions=0")
