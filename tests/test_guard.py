"""The guard: whatever is asked for, the command stays within position, speed and acceleration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_runtime.bus.guard import (
    Command,
    Limits,
    Refusal,
    Target,
    check,
    rest,
    stopping_speed,
)

DT_S = 0.01
LIMITS = Limits(np.full(6, -1.5), np.full(6, 1.5), np.full(6, 3.0), np.full(6, 40.0))
NEVER_NS = 10**15
anything = st.floats(allow_nan=True, allow_infinity=True, width=32)
goals = st.lists(st.one_of(st.floats(-2.0, 2.0), anything), min_size=6, max_size=6).map(np.array)


def target(q: object, arrive_s: float = 0.1, expires_ns: int = NEVER_NS) -> Target:
    return Target(np.broadcast_to(np.asarray(q, float), (6,)), round(arrive_s * 1e9), expires_ns)


def run(aim: Target | None, ticks: int, start: Command | None = None) -> list[Command]:
    commands = [start or rest(np.zeros(6))]
    for n in range(ticks):
        commands.append(check(aim, round(n * DT_S * 1e9), DT_S, commands[-1], LIMITS))
    return commands[1:]


@given(st.lists(st.tuples(st.one_of(st.none(), goals), st.floats(0, 0.3), st.integers(1, 12)), min_size=1, max_size=12))
def test_no_sequence_of_goals_breaks_a_limit(plan: list[tuple[np.ndarray | None, float, int]]) -> None:
    last = rest(np.zeros(6))
    now_ns = 0
    for goal, arrive_s, ticks in plan:
        aim = None if goal is None else Target(goal, now_ns + round(arrive_s * 1e9), now_ns + 60_000_000)
        for _ in range(ticks):
            now_ns += 10_000_000
            command = check(aim, now_ns, DT_S, last, LIMITS)
            assert np.isfinite(command.q_rad).all()
            assert (np.abs(command.q_rad) <= 1.5).all()
            assert (np.abs(command.q_rad - last.q_rad) <= 3.0 * DT_S + 1e-9).all()
            assert (np.abs(command.v_rad_s - last.v_rad_s) <= 40.0 * DT_S + 1e-6).all()
            np.testing.assert_allclose(command.q_rad, last.q_rad + command.v_rad_s * DT_S, atol=1e-9)
            last = command


@given(st.floats(1e-6, 3.0), st.floats(1.0, 200.0))
def test_braking_from_the_stopping_speed_uses_exactly_the_distance(distance: float, a_max: float) -> None:
    v = float(stopping_speed(np.array([distance]), np.array([a_max]), DT_S)[0])
    travelled = 0.0
    while v > 0:
        travelled += v * DT_S
        v -= a_max * DT_S
    assert travelled == pytest.approx(distance, rel=1e-6)


def test_a_goal_is_reached_and_held_without_overshoot() -> None:
    commands = run(target(0.4), 60)
    assert max(c.q_rad[0] for c in commands) <= 0.4 + 1e-12
    assert commands[-1].q_rad == pytest.approx(np.full(6, 0.4))
    assert commands[-1].v_rad_s == pytest.approx(np.zeros(6))
    assert commands[-1].reasons == ()


def test_goals_at_ten_hertz_become_an_even_motion() -> None:
    last = rest(np.zeros(6))
    speeds = []
    for tick in range(200):
        step, now_ns = tick // 10, tick * 10_000_000
        aim = target(0.05 * (step + 1), arrive_s=(step * 10 * DT_S) + 0.12)
        last = check(aim, now_ns, DT_S, last, LIMITS)
        speeds.append(last.v_rad_s[0])
    settled = np.array(speeds[100:])
    assert settled.mean() == pytest.approx(0.5, rel=0.02)
    assert settled.std() < 0.05


def test_a_goal_beyond_a_joints_limit_is_followed_to_the_limit_and_says_so() -> None:
    commands = run(target([2.0, 0, 0, 0, 0, 0]), 200)
    assert commands[-1].q_rad[0] == pytest.approx(1.5)
    assert Refusal.JOINT_LIMIT in commands[-1].reasons


def test_a_goal_too_far_to_reach_in_time_is_approached_at_the_limit_and_says_so() -> None:
    commands = run(target(1.4), 20)
    assert max(c.v_rad_s[0] for c in commands) == pytest.approx(3.0)
    assert Refusal.SPEED in commands[0].reasons


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_goal_that_is_not_finite_moves_nothing(bad: float) -> None:
    commands = run(target([bad, 0.5, 0.5, 0.5, 0.5, 0.5]), 20)
    assert commands[-1].reasons == (Refusal.NONFINITE,)
    assert commands[-1].q_rad.tolist() == [0.0] * 6


def test_a_stale_goal_brakes_to_a_stand() -> None:
    commands = run(target(1.0, arrive_s=1.0, expires_ns=100_000_000), 60)
    assert commands[30].reasons == (Refusal.STALE,)
    assert commands[-1].v_rad_s.tolist() == [0.0] * 6
    assert 0.0 < commands[-1].q_rad[0] < 0.3
    assert commands[-1].q_rad.tolist() == commands[-10].q_rad.tolist()


def test_the_workspace_hook_refuses_by_holding() -> None:
    command = check(target(0.5), 0, DT_S, rest(np.zeros(6)), LIMITS, allowed=lambda q: bool(q[0] < 0.4))
    assert command.reasons == (Refusal.WORKSPACE,)
    assert command.q_rad.tolist() == [0.0] * 6


def test_an_arm_found_outside_its_limits_may_come_back_but_not_go_on() -> None:
    start = rest(np.full(6, 1.7))
    outwards = run(target(1.9), 50, start)
    assert all((c.q_rad <= 1.7 + 1e-12).all() for c in outwards)
    assert outwards[-1].q_rad == pytest.approx(np.full(6, 1.5))
    first = outwards[0]
    assert (np.abs(first.q_rad - 1.7) <= 3.0 * DT_S).all()
