"""Kinematics: the closed forms agree with the URDF's chain and with MuJoCo, and the pitch rule holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyhand_runtime import kinematics
from steadyhand_runtime.kinematics import LIMITS_RAD, PITCH_DOWN_RAD, PITCH_MIN_RAD, chain, solve, tip_pose

WORKSPACE_M = ((0.10, 0.30), (-0.14, 0.14), (0.012, 0.16))
positions = st.tuples(*(st.floats(lo, hi) for lo, hi in WORKSPACE_M))


def random_joints(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LIMITS_RAD[:, 0], LIMITS_RAD[:, 1], (count, 6))


def test_tip_at_zero_joints_is_the_published_one() -> None:
    # Anchors of the public URDF at q = 0, to the 0.1 mm they are published with.
    origins, _ = chain(np.zeros(6))
    published = [
        [0.0388, 0.0, 0.0624],
        [0.0692, -0.0183, 0.1166],
        [0.0972, -0.0183, 0.2292],
        [0.2321, -0.0183, 0.2344],
        [0.2932, 0.0, 0.2344],
        [0.3166, 0.0176, 0.2555],
        [0.3914, 0.0, 0.2265],
    ]
    np.testing.assert_allclose(origins, published, atol=2.5e-4)


def test_closed_form_agrees_with_the_chain() -> None:
    for q in random_joints(200):
        np.testing.assert_allclose(tip_pose(q).xyz_m, chain(q)[0][6], atol=1e-9)


def test_closed_form_agrees_with_mujoco() -> None:
    mujoco = pytest.importorskip("mujoco")
    from steadyhand_runtime.sim.scene import SceneSettings, scene_xml

    model = mujoco.MjModel.from_xml_string(scene_xml(SceneSettings()))
    data = mujoco.MjData(model)
    for q in random_joints(100, seed=1):
        data.qpos[:6] = q
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(data.site("tip").xpos, tip_pose(q).xyz_m, atol=1e-6)


def test_pitch_is_the_angle_of_the_gripper_below_the_horizontal() -> None:
    for q in random_joints(50, seed=2):
        approach = chain(q)[1][4] @ (0.0, 0.0, -1.0)
        assert math.sin(tip_pose(q).pitch_rad) == pytest.approx(-approach[2], abs=1e-9)


@given(xyz=positions, pitch=st.floats(PITCH_MIN_RAD, PITCH_DOWN_RAD))
@settings(max_examples=300, deadline=None)
def test_solution_reaches_the_position_within_limits_or_says_that_it_does_not(xyz: tuple, pitch: float) -> None:
    found = solve(xyz, pitch)
    assert np.all(found.q_rad >= LIMITS_RAD[:5, 0] - 1e-9) and np.all(found.q_rad <= LIMITS_RAD[:5, 1] + 1e-9)
    tip = tip_pose(found.q_rad)
    assert tip.pitch_rad == pytest.approx(found.pitch_rad, abs=1e-9)
    if found.reachable:
        np.testing.assert_allclose(tip.xyz_m, xyz, atol=1e-6)
        assert PITCH_MIN_RAD - 1e-9 <= found.pitch_rad <= pitch + 1e-9


@given(xyz=st.tuples(*[st.floats(-1.0, 1.0)] * 3))
@settings(max_examples=200, deadline=None)
def test_any_position_gives_finite_joints_within_limits(xyz: tuple) -> None:
    q = solve(xyz).q_rad
    assert np.isfinite(q).all()
    assert np.all(q >= LIMITS_RAD[:5, 0] - 1e-9) and np.all(q <= LIMITS_RAD[:5, 1] + 1e-9)


def test_gripper_points_down_wherever_the_cube_can_lie() -> None:
    for x in np.linspace(0.16, 0.26, 5):
        for y in np.linspace(-0.07, 0.07, 5):
            for z in (0.012, 0.04, 0.065):
                found = solve((x, y, z))
                assert found.reachable and found.pitch_rad == pytest.approx(PITCH_DOWN_RAD)


def test_pitch_relaxes_where_five_joints_cannot_hold_it_and_no_further_than_needed() -> None:
    found = solve((0.21, 0.0, 0.14))
    assert found.reachable and PITCH_MIN_RAD < found.pitch_rad < PITCH_DOWN_RAD - 0.1
    wrist = found.q_rad[3]
    assert wrist == pytest.approx(LIMITS_RAD[3, 1], abs=1e-3)


def test_joints_move_continuously_along_a_lift_through_the_relaxed_region() -> None:
    heights = np.arange(0.012, 0.16, 0.0005)
    joints = np.array([solve((0.21, 0.05, z)).q_rad for z in heights])
    assert np.abs(np.diff(joints, axis=0)).max() < 0.03


def test_jaws_keep_their_yaw_in_the_world_while_the_gripper_points_down() -> None:
    for y in (-0.1, -0.05, 0.0, 0.05, 0.1):
        q = np.append(solve((0.2, y, 0.03)).q_rad, 0.0)
        closing = chain(q)[1][4] @ (1.0, 0.0, 0.0)
        np.testing.assert_allclose(closing, (0.0, -1.0, 0.0), atol=1e-3)


def test_an_unreachable_position_gives_a_pose_stretched_towards_it() -> None:
    found = solve((0.9, 0.0, 0.1))
    tip = tip_pose(found.q_rad).xyz_m
    assert not found.reachable
    assert tip[0] > 0.4 and abs(tip[1]) < 0.01


def test_limits_table_matches_the_joint_names() -> None:
    assert LIMITS_RAD.shape == (len(kinematics.JOINT_NAMES), 2)
    assert np.all(LIMITS_RAD[:, 0] < LIMITS_RAD[:, 1])
