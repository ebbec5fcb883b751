"""Ranges learnt from positions: around the seam, past it, too narrow, and wherever the encoder was mounted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_firmware.arm import Arm, load_arm
from steadyhand_firmware.lerobot import MotorCalibration, to_calibration
from steadyhand_runtime.bus.calibrator import Calibrator, Verdict, homing_offset, raw_position

ARM = load_arm()
ROLL = ARM.names.index("wrist_roll")
STEP = 24
SPANS = [round((j.high_rad - j.low_rad) * 4096 / 6.283185) for j in ARM.joints]
MOUNTS = st.lists(st.integers(0, 4095), min_size=6, max_size=6)


def sweep(calibrator: Calibrator, centre: list[int], low: list[int], high: list[int]) -> None:
    """Turn every joint from its centre down to `low` and up to `high`, ticks from the centre, in small steps."""
    for start, stop in ((0, 1), (1, 0), (0, -1)):
        for share in range(STEP + 1):
            at = start + (stop - start) * share / STEP
            travel = [round(at * h) if at > 0 else round(-at * lo) for lo, h in zip(low, high)]
            calibrator.observe([(c + t) % 4096 for c, t in zip(centre, travel)])


def swept(centre: list[int], low: list[int], high: list[int], arm: Arm = ARM) -> Calibrator:
    calibrator = Calibrator(arm, centre)
    sweep(calibrator, centre, low, high)
    return calibrator


def reads(raw: int, motor: MotorCalibration) -> int:
    """What the servo reports once it subtracts the offset."""
    return (raw - motor.homing_offset) % 4096


@given(st.integers(0, 4095))
def test_every_position_has_an_offset_that_fits_the_register(raw: int) -> None:
    offset = homing_offset(raw)
    assert abs(offset) <= 2047
    assert (raw - offset) % 4096 in (2047, 2048)


def test_the_position_that_breaks_other_tools_is_wrapped() -> None:
    assert homing_offset(4095) == 2047
    assert homing_offset(0) == -2047


@given(st.integers(0, 4095), st.integers(-2047, 2047))
def test_a_standing_offset_does_not_matter(raw: int, standing: int) -> None:
    assert raw_position((raw - standing) % 4096, standing) == raw


@given(MOUNTS)
def test_the_range_is_the_same_wherever_the_encoder_was_mounted(centre: list[int]) -> None:
    low, high = [-s // 2 for s in SPANS], [s // 2 for s in SPANS]
    motors = swept(centre, low, high).result()
    for j, (motor, c) in enumerate(zip(motors, centre)):
        assert motor.problem() is None
        if j != ROLL:
            assert abs(reads(c + low[j], motor) - motor.range_min) <= 1
            assert abs(reads(c + high[j], motor) - motor.range_max) <= 1


@given(MOUNTS, st.integers(-900, 900))
def test_a_badly_centred_arm_still_has_its_seam_where_no_joint_can_be(centre: list[int], error: int) -> None:
    low, high = [-s // 2 + error for s in SPANS], [s // 2 + error for s in SPANS]
    for j, (motor, c) in enumerate(zip(swept(centre, low, high).result(), centre)):
        if j == ROLL:
            continue
        ticks = [reads(c + t, motor) for t in range(low[j], high[j] + 1, 7)]
        assert all(b - a == 7 for a, b in itertools.pairwise(ticks))
        assert abs(motor.mid - 2047) < 2


def test_a_joint_that_turns_freely_is_calibrated_by_its_middle_alone() -> None:
    centre = [100, 200, 300, 400, 3900, 600]
    motor = swept(centre, [-s // 2 for s in SPANS], [s // 2 for s in SPANS]).result()[ROLL]
    assert (motor.range_min, motor.range_max) == (0, 4095)
    assert reads(3900, motor) == 2047


def test_soft_limits_keep_a_joint_that_turns_freely_off_its_seam() -> None:
    motors = swept([2047] * 6, [-s // 2 for s in SPANS], [s // 2 for s in SPANS]).result()
    calibration = to_calibration(ARM, motors)
    assert 0 < calibration.range_min[ROLL] < calibration.range_max[ROLL] < 4095
    assert calibration.to_rad([2047] * 6)[ROLL] == 0.0


def test_a_narrow_sweep_is_told_and_gives_no_calibration_until_it_is_done() -> None:
    low, high = [-s // 2 for s in SPANS], [s // 2 for s in SPANS]
    calibrator = swept([2047] * 6, [*low[:2], -100, *low[3:]], [*high[:2], 100, *high[3:]])
    assert [(s.joint.name, s.verdict) for s in calibrator.unfinished()] == [("elbow_flex", Verdict.SHORT)]
    with pytest.raises(ValueError, match="not swept: elbow_flex"):
        calibrator.result()
    sweep(calibrator, [2047] * 6, low, high)
    assert len(calibrator.result()) == 6


def test_a_joint_that_turned_further_than_it_can_is_told_and_begun_again() -> None:
    low, high = [-s // 2 for s in SPANS], [s // 2 for s in SPANS]
    calibrator = swept([2047] * 6, [-3000, *low[1:]], [3000, *high[1:]])
    (wide,) = calibrator.unfinished()
    assert wide.verdict is Verdict.WIDE
    calibrator.restart(wide.joint)
    assert [s.verdict for s in calibrator.unfinished()] == [Verdict.SHORT]


def test_a_servo_that_misses_an_answer_keeps_what_it_has() -> None:
    calibrator = swept([2047] * 6, [-s // 2 for s in SPANS], [s // 2 for s in SPANS])
    before = calibrator.sweeps()
    calibrator.observe([None] * 6)
    assert calibrator.sweeps() == before


def test_the_leader_is_calibrated_in_the_same_way() -> None:
    leader = load_arm("so101_leader")
    motors = swept([10] * 6, [-s // 2 for s in SPANS], [s // 2 for s in SPANS], leader).result()
    assert [m.id for m in motors] == [1, 2, 3, 4, 5, 6]
