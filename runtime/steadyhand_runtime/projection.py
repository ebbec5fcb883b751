"""Projection: an action of the contract to a tip target, and from there to joint goals; pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models.task import Task
from steadyhand_runtime import kinematics

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Projected:
    """What remains of an action: tip target (3,) m, joint goal (6,) rad, executed action (A,), and what cut it."""

    target_m: F64
    joints_rad: F64
    executed: F32
    reasons: tuple[str, ...]


class Projection:
    """One task's action space: tip motion in shares of `step_m` along the base axes, jaw from open -1 to closed +1."""

    def __init__(self, task: Task) -> None:
        space = task.workspace
        self._lo_m, self._hi_m = np.array(space.lo_m), np.array(space.hi_m)
        self._step_m, self._leash_m = space.step_m, space.leash_m
        self._pitch_rad = space.pitch_hi_rad
        self._open_rad, self._closed_rad = task.gripper.open_rad, task.gripper.closed_rad

    def project(self, action: F32, target_m: F64, tip_m: F64) -> Projected:
        """Move the target by action (A,), kept within the leash about the measured tip and within the workspace.

        target_m (3,) is the target so far, tip_m (3,) the measured tip. Raises ValueError on a non-finite action.
        """
        if not np.isfinite(action).all():
            raise ValueError("action is not finite")
        wanted = np.clip(action, -1.0, 1.0).astype(np.float64)
        free_m = target_m + self._step_m * wanted[:3]
        leashed_m = np.clip(free_m, tip_m - self._leash_m, tip_m + self._leash_m)
        boxed_m = np.clip(leashed_m, self._lo_m, self._hi_m)
        solution = kinematics.solve(boxed_m, self._pitch_rad)
        reached_m = boxed_m if solution.reachable else kinematics.tip_pose(solution.q_rad).xyz_m
        moved = np.clip((reached_m - target_m) / self._step_m, -1.0, 1.0)
        reasons = [
            name
            for name, before, after in (("leash", free_m, leashed_m), ("workspace", leashed_m, boxed_m))
            if np.abs(after - before).max() > TOLERANCE
        ]
        if not solution.reachable:
            reasons.append("unreachable")
        return Projected(
            target_m=reached_m,
            joints_rad=np.append(solution.q_rad, self.jaw_rad(float(wanted[3]))),
            executed=np.append(moved, wanted[3]).astype(np.float32),
            reasons=tuple(reasons),
        )

    def jaw_rad(self, gripper: float) -> float:
        """Jaw angle of a gripper action in [-1, 1]."""
        return self._open_rad + (self._closed_rad - self._open_rad) * (gripper + 1.0) / 2.0

    def gripper(self, jaw_rad: float) -> float:
        """The gripper action in [-1, 1] that holds a jaw angle."""
        share = (jaw_rad - self._open_rad) / (self._closed_rad - self._open_rad)
        return float(np.clip(2.0 * share - 1.0, -1.0, 1.0))
