"""The scripted hand: how a person who sees the truth would drive the gripper to lift the cube."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from steadyhand_runtime.sim.world import TruthState

F64 = npt.NDArray[np.float64]


class Move(str, Enum):
    """What the hand is doing; decided anew each tick from what is true, so that it may take over at any time."""

    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    BACK_UP = "back_up"


@dataclass(frozen=True, slots=True)
class HandSettings:
    """The hand's manner. Lengths in metres, angles in rad; speed and noise as shares of the largest action."""

    step_m: float = 0.02
    speed: float = 0.85
    noise: float = 0.05
    smoothing: float = 0.25
    aim_error_m: float = 0.0015
    jaw_open_rad: float = 0.9
    jaw_closed_rad: float = -0.1
    grasp_height_m: float = 0.014
    hover_height_m: float = 0.048
    lift_height_m: float = 0.085
    # The tip lies half a cube from the fixed jaw (world +y), so aiming past the cube keeps that jaw clear of it.
    clearance_m: float = 0.007
    close_patience: int = 8
    back_up_ticks: int = 3


class ExpertHand:
    """Drives one lift. Keeps only the last action, its error of aim and two counters; call `begin` at a takeover."""

    def __init__(self, rng: np.random.Generator, settings: HandSettings | None = None) -> None:
        self._rng = rng
        self.settings = settings or HandSettings()
        self.begin()

    def begin(self) -> None:
        """Forget the last episode and look at the cube afresh."""
        self.move = Move.APPROACH
        self._smooth = np.zeros(3)
        self._aim_error = self._rng.normal(0.0, self.settings.aim_error_m, 2)
        self._closing_ticks = 0
        self._back_up_left = 0

    def act(self, truth: TruthState, target_xyz_m: npt.ArrayLike) -> F64:
        """Action (4,) in [-1, 1]: tip motion along world x, y, z in shares of step_m, and the jaw from open to closed.

        target_xyz_m (3,) is where the tip has been sent by the actions so far; the tip itself follows behind it.
        """
        target = np.asarray(target_xyz_m, np.float64)
        self.move = self._decide(truth)
        want, jaw_rad = self._want(truth, target)
        s = self.settings
        motion = np.clip((want - target) / s.step_m, -s.speed, s.speed)
        self._smooth = s.smoothing * self._smooth + (1.0 - s.smoothing) * motion
        action = np.empty(4)
        action[:3] = self._smooth + self._rng.normal(0.0, s.noise, 3)
        action[3] = 1.0 - 2.0 * (jaw_rad - s.jaw_closed_rad) / (s.jaw_open_rad - s.jaw_closed_rad)
        return np.clip(action, -1.0, 1.0)

    def _aim(self, truth: TruthState) -> F64:
        """Where the tip should be to grasp: beside the cube's centre, away from the fixed jaw."""
        aim = truth.cube_xyz_m.copy()
        aim[:2] += self._aim_error
        aim[1] += self.settings.clearance_m
        aim[2] = self.settings.grasp_height_m
        return aim

    def _decide(self, truth: TruthState) -> Move:
        if self._back_up_left > 0:
            self._back_up_left -= 1
            return Move.BACK_UP
        if truth.grasped:
            self._closing_ticks = 0
            return Move.LIFT
        if self._between_jaws(truth):
            self._closing_ticks += 1
            if self._closing_ticks <= self.settings.close_patience:
                return Move.CLOSE
        elif not self._blocked(truth):
            self._closing_ticks = 0
            return Move.DESCEND if self._above(truth) else Move.APPROACH
        self._closing_ticks = 0
        self._back_up_left = self.settings.back_up_ticks
        self._aim_error = self._rng.normal(0.0, self.settings.aim_error_m, 2)
        return Move.BACK_UP

    def _between_jaws(self, truth: TruthState) -> bool:
        dx, dy, dz = truth.cube_xyz_m - truth.tip_xyz_m
        return bool(abs(dx) < 0.010 and -0.026 < dy < 0.006 and abs(dz) < 0.010)

    def _blocked(self, truth: TruthState) -> bool:
        """Low down with a jaw too narrow to take the cube, or pressing on it from above."""
        dx, dy, dz = truth.tip_xyz_m - truth.cube_xyz_m
        return bool(truth.jaw_rad < 0.5 and dz < 0.020 and abs(dx) < 0.03 and abs(dy) < 0.05)

    def _above(self, truth: TruthState) -> bool:
        off = truth.tip_xyz_m[:2] - self._aim(truth)[:2]
        return bool(np.hypot(*off) < 0.009 and truth.jaw_rad > 0.55)

    def _want(self, truth: TruthState, target: F64) -> tuple[F64, float]:
        """Where the hand wants the tip (3,) and the jaw (rad), for the present move."""
        s, aim = self.settings, self._aim(truth)
        if self.move is Move.LIFT:
            return np.array([target[0], target[1], s.lift_height_m]), s.jaw_closed_rad
        if self.move is Move.CLOSE:
            return np.array([target[0], target[1], s.grasp_height_m]), s.jaw_closed_rad
        if self.move is Move.BACK_UP:
            return np.array([target[0], target[1], s.hover_height_m + 0.01]), s.jaw_open_rad
        if self.move is Move.DESCEND:
            return aim, s.jaw_open_rad
        hover = np.array([aim[0], aim[1], s.hover_height_m])
        if truth.tip_xyz_m[2] < 0.036:
            # The fingers would sweep the cube away: rise first.
            hover[:2] = target[:2]
        return hover, s.jaw_open_rad
