"""What the virtual servos move: the mechanics as they see them, and joints without mass that follow their goals."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from steadyhand_runtime.clock import NS_PER_S, Clock

F64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

TIME_CONSTANT_S = 0.05
MAX_STEP_S = 0.005  # a ramp is followed in steps no longer than this
SAME_TIME_NS = 100_000  # one request's reading and driving see one moment
SETTLED_RAD = 1e-9
FULL_EFFORT_RAD = 0.05  # a blocked joint this far from its goal pushes with all its torque


class PlantState(NamedTuple):
    """Joints 1..J: angle from mid-travel, speed, and effort in -1..1 of stall torque."""

    position_rad: F64
    velocity_rad_s: F64
    effort: F64


class Plant(Protocol):
    """The mechanics behind the servos. Arrays are (J,) in bus order."""

    def read(self) -> PlantState: ...

    def drive(self, goal_rad: F64, enabled: Flags, torque_limit: F64) -> None: ...


@runtime_checkable
class HandPlant(Plant, Protocol):
    """Mechanics whose speed follows the servos' own ramps, and which a hand may turn or hold. `joint` counts from 0."""

    def shape(self, joint: int, velocity_rad_s: float, acceleration_rad_s2: float) -> None: ...

    def place_joint(self, joint: int, position_rad: float) -> None: ...

    def block(self, joint: int, blocked: bool) -> None: ...


class StillPlant:
    """Joints that follow their goals as a first-order lag, without mass or contact. Is a HandPlant.

    A goal acts `delay_s` after it was given. Speed and acceleration are unlimited until `shape` or `top_speed_rad_s`
    says otherwise: then the lag follows a ramp towards the goal.
    """

    def __init__(
        self,
        joints: int = 6,
        time_constant_s: float = TIME_CONSTANT_S,
        delay_s: float = 0.0,
        top_speed_rad_s: float = math.inf,
    ) -> None:
        self._joints = [_Joint(top_speed_rad_s) for _ in range(joints)]
        self._time_constant_s = time_constant_s
        self._delay_s = delay_s
        self._top_speed_rad_s = top_speed_rad_s
        self._time_s = 0.0

    def read(self) -> PlantState:
        joints = self._joints
        return PlantState(
            np.array([j.position for j in joints]),
            np.array([j.velocity for j in joints]),
            np.array([j.effort for j in joints]),
        )

    def drive(self, goal_rad: F64, enabled: Flags, torque_limit: F64) -> None:
        act_s = self._time_s + self._delay_s
        for joint, goal, on, limit in zip(self._joints, goal_rad.tolist(), enabled.tolist(), torque_limit.tolist()):
            joint.drive(goal, limit if on else 0.0, act_s)
            if not self._delay_s:
                joint.take_goals(self._time_s)

    def advance(self, dt_s: float) -> None:
        self._time_s += dt_s
        for joint in self._joints:
            joint.advance(self._time_s, dt_s, self._time_constant_s)

    def place(self, position_rad: Sequence[float] | F64) -> None:
        """Move the joints by hand."""
        for joint, position in zip(self._joints, position_rad):
            joint.place(float(position))

    def place_joint(self, joint: int, position_rad: float) -> None:
        self._joints[joint].place(position_rad)

    def shape(self, joint: int, velocity_rad_s: float, acceleration_rad_s2: float) -> None:
        """Limit one joint's ramp; `math.inf` is no limit."""
        self._joints[joint].top_speed = min(velocity_rad_s, self._top_speed_rad_s)
        self._joints[joint].acceleration = acceleration_rad_s2

    def block(self, joint: int, blocked: bool) -> None:
        """Hold one joint fast, so that it pushes against what holds it."""
        self._joints[joint].blocked = blocked


class FollowingPlant(StillPlant):
    """Joints that have moved by as much time as has passed whenever somebody asks."""

    def __init__(self, clock: Clock, joints: int = 6, delay_s: float = 0.0, top_speed_rad_s: float = math.inf) -> None:
        super().__init__(joints, delay_s=delay_s, top_speed_rad_s=top_speed_rad_s)
        self._clock = clock
        self._last_ns = clock.now_ns()

    def read(self) -> PlantState:
        self._catch_up()
        return super().read()

    def drive(self, goal_rad: F64, enabled: Flags, torque_limit: F64) -> None:
        self._catch_up()
        super().drive(goal_rad, enabled, torque_limit)

    def _catch_up(self) -> None:
        now_ns = self._clock.now_ns()
        if now_ns - self._last_ns >= SAME_TIME_NS:
            self.advance((now_ns - self._last_ns) / NS_PER_S)
            self._last_ns = now_ns


