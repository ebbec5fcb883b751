"""Projection of actions: what is executed is what was possible, and says what cut it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import lift

from steadyhand_runtime.kinematics import LIMITS_RAD, tip_pose
from steadyhand_runtime.projection import Projection

TASK = lift()
PROJECTION = Projection(TASK)
MIDDLE = np.array(TASK.reset.tip_m)
share = st.floats(-1.5, 1.5, width=32)


def act(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_free_action_moves_the_target_by_its_share_of_a_step_and_is_executed_whole() -> None:
    made = PROJECTION.project(act(0.5, -1.0, 0.25, -1.0), MIDDLE, MIDDLE)
    np.testing.assert_allclose(made.target_m - MIDDLE, [0.01, -0.02, 0.005], atol=1e-9)
    np.testing.assert_allclose(made.executed, [0.5, -1.0, 0.25, -1.0], atol=1e-6)
    assert made.reasons == ()
    np.testing.assert_allclose(tip_pose(made.joints_rad).xyz_m, made.target_m, atol=1e-5)


def test_the_jaw_goes_linearly_from_open_to_closed() -> None:
    jaws = [PROJECTION.project(act(0, 0, 0, g), MIDDLE, MIDDLE).joints_rad[5] for g in (-1, 0, 1)]
    open_rad, closed_rad = TASK.gripper.open_rad, TASK.gripper.closed_rad
    np.testing.assert_allclose(jaws, [open_rad, (open_rad + closed_rad) / 2, closed_rad])
    assert np.isclose(PROJECTION.gripper(PROJECTION.jaw_rad(0.3)), 0.3)


def test_the_workspace_cuts_the_action_and_the_executed_one_says_how_much_was_left() -> None:
    low = np.array([0.19, 0.0, TASK.workspace.lo_m[2] + 0.005])
    made = PROJECTION.project(act(0, 0, -1, 0), low, low)
    assert made.reasons == ("workspace",)
    assert np.isclose(made.target_m[2], TASK.workspace.lo_m[2])
    assert np.isclose(made.executed[2], -0.25)


def test_the_leash_keeps_the_target_near_the_measured_tip() -> None:
    behind = MIDDLE - [0.035, 0.0, 0.0]
    made = PROJECTION.project(act(1, 0, 0, 0), MIDDLE, behind)
    assert made.reasons == ("leash",)
    assert np.isclose(made.target_m[0] - behind[0], TASK.workspace.leash_m)


@given(st.tuples(share, share, share, share), st.tuples(share, share, share), st.tuples(share, share, share))
def test_whatever_is_asked_the_result_is_safe_and_recorded_within_the_action_space(
    action: tuple[float, ...], at: tuple[float, ...], off: tuple[float, ...]
) -> None:
    lo, hi = np.array(TASK.workspace.lo_m), np.array(TASK.workspace.hi_m)
    target = (lo + hi) / 2 + np.array(at) / 1.5 * (hi - lo) / 2
    made = PROJECTION.project(act(*action), target, target + 0.05 * np.array(off))
    assert np.all(np.abs(made.executed) <= 1.0)
    # A pose out of the arm's reach is met as nearly as it can be, which may lie a hair outside the box.
    slack = 0.05 if "unreachable" in made.reasons else 1e-9
    assert np.all(made.target_m >= lo - slack) and np.all(made.target_m <= hi + slack)
    assert np.all(made.joints_rad >= LIMITS_RAD[:, 0] - 1e-9) and np.all(made.joints_rad <= LIMITS_RAD[:, 1] + 1e-9)


def test_an_action_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        PROJECTION.project(act(np.nan, 0, 0, 0), MIDDLE, MIDDLE)
