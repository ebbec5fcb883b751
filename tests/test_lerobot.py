"""LeRobot's files and units, as LeRobot computes them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import RAD_PER_TICK
from steadyhand_firmware.lerobot import (
    CalibrationError,
    MotorCalibration,
    Unit,
    load_calibration,
    normalise,
    read_motors,
    unnormalise,
    write_motors,
)

ARM = load_arm()
MOTOR = MotorCalibration(1, 0, 0, 1000, 3000)
MIRRORED = MotorCalibration(1, 1, 0, 1000, 3000)
# As `lerobot-calibrate` writes it.
FILE = {
    "shoulder_pan": {"id": 1, "drive_mode": 0, "homing_offset": -14, "range_min": 715, "range_max": 3416},
    "shoulder_lift": {"id": 2, "drive_mode": 0, "homing_offset": 989, "range_min": 802, "range_max": 3185},
    "elbow_flex": {"id": 3, "drive_mode": 0, "homing_offset": -879, "range_min": 845, "range_max": 3052},
    "wrist_flex": {"id": 4, "drive_mode": 0, "homing_offset": 2041, "range_min": 926, "range_max": 3216},
    "wrist_roll": {"id": 5, "drive_mode": 0, "homing_offset": -1600, "range_min": 0, "range_max": 4095},
    "gripper": {"id": 6, "drive_mode": 0, "homing_offset": 1000, "range_min": 2020, "range_max": 3500},
}


def saved(folder: Path, content: object) -> Path:
    path = folder / "follower.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(joint: str, **values: object) -> dict[str, object]:
    return {**FILE, joint: {**FILE[joint], **values}}


@pytest.mark.parametrize(
    ("ticks", "motor", "unit", "value"),
    [
        (2000, MOTOR, Unit.DEGREES, 0.0),
        (3000, MOTOR, Unit.DEGREES, 1000 * 360 / 4095),
        (4000, MOTOR, Unit.DEGREES, 2000 * 360 / 4095),  # unclamped
        (3000, MIRRORED, Unit.DEGREES, 1000 * 360 / 4095),  # heedless of the drive mode
        (1000, MOTOR, Unit.RANGE_M100_100, -100.0),
        (2500, MOTOR, Unit.RANGE_M100_100, 50.0),
        (4000, MOTOR, Unit.RANGE_M100_100, 100.0),
        (2500, MIRRORED, Unit.RANGE_M100_100, -50.0),
        (1500, MOTOR, Unit.RANGE_0_100, 25.0),
        (0, MOTOR, Unit.RANGE_0_100, 0.0),
        (1500, MIRRORED, Unit.RANGE_0_100, 75.0),
    ],
)
def test_positions_become_lerobots_values(ticks: int, motor: MotorCalibration, unit: Unit, value: float) -> None:
    assert normalise(ticks, motor, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    ("value", "motor", "unit", "ticks"),
    [
        (0.0, MOTOR, Unit.DEGREES, 2000),
        (10.0, MOTOR, Unit.DEGREES, 2113),  # 2113.75 truncated
        (-10.0, MOTOR, Unit.DEGREES, 1886),
        (-250.0, MOTOR, Unit.DEGREES, -843),  # truncated towards zero
        (0.09, MOTOR, Unit.RANGE_M100_100, 2000),
        (150.0, MOTOR, Unit.RANGE_M100_100, 3000),
        (-50.0, MIRRORED, Unit.RANGE_M100_100, 2500),
        (25.0, MOTOR, Unit.RANGE_0_100, 1500),
        (-3.0, MOTOR, Unit.RANGE_0_100, 1000),
        (75.0, MIRRORED, Unit.RANGE_0_100, 1500),
    ],
)
def test_lerobots_values_become_positions(value: float, motor: MotorCalibration, unit: Unit, ticks: int) -> None:
    assert unnormalise(value, motor, unit) == ticks


@given(st.integers(1000, 3000), st.sampled_from(Unit), st.sampled_from([MOTOR, MIRRORED]))
def test_the_way_there_and_back_loses_at_most_a_tick(ticks: int, unit: Unit, motor: MotorCalibration) -> None:
    assert abs(unnormalise(normalise(ticks, motor, unit), motor, unit) - ticks) <= 1


def test_a_file_of_lerobot_is_read_and_written_back_alike(tmp_path: Path) -> None:
    motors = read_motors(saved(tmp_path, FILE), ARM)
    assert motors[3] == MotorCalibration(4, 0, 2041, 926, 3216)
    write_motors(tmp_path / "new" / "copy.json", ARM, motors)
    assert json.loads((tmp_path / "new" / "copy.json").read_text()) == FILE
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["copy.json"]


def test_the_middle_of_the_range_is_zero_and_the_gripper_closes_at_its_lower_limit(tmp_path: Path) -> None:
    calibration = load_calibration(saved(tmp_path, FILE), ARM)
    middle = [(e["range_min"] + e["range_max"]) // 2 for e in FILE.values()]
    rad = calibration.to_rad(middle)
    np.testing.assert_allclose(rad[:5], 0.0, atol=1e-12)
    assert rad[5] == pytest.approx((ARM.joints[5].low_rad + ARM.joints[5].high_rad) / 2, abs=RAD_PER_TICK)
    assert calibration.homing_offset == tuple(e["homing_offset"] for e in FILE.values())
    assert calibration.to_ticks(np.full(6, -math.pi))[0] == FILE["shoulder_pan"]["range_min"]


def test_lerobots_drive_mode_turns_the_joint_around(tmp_path: Path) -> None:
    calibration = load_calibration(saved(tmp_path, changed("elbow_flex", drive_mode=1)), ARM)
    assert calibration.drive_sign == (1, 1, -1, 1, 1, 1)
    assert calibration.to_rad([3052] * 6)[2] < 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not a calibration file"),
        ("[1, 2]", "holds something else; so101_follower needs shoulder_pan"),
        ({k: v for k, v in FILE.items() if k != "gripper"}, "needs shoulder_pan, .*gripper"),
        (changed("gripper", extra=1), "gripper needs exactly id, drive_mode"),
        (changed("gripper", range_min=1.5), "must be whole numbers"),
        (changed("gripper", drive_mode=True), "must be whole numbers"),
        (changed("gripper", homing_offset=2048), r"2048 is outside \+-2047: run `steadyhand bus calibrate`"),
        (changed("gripper", range_max=4096), "0 <= min < max <= 4095"),
        (changed("gripper", drive_mode=3), "neither 0 nor 1"),
        (changed("gripper", id=7), "id 7, but the arm's gripper has id 6"),
        ("[" * 60000, "not a calibration file"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        load_calibration(saved(tmp_path, content), ARM)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="steadyhand bus calibrate"):
        load_calibration(tmp_path / "none.json", ARM)
