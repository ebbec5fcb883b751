"""The reset motion: raise the tip off the table, move the joints to the reset pose, and verify the arrival."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models.task import Task
from steadyhand_runtime import kinematics
from steadyhand_runtime.clock import NS_PER_S

F64 = npt.NDArray[np.float64]

RAISE_M_S = 0.30
JOINT_RAD_S = 2.0
RAISE_STRIDE_M = 0.01
ARRIVED_M = 0.012
ARRIVED_JAW_RAD = 0.15
ARRIVED_RAD_S = 0.5


@dataclass(frozen=True, slots=True)
class ResetTurn:
    """Joint goal (6,) rad of one tick, and whether the arm has arrived or the time is up."""

    goal_rad: F64
    arrived: bool
    failed: bool


class ResetMotion:
    """One task's way back to its reset pose. `begin` plans from where the arm is; `tick` follows the plan in time."""

    def __init__(self, task: Task) -> None:
        self._pitch_rad = task.workspace.pitch_hi_rad
        self._tip_m = np.array(task.reset.tip_m)
        self._timeout_s = task.reset.timeout_s
        pose = kinematics.solve(self._tip_m, self._pitch_rad)
        if not pose.reachable:
            raise ValueError(f"reset.tip_m {task.reset.tip_m} cannot be reached")
        self.pose_rad: F64 = np.append(pose.q_rad, task.reset.jaw_rad)
        self._start_ns = 0
        self._times_s: F64 = np.zeros(1)
        self._waypoints_rad: F64 = self.pose_rad[None]

    def begin(self, now_ns: int, joints_rad: F64) -> None:
        """Plan from joints (6,) rad."""
        self._start_ns = now_ns
        waypoints = [np.array(joints_rad), *self._raise(joints_rad)]
        seconds = [0.0, *[RAISE_STRIDE_M / RAISE_M_S] * (len(waypoints) - 1)]
        waypoints.append(self.pose_rad)
        seconds.append(float(np.abs(waypoints[-1] - waypoints[-2]).max()) / JOINT_RAD_S)
        self._waypoints_rad = np.array(waypoints)
        self._times_s = np.cumsum(seconds)

    def tick(self, now_ns: int, joints_rad: F64, velocity_rad_s: F64) -> ResetTurn:
        """The goal now, given measured joints (6,) rad and their velocities."""
        elapsed_s = (now_ns - self._start_ns) / NS_PER_S
        goal = np.array([np.interp(elapsed_s, self._times_s, column) for column in self._waypoints_rad.T])
        there = elapsed_s >= self._times_s[-1] and self._is_there(joints_rad, velocity_rad_s)
        return ResetTurn(goal, there, not there and elapsed_s > self._timeout_s)

    def _raise(self, joints_rad: F64) -> list[F64]:
        """Joints on the way straight up to the reset height, jaw as it is; none where the arm cannot hold that line."""
        tip_m = kinematics.tip_pose(joints_rad).xyz_m
        count = math.ceil((self._tip_m[2] - tip_m[2]) / RAISE_STRIDE_M)
        path = []
        for i in range(1, count + 1):
            at_m = tip_m + np.array([0.0, 0.0, min(i * RAISE_STRIDE_M, self._tip_m[2] - tip_m[2])])
            solution = kinematics.solve(at_m, self._pitch_rad)
            if not solution.reachable:
                return []
            path.append(np.append(solution.q_rad, joints_rad[5]))
        return path

    def _is_there(self, joints_rad: F64, velocity_rad_s: F64) -> bool:
        off_m = np.abs(kinematics.tip_pose(joints_rad).xyz_m - self._tip_m).max()
        jaw_off_rad = abs(joints_rad[5] - self.pose_rad[5])
        still = np.abs(velocity_rad_s).max() < ARRIVED_RAD_S
        return bool(off_m < ARRIVED_M and jaw_off_rad < ARRIVED_JAW_RAD and still)