class _Joint:
    """One joint: goals on their way, a ramp towards the one in force, and a lag behind the ramp. rad and seconds."""

    __slots__ = (
        "_coming",
        "_goal",
        "_last_goal",
        "_limit",
        "_ramp",
        "_ramp_speed",
        "acceleration",
        "blocked",
        "effort",
        "position",
        "top_speed",
        "velocity",
    )

    def __init__(self, top_speed: float) -> None:
        self.position = self.velocity = self.effort = 0.0
        self.top_speed = top_speed
        self.acceleration = math.inf
        self.blocked = False
        self._goal = self._ramp = self._ramp_speed = 0.0
        self._limit = 0.0
        self._last_goal = math.nan
        self._coming: deque[tuple[float, float]] = deque()

    def drive(self, goal: float, limit: float, act_s: float) -> None:
        if limit > 0.0 and self._limit <= 0.0:
            self._hold()  # a servo that wakes stays where it is until its goal acts
        self._limit = limit
        if limit > 0.0 and goal != self._last_goal:
            self._coming.append((act_s, goal))
            self._last_goal = goal

    def take_goals(self, now_s: float) -> None:
        while self._coming and self._coming[0][0] <= now_s:
            self._goal = self._coming.popleft()[1]

    def place(self, position: float) -> None:
        self.position = self._ramp = position
        self.velocity = self._ramp_speed = 0.0

    def advance(self, now_s: float, dt_s: float, time_constant_s: float) -> None:
        """Let `dt_s` pass up to `now_s`, with every goal taken when it is due."""
        if self._limit <= 0.0:
            self._ramp, self._ramp_speed = self.position, 0.0
            self.velocity = self.effort = 0.0
            return
        if self._ramp == self._goal == self.position and not self._coming:
            self.velocity = self.effort = 0.0
            return
        before, at_s = self.position, now_s - dt_s
        while at_s < now_s:
            self.take_goals(at_s)
            until_s = min(now_s, self._coming[0][0]) if self._coming else now_s
            self._follow(until_s - at_s, time_constant_s)
            at_s = until_s
        self.take_goals(now_s)
        if self.blocked:
            self.effort = max(-self._limit, min(self._limit, (self._ramp - self.position) / FULL_EFFORT_RAD))
        else:
            self.effort = 0.0
        self.velocity = (self.position - before) / dt_s

    def _follow(self, dt_s: float, time_constant_s: float) -> None:
        while dt_s > 0.0:
            step_s = dt_s if self._ramp == self._goal else min(dt_s, MAX_STEP_S)
            if self._ramp != self._goal:
                self._climb(step_s)
                step_s = dt_s if self._ramp == self._goal and self.top_speed == math.inf else step_s
            if not self.blocked and self.position != self._ramp:
                gap = (self._ramp - self.position) * math.exp(-step_s / time_constant_s)
                self.position = self._ramp - gap if abs(gap) > SETTLED_RAD else self._ramp
            dt_s -= step_s

    def _climb(self, dt_s: float) -> None:
        """Move the ramp towards the goal, no faster than lets it stop there."""
        way = self._goal - self._ramp
        if self.acceleration == math.inf:
            speed = math.copysign(self.top_speed, way)
        else:
            wanted = math.copysign(min(self.top_speed, math.sqrt(2.0 * self.acceleration * abs(way))), way)
            change = self.acceleration * dt_s
            speed = self._ramp_speed + max(-change, min(change, wanted - self._ramp_speed))
        step = speed * dt_s
        if step * way > 0.0 and abs(step) >= abs(way):
            self._ramp, self._ramp_speed = self._goal, 0.0
        else:
            self._ramp += step
            self._ramp_speed = speed

    def _hold(self) -> None:
        self._coming.clear()
        self._goal = self._ramp = self.position
        self._ramp_speed = 0.0
        self._last_goal = math.nan
