"""Drift is named when it lasts, told apart from an ordinary run, and forgotten when it is over."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from steadyhand_training.drift import (
    REMEDIES,
    Drift,
    DriftCode,
    DriftSettings,
    Fitted,
    Seen,
    Vetoes,
    brighter,
    light_levels,
    threshold_lift,
)

LIGHT = np.full((2, 6), 100.0, np.float32)
FITTED = Fitted(lights=(LIGHT,), far=1.0, disagreement=0.05)
USUAL = Seen(LIGHT, far=1.0, disagreement=0.05)
NO_VETOES = Vetoes(10, 0, 20, 1)
STRANGE = {
    DriftCode.LIGHT_CHANGED: dataclasses.replace(USUAL, light=LIGHT - 20.0),
    DriftCode.FEATURE_SHIFT: dataclasses.replace(USUAL, far=5.0),
    DriftCode.DISAGREEMENT_RISING: dataclasses.replace(USUAL, disagreement=0.4),
}


def look(drift: Drift, seen: Seen, times: int = 1, vetoes: Vetoes = NO_VETOES) -> None:
    for _ in range(times):
        drift.look(seen, FITTED, vetoes)


@pytest.mark.parametrize("code", STRANGE)
def test_each_drift_raises_its_own_warning_on_its_second_episode(code: DriftCode) -> None:
    drift = Drift(DriftSettings())
    look(drift, USUAL, 5)
    look(drift, STRANGE[code])
    assert drift.active == ()
    look(drift, STRANGE[code])
    assert drift.active == (code,)
    (warning,) = drift.warnings()
    assert warning.code is code and warning.remedy == REMEDIES[code] and warning.sentence.endswith(".")


def test_vetoes_that_rise_beyond_what_was_usual_are_named() -> None:
    drift = Drift(DriftSettings())
    look(drift, USUAL, 2, Vetoes(10, 6, 20, 1))
    assert drift.active == (DriftCode.VETOES_RISING,)
    assert "6 of the last 10" in drift.warnings()[0].sentence


@pytest.mark.parametrize(
    "vetoes",
    [Vetoes(10, 6, 30, 20), Vetoes(10, 5, 15, 5), Vetoes(3, 3), Vetoes(10, 1, 30, 0), Vetoes(0, 0, 20, 0)],
    ids=str,
)
def test_a_classifier_that_always_was_poor_or_is_hardly_known_does_not_drift(vetoes: Vetoes) -> None:
    drift = Drift(DriftSettings())
    look(drift, USUAL, 5, vetoes)
    assert drift.active == ()


@pytest.mark.parametrize("code", STRANGE)
def test_a_warning_falls_only_after_three_calm_episodes(code: DriftCode) -> None:
    drift = Drift(DriftSettings())
    look(drift, STRANGE[code], 2)
    look(drift, USUAL, 2)
    assert drift.active == (code,)
    look(drift, USUAL)
    assert drift.active == ()


def test_between_rising_and_falling_a_warning_stays_as_it_is() -> None:
    almost = dataclasses.replace(USUAL, far=0.9 * DriftSettings().feature_ratio)
    calm, warned = Drift(DriftSettings()), Drift(DriftSettings())
    look(warned, STRANGE[DriftCode.FEATURE_SHIFT], 2)
    look(calm, almost, 6)
    look(warned, almost, 6)
    assert calm.active == () and warned.active == (DriftCode.FEATURE_SHIFT,)


def test_the_threshold_rises_by_one_step_while_anything_drifts() -> None:
    drift = Drift(DriftSettings(threshold_step=0.07))
    assert threshold_lift(drift) == 0.0
    look(drift, dataclasses.replace(STRANGE[DriftCode.LIGHT_CHANGED], far=9.0), 2)
    assert len(drift.active) == 2 and threshold_lift(drift) == 0.07
    look(drift, USUAL, 3)
    assert threshold_lift(drift) == 0.0


def test_a_champion_that_knows_the_new_light_ends_the_warning_by_itself() -> None:
    drift = Drift(DriftSettings())
    new = STRANGE[DriftCode.LIGHT_CHANGED]
    look(drift, new, 2)
    drift.begin()
    assert drift.active == (DriftCode.LIGHT_CHANGED,)
    for _ in range(3):
        drift.look(new, dataclasses.replace(FITTED, lights=(LIGHT, new.light)), NO_VETOES)
    assert drift.active == ()


def test_heads_that_differ_a_little_more_than_hardly_at_all_are_no_drift() -> None:
    drift = Drift(DriftSettings())
    for _ in range(4):
        drift.look(
            dataclasses.replace(USUAL, disagreement=0.1), dataclasses.replace(FITTED, disagreement=0.01), NO_VETOES
        )
    assert drift.active == ()


def test_levels_are_measured_to_the_nearest_known_light_by_the_camera_that_sees_least() -> None:
    bright = LIGHT + 50.0
    seen = np.stack([bright[0] + 3.0, bright[1] + 30.0])
    assert light_levels(seen, (LIGHT, bright)) == pytest.approx(3.0)
    assert brighter(LIGHT - 7.0, (LIGHT,)) == pytest.approx(-7.0) and light_levels(LIGHT, ()) == 0.0


def test_what_is_remembered_survives_as_plain_data() -> None:
    drift, again = Drift(DriftSettings()), Drift(DriftSettings())
    look(drift, STRANGE[DriftCode.LIGHT_CHANGED], 2, Vetoes(10, 6, 20, 1))
    again.restore(json.loads(json.dumps(drift.state())))
    assert again.warnings() == drift.warnings() and again.state() == drift.state()
    look(drift, USUAL, 3)
    look(again, USUAL, 3)
    assert again.active == drift.active == ()
