"""What stops the arm, and what takes torque from a joint before it must be stopped."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_runtime.bus.faults import (
    LEAST_SHARE,
    FaultReason,
    Foldback,
    FoldReason,
    Health,
    find_fault,
    fold,
    newly_folded,
)

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
COOL = np.full(6, 30.0)
NONE = np.zeros(6)


def at(joint: int, value: float, rest: float = 0.0) -> np.ndarray:
    array = np.full(6, rest)
    array[joint] = value
    return array


def fault(age: np.ndarray, alarm_for: np.ndarray, alarms: np.ndarray, heat: np.ndarray) -> tuple[FaultReason, str]:
    found = find_fault(NAMES, age, alarm_for, alarms.astype(int), heat, Health())
    assert found is not None
    return found.reason, found.text


def run(state: Foldback, heat: np.ndarray, current: np.ndarray, seconds: float) -> Foldback:
    for _ in range(round(seconds / 0.2)):
        state = fold(state, heat, current, 0.2, 65.0, 2.5)
    return state


def test_silence_alarm_and_heat_are_faults_that_name_the_joint() -> None:
    assert find_fault(NAMES, NONE, NONE, NONE.astype(int), NONE, Health()) is None
    assert fault(at(3, 0.6), NONE, NONE, NONE) == (FaultReason.SILENT, "wrist_flex: no answer for 0.60 s")
    assert fault(NONE, at(5, 0.6), at(5, 0x20), NONE) == (FaultReason.ALARM, "gripper: overload")
    assert fault(NONE, at(5, 0.6), at(5, 0x01), NONE) == (FaultReason.ALARM, "gripper: voltage")
    assert fault(NONE, NONE, NONE, at(1, 70.0)) == (FaultReason.HOT, "shoulder_lift: 70 degC")


def test_a_short_alarm_or_a_short_silence_is_no_fault() -> None:
    assert find_fault(NAMES, at(3, 0.2), at(5, 0.4), at(5, 0x01).astype(int), at(1, 60.0), Health()) is None


def test_an_encoder_alarm_is_a_fault_at_once() -> None:
    assert fault(NONE, at(2, 0.01), at(2, 0x02), NONE) == (FaultReason.ENCODER, "elbow_flex: encoder")


def test_a_cool_arm_keeps_its_torque() -> None:
    assert run(Foldback.none(6), COOL, NONE, 10.0).share.tolist() == [1.0] * 6


def test_a_joint_that_runs_hot_loses_torque_gradually_and_only_that_one() -> None:
    shares = [1.0]
    state = Foldback.none(6)
    for celsius in range(50, 66):
        state = run(state, at(1, celsius, 30.0), NONE, 1.0)
        shares.append(float(state.share[1]))
    assert shares == sorted(shares, reverse=True)
    assert shares[4] == 1.0 and abs(shares[-1] - LEAST_SHARE) < 1e-9
    assert state.share[[0, 2, 3, 4, 5]].tolist() == [1.0] * 5


def test_torque_comes_back_slowly_and_not_before_the_joint_has_cooled() -> None:
    folded = run(Foldback.none(6), at(1, 65.0, 30.0), NONE, 5.0)
    assert run(folded, at(1, 54.0, 30.0), NONE, 30.0).share[1] == folded.share[1]
    half_way = run(folded, COOL, NONE, 2.0)
    assert LEAST_SHARE < half_way.share[1] < 1.0
    assert run(folded, COOL, NONE, 10.0).share[1] == 1.0


def test_a_lasting_current_takes_torque_and_a_short_one_does_not() -> None:
    stalled = at(5, -2.7)
    assert run(Foldback.none(6), COOL, stalled, 0.8).share[5] == 1.0
    folded = run(Foldback.none(6), COOL, stalled, 3.0)
    assert folded.share[5] < 0.6
    assert run(folded, COOL, at(5, -2.2), 10.0).share[5] == folded.share[5]
    assert run(folded, COOL, NONE, 10.0).share[5] == 1.0


def test_the_reason_is_told_when_torque_begins_to_go() -> None:
    state, told = Foldback.none(6), []
    for _ in range(20):
        after = fold(state, at(1, 60.0, 30.0), at(5, 2.7), 0.2, 65.0, 2.5)
        told += newly_folded(state, after)
        state = after
    assert told == [(1, FoldReason.TEMPERATURE), (5, FoldReason.CURRENT)]


@given(st.lists(st.tuples(st.floats(0, 120), st.floats(-4, 4)), max_size=60))
def test_a_share_stays_within_its_bounds_and_changes_gradually(course: list[tuple[float, float]]) -> None:
    state = Foldback.none(1)
    for celsius, amperes in course:
        after = fold(state, np.array([celsius]), np.array([amperes]), 0.2, 65.0, 2.5)
        assert LEAST_SHARE <= after.share[0] <= 1.0
        assert -0.1 - 1e-9 <= after.share[0] - state.share[0] <= 0.02 + 1e-9
        state = after
