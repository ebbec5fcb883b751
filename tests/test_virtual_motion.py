"""How joints without mechanics of their own move: delay, ramps, hands that turn or hold them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyhand_runtime.bus import protocol
from steadyhand_runtime.clock import ManualClock
from steadyhand_runtime.sim.plant import FollowingPlant, StillPlant
from steadyhand_runtime.sim.servos import VirtualChain

RAD_PER_TICK = 2 * np.pi / 4096
ON = np.ones(6, bool)
FULL = np.ones(6)
T0 = 1_000_000_000


def goals(first_rad: float) -> np.ndarray:
    return np.array([first_rad, 0, 0, 0, 0, 0])


def course(plant: StillPlant, seconds: float, dt_s: float = 0.002) -> np.ndarray:
    """Where the first joint is after every `dt_s`."""
    where = []
    for _ in range(round(seconds / dt_s)):
        plant.advance(dt_s)
        where.append(plant.read().position_rad[0])
    return np.array(where)


def chain_with(plant: StillPlant, *writes: tuple[int, bytes]) -> VirtualChain:
    chain = VirtualChain(plant)
    for address, data in writes:
        chain.feed(protocol.write(1, address, data), T0)
    return chain


def test_a_goal_acts_after_the_delay_and_meanwhile_the_joint_holds() -> None:
    plant = StillPlant(delay_s=0.1)
    plant.place(goals(0.3))
    plant.drive(goals(1.0), ON, FULL)
    way = course(plant, 0.2)
    assert (way[:49] == 0.3).all()
    assert way[55] > 0.3
    assert way[-1] < 1.0


def test_goals_on_their_way_act_one_after_the_other() -> None:
    plant = StillPlant(delay_s=0.1, time_constant_s=0.001)
    for n in range(1, 6):
        plant.drive(goals(n / 10), ON, FULL)
        plant.advance(0.02)
    np.testing.assert_allclose(course(plant, 0.1, 0.02), [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-6)


def test_torque_off_forgets_the_goals_on_their_way() -> None:
    plant = StillPlant(delay_s=0.1)
    plant.drive(goals(1.0), ON, FULL)
    plant.drive(goals(1.0), ~ON, FULL)
    plant.drive(goals(0.0), ON, FULL)
    assert not course(plant, 0.5).any()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 3.0), st.floats(0.5, 4.0), st.floats(2.0, 40.0))
def test_a_ramp_keeps_speed_and_acceleration_and_arrives(way_rad: float, speed: float, acceleration: float) -> None:
    plant = StillPlant(time_constant_s=1e-6)
    plant.shape(0, speed, acceleration)
    plant.drive(goals(way_rad), ON, FULL)
    way = np.concatenate([[0.0], course(plant, 2 * way_rad / speed + 4 * speed / acceleration + 3.0)])
    speeds = np.diff(way) / 0.002
    assert speeds.max() <= speed + 1e-6
    assert np.diff(speeds).max() <= acceleration * 0.002 + 1e-6
    assert way[-1] == pytest.approx(way_rad, abs=1e-6)
    assert way.max() <= way_rad + 1e-6


def test_the_speed_register_limits_the_motion() -> None:
    plant = StillPlant()
    chain_with(plant, (46, (500).to_bytes(2, "little")), (42, (3048).to_bytes(2, "little")))
    way = course(plant, 1.0) / RAD_PER_TICK
    assert np.diff(way).max() / 0.002 == pytest.approx(500, rel=0.01)
    assert way[-1] == pytest.approx(500 - 500 * 0.05, rel=0.02)


def test_the_acceleration_register_counts_a_hundred_steps() -> None:
    plant = StillPlant(time_constant_s=1e-6)
    chain_with(plant, (41, b"\x0a"), (42, (4000).to_bytes(2, "little")))
    speeds = np.diff(course(plant, 0.5)) / RAD_PER_TICK / 0.002
    assert speeds[-1] == pytest.approx(1000 * 0.5, rel=0.02)


def test_without_limits_only_the_top_speed_counts() -> None:
    plant = StillPlant(top_speed_rad_s=4.7)
    chain_with(plant, (46, b"\0\0"), (42, (4000).to_bytes(2, "little")))
    assert np.diff(course(plant, 1.0)).max() / 0.002 == pytest.approx(4.7, rel=0.02)


def test_power_off_forgets_the_ramp() -> None:
    plant = StillPlant()
    chain = chain_with(plant, (46, (500).to_bytes(2, "little")))
    chain.power_cycle()
    chain.feed(protocol.write(1, 42, (3048).to_bytes(2, "little")), T0)
    assert course(plant, 0.5)[-1] / RAD_PER_TICK == pytest.approx(1000, abs=1)


def test_a_hand_turns_only_a_joint_without_torque() -> None:
    plant = StillPlant()
    chain = chain_with(plant)
    chain.place(0, 1000)
    assert plant.read().position_rad[0] == pytest.approx((1000 - 2048) * RAD_PER_TICK)
    chain.feed(protocol.write(1, 40, b"\x01"), T0)
    with pytest.raises(ValueError, match="servo 1 holds its position: switch its torque off first"):
        chain.place(0, 2000)


def test_a_blocked_joint_pushes_with_its_torque_limit_and_trips() -> None:
    plant = StillPlant()
    chain = chain_with(plant, (48, (900).to_bytes(2, "little")), (42, (3000).to_bytes(2, "little")))
    chain.block(0, True)
    for n in range(25):
        plant.advance(0.1)
        chain.refresh(T0 + n * 100_000_000)
    servo = chain.servos[0]
    assert plant.read().position_rad[0] == 0.0
    assert servo.alarms == 32
    assert servo.torque_share() == pytest.approx(0.9 * 0.2)
    chain.block(0, False)
    assert course(plant, 1.0)[-1] > 1.0


def test_joints_move_by_the_time_that_has_passed() -> None:
    clock = ManualClock()
    plant = FollowingPlant(clock)
    plant.drive(np.full(6, 0.5), ON, FULL)
    assert not plant.read().position_rad.any()
    clock.advance_s(0.05)
    np.testing.assert_allclose(plant.read().position_rad, 0.5 * (1 - np.exp(-1)), atol=1e-6)
