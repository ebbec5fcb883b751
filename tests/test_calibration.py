"""Ticks and rad."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_firmware.calibration import Calibration

SIX_TICKS = st.lists(st.integers(0, 4095), min_size=6, max_size=6)


def test_mid_travel_is_zero_and_a_turn_is_4096_ticks() -> None:
    calibration = Calibration.default()
    assert calibration.to_rad([2048] * 6).tolist() == [0.0] * 6
    assert calibration.to_rad([4096] * 6)[0] == pytest.approx(math.pi)
    assert calibration.to_ticks(np.full(6, math.pi / 2)) == [3072] * 6


@given(SIX_TICKS)
def test_ticks_survive_the_way_there_and_back(ticks: list[int]) -> None:
    calibration = dataclasses.replace(
        Calibration.default(), drive_sign=(1, -1, 1, -1, 1, -1), zero_ticks=(2048, 2047, 2000, 2100, 2048, 1500)
    )
    assert calibration.to_ticks(calibration.to_rad(ticks)) == ticks


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6))
def test_goals_stay_within_the_range(rad: list[float]) -> None:
    calibration = dataclasses.replace(Calibration.default(), range_min=(700,) * 6, range_max=(3300,) * 6)
    assert all(700 <= t <= 3300 for t in calibration.to_ticks(np.array(rad)))


def test_a_reversed_joint_turns_the_other_way() -> None:
    calibration = dataclasses.replace(Calibration.default(), drive_sign=(-1,) * 6)
    assert calibration.to_rad([2049] * 6)[0] < 0
    assert calibration.to_rad_s([100] * 6)[0] < 0
    assert calibration.to_ticks(np.full(6, 0.1))[0] < 2048


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("drive_sign", (0,) * 6, "drive_sign"),
        ("homing_offset", (2048,) * 6, "2047"),
        ("range_min", (4095,) * 6, "range"),
        ("zero_ticks", (2048,) * 5, "length"),
    ],
)
def test_an_impossible_calibration_is_refused(field: str, value: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Calibration.default(), **{field: value})
