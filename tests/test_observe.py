"""Observations: layout, units, ages, and what may not be acted on."""

from __future__ import annotations

import numpy as np
from control_world import bus_state, frames_at
from onnx_models import lift

from steadyhand_runtime.kinematics import tip_pose
from steadyhand_runtime.observe import Blind, Observation, Observer

NOW_NS = 5_000_000_000
Q = np.array([0.1, -0.4, 0.5, 1.2, -1.4, 0.3])


def see(**changes: object) -> Observation | Blind:
    contract = lift().contract()
    inputs: dict = {"bus": bus_state(NOW_NS - 20_000_000, Q), "frames": frames_at(NOW_NS - 40_000_000), "target": None}
    inputs |= changes
    return Observer(contract).see(NOW_NS, inputs["bus"], inputs["frames"], inputs["target"])


def test_the_state_vector_is_joints_velocities_tip_and_how_far_the_target_is_ahead() -> None:
    velocity = np.arange(6) / 10.0
    target = tip_pose(Q).xyz_m + np.array([0.01, 0.0, -0.02])
    seen = see(bus=bus_state(NOW_NS, Q, velocity_rad_s=velocity), target=target)
    assert isinstance(seen, Observation)
    expected = np.concatenate([Q, velocity, tip_pose(Q).xyz_m, [0.01, 0.0, -0.02]])
    np.testing.assert_allclose(seen.state, expected, atol=1e-6)
    assert seen.state.dtype == np.float32
    assert len(seen.state) == len(lift().contract().state)


def test_outside_an_episode_no_target_is_ahead() -> None:
    seen = see()
    assert isinstance(seen, Observation)
    assert not seen.state[15:].any()


def test_frames_are_stacked_in_the_contract_s_order() -> None:
    seen = see(frames=frames_at(NOW_NS, front=10, wrist=200))
    assert isinstance(seen, Observation)
    assert seen.frames.shape == lift().contract().frames_shape
    assert (seen.frames[0] == 10).all() and (seen.frames[1] == 200).all()


def test_ages_are_those_of_the_oldest_part() -> None:
    frames = frames_at(NOW_NS - 40_000_000) | {"wrist": frames_at(NOW_NS - 90_000_000)["wrist"]}
    seen = see(frames=frames, bus=bus_state(NOW_NS - 20_000_000, Q, age_s=np.array([0, 0, 0.03, 0, 0, 0])))
    assert isinstance(seen, Observation)
    assert np.isclose(seen.frame_age_s, 0.09) and np.isclose(seen.state_age_s, 0.05)


def test_missing_old_or_foreign_parts_make_a_tick_blind_and_say_which() -> None:
    fresh = frames_at(NOW_NS)
    small = frames_at(NOW_NS, size=32)
    cases = {
        "no_bus": {"bus": None},
        "stale_bus": {"bus": bus_state(NOW_NS - 200_000_000, Q)},
        "no_camera_wrist": {"frames": {"front": fresh["front"]}},
        "stale_camera_front": {"frames": frames_at(NOW_NS - 400_000_000)},
        "wrong_size_camera_wrist": {"frames": {"front": fresh["front"], "wrist": small["wrist"]}},
        "state_not_finite": {"bus": bus_state(NOW_NS, Q, velocity_rad_s=np.full(6, np.nan))},
    }
    for reason, changes in cases.items():
        assert see(**changes) == Blind(reason)


def test_a_single_silent_joint_makes_the_state_stale() -> None:
    assert see(bus=bus_state(NOW_NS, Q, age_s=np.array([0, 0, 0, 0, 0.5, 0]))) == Blind("stale_bus")
