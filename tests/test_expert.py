"""The scripted hand lifts the cube from where it starts, from anywhere else, and after a miss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mujoco")

from steadyhand_runtime.kinematics import solve, tip_pose
from steadyhand_runtime.sim.expert import ExpertHand, HandSettings, Move
from steadyhand_runtime.sim.scene import SceneSettings
from steadyhand_runtime.sim.world import TruthState, World

WORKSPACE_M = np.array([[0.10, -0.14, 0.012], [0.30, 0.14, 0.16]])
RESET_M = np.array([0.19, 0.0, 0.11])


class Desk:
    """Turns actions into goals as a 10 Hz controller with goals interpolated at 100 Hz would."""

    def __init__(self, settings: SceneSettings | None = None) -> None:
        self.world = World(settings)
        self.limit = np.array([1, 1, 1, 1, 1, 0.5])

    def reset(self, rng: np.random.Generator) -> None:
        self.target, self.goal = RESET_M.copy(), np.append(solve(RESET_M).q_rad, 0.9)
        self.world.put_arm(self.goal)
        self.world.place_cube(rng)
        self.world.drive(self.goal, np.ones(6, bool), self.limit)
        self.world.advance(0.1)

    def step(self, action: np.ndarray) -> TruthState:
        tip = tip_pose(self.world.read().position_rad).xyz_m
        target = np.clip(self.target + 0.02 * action[:3], tip - 0.04, tip + 0.04)
        self.target = np.clip(target, *WORKSPACE_M)
        goal = np.append(solve(self.target).q_rad, 0.9 - 0.5 * (action[3] + 1.0))
        for part in np.linspace(0.1, 1.0, 10):
            self.world.drive(self.goal + part * (goal - self.goal), np.ones(6, bool), self.limit)
            self.world.advance(0.01)
        self.goal = goal
        return self.world.truth()

    def lift(self, hand: ExpertHand, steps: int = 60) -> int | None:
        hand.begin()
        truth = self.world.truth()
        for step in range(1, steps + 1):
            truth = self.step(hand.act(truth, self.target))
            if truth.success:
                return step
        return None


def test_it_lifts_the_cube_nearly_always_and_quickly() -> None:
    rng = np.random.default_rng(0)
    desk, hand = Desk(), ExpertHand(rng)
    taken = []
    for _ in range(60):
        desk.reset(rng)
        taken.append(desk.lift(hand))
    lifted = [steps for steps in taken if steps is not None]
    assert len(lifted) >= 59
    assert np.median(lifted) <= 20


def test_it_takes_over_from_wherever_a_bad_policy_left_the_arm() -> None:
    rng = np.random.default_rng(1)
    desk, hand = Desk(), ExpertHand(rng)
    lifted = 0
    for _ in range(25):
        desk.reset(rng)
        for k in range(16):
            if k % 4 == 0:
                push = rng.uniform(-1.0, 1.0, 4)
            desk.step(push)
        lifted += desk.lift(hand) is not None
    assert lifted >= 24


def test_it_lets_go_and_tries_again_when_the_jaws_missed() -> None:
    rng = np.random.default_rng(2)
    desk, hand = Desk(), ExpertHand(rng)
    desk.reset(rng)
    desk.world.put_cube(0.21, 0.0)
    beside = np.array([0.21, 0.045, 0.014])
    desk.target, desk.goal = beside, np.append(solve(beside).q_rad, -0.1)
    desk.world.put_arm(desk.goal)
    desk.world.drive(desk.goal, np.ones(6, bool), desk.limit)
    desk.world.advance(0.2)
    assert desk.lift(hand) is not None


def test_it_carries_on_lifting_a_cube_that_is_already_held() -> None:
    rng = np.random.default_rng(3)
    desk, hand = Desk(), ExpertHand(rng)
    desk.reset(rng)
    truth = desk.world.truth()
    while not truth.grasped:
        truth = desk.step(hand.act(truth, desk.target))
    hand.begin()
    assert desk.lift(hand, steps=8) is not None
    assert hand.move is Move.LIFT


def still(**changes: object) -> TruthState:
    seen = TruthState(np.array([0.21, 0.0, 0.0125]), 0.0, RESET_M.copy(), 0.9, 0.0, False, False)
    return replace(seen, **changes)  # type: ignore[arg-type]


def test_actions_stay_within_the_action_space_and_below_full_speed() -> None:
    hand = ExpertHand(np.random.default_rng(4), HandSettings(noise=0.0))
    for _ in range(10):
        action = hand.act(still(cube_xyz_m=np.array([0.5, 0.5, 0.0125])), RESET_M)
        assert np.abs(action[:3]).max() <= 0.85 + 1e-9
        assert np.abs(action).max() <= 1.0


def test_equal_seeds_give_equal_actions() -> None:
    one, two = (ExpertHand(np.random.default_rng(5)) for _ in range(2))
    for _ in range(5):
        np.testing.assert_array_equal(one.act(still(), RESET_M), two.act(still(), RESET_M))


def test_it_keeps_the_jaws_open_until_the_cube_is_between_them() -> None:
    hand = ExpertHand(np.random.default_rng(6))
    assert hand.act(still(), RESET_M)[3] == pytest.approx(-1.0)
    at_cube = still(tip_xyz_m=np.array([0.21, 0.007, 0.014]))
    assert hand.act(at_cube, at_cube.tip_xyz_m)[3] == pytest.approx(1.0)
    assert hand.move is Move.CLOSE


def test_it_rises_before_it_moves_sideways_when_the_fingers_are_low() -> None:
    hand = ExpertHand(np.random.default_rng(7), HandSettings(noise=0.0))
    low = np.array([0.25, 0.06, 0.014])
    action = hand.act(still(tip_xyz_m=low), low)
    assert action[2] > 0.5
    np.testing.assert_allclose(action[:2], 0.0, atol=1e-9)


def test_it_stops_squeezing_when_nothing_is_held() -> None:
    hand = ExpertHand(np.random.default_rng(8))
    stuck = still(tip_xyz_m=np.array([0.21, 0.007, 0.014]), jaw_rad=0.05)
    moves = []
    for _ in range(12):
        hand.act(stuck, stuck.tip_xyz_m)
        moves.append(hand.move)
    assert Move.CLOSE in moves and Move.BACK_UP in moves
