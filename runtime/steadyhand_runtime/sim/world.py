"""The physical world behind the simulated servos and cameras: arm, cube, table and light in MuJoCo."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_runtime.kinematics import LIMITS_RAD
from steadyhand_runtime.sim.eye import U8, Eye, import_mujoco
from steadyhand_runtime.sim.light import Light
from steadyhand_runtime.sim.scene import STALL_TORQUE_NM, SceneSettings, scene_xml
from steadyhand_runtime.sim.servos import PlantState

F64 = npt.NDArray[np.float64]

# Folded, the fingers' ends on the table: the arm stays there without torque.
REST_RAD = (0.0, -1.745, 1.674, 1.022, -1.522, 0.0)
_CUBE_QPOS = slice(6, 13)
_CUBE_QVEL = slice(6, 12)


@dataclass(frozen=True, slots=True)
class TruthState:
    """What is true, in metres in the world's frame; `lifted_m` is the height of the cube's lowest point."""

    cube_xyz_m: F64
    cube_yaw_rad: float
    tip_xyz_m: F64
    jaw_rad: float
    lifted_m: float
    grasped: bool
    success: bool


class World:
    """The scene in time. Is the `Plant` of the simulated servos (joint order 1..6); not thread-safe.

    Everything random draws from `seed`, unless a method is given a generator of its own.
    """

    def __init__(self, settings: SceneSettings | None = None, seed: int = 0) -> None:
        self.settings = settings or SceneSettings()
        self._mujoco = import_mujoco()
        self._model = self._mujoco.MjModel.from_xml_string(scene_xml(self.settings))
        self._data = self._mujoco.MjData(self._model)
        self._rng = np.random.default_rng(seed)
        self._light = self.settings.light
        self._eye: Eye | None = None
        self._cube_geom = self._model.geom("cube").id
        self._pads = (self._model.geom("fixed_pad").id, self._model.geom("moving_pad").id)
        self._tip = self._data.site("tip")
        self._delay_steps = round(self.settings.servo_delay_s / self.settings.timestep_s)
        self._owed_s = 0.0
        self._steps = 0
        self._goals: deque[tuple[int, F64]] = deque()
        self._enabled = np.zeros(6, bool)
        self._limit = np.zeros(6)
        self._model.actuator_forcerange[:] = 0.0
        self._last_goal = np.array(REST_RAD)
        self.put_arm(REST_RAD)
        self.place_cube()

    # -- the servos' side ------------------------------------------------------------------------------------------

    def read(self) -> PlantState:
        """Positions (6,) rad, velocities (6,) rad/s and effort (6,) as a share of stall torque."""
        return PlantState(
            position_rad=self._data.qpos[:6].copy(),
            velocity_rad_s=self._data.qvel[:6].copy(),
            effort=self._data.actuator_force / STALL_TORQUE_NM,
        )

    def drive(self, goal_rad: F64, enabled: npt.NDArray[np.bool_], torque_limit: F64) -> None:
        """Goals (6,) rad, which motors have torque (6,), and their torque limits (6,) in 0..1 of stall torque.

        Torque and its limit act at once; a changed goal acts after the servos' motion delay, as on the real ones.
        """
        goal = np.clip(np.asarray(goal_rad, np.float64), LIMITS_RAD[:, 0], LIMITS_RAD[:, 1])
        limit = np.where(enabled, np.clip(torque_limit, 0.0, 1.0), 0.0)
        if not np.array_equal(limit, self._limit):
            self._limit = limit
            force = limit * STALL_TORQUE_NM
            self._model.actuator_forcerange[:, 0] = -force
            self._model.actuator_forcerange[:, 1] = force
        woken = enabled & ~self._enabled
        self._enabled = np.array(enabled, bool)
        if woken.any():
            # A servo that wakes holds the goal it was given, not the one of a moment before.
            self._goals.clear()
            self._data.ctrl[:] = goal
        elif not np.array_equal(goal, self._last_goal):
            self._goals.append((self._steps + self._delay_steps, goal))
        self._last_goal = goal

    def advance(self, dt_s: float) -> None:
        """Let dt_s seconds pass, in whole physics steps; what is left over is kept for the next call."""
        self._owed_s += dt_s
        due = int(self._owed_s / self.settings.timestep_s + 1e-6)
        self._owed_s -= due * self.settings.timestep_s
        end = self._steps + due
        while self._steps < end:
            while self._goals and self._goals[0][0] <= self._steps:
                self._data.ctrl[:] = self._goals.popleft()[1]
            until = min(end, self._goals[0][0]) if self._goals else end
            self._mujoco.mj_step(self._model, self._data, nstep=until - self._steps)
            self._steps = until

    # -- the scene's side ------------------------------------------------------------------------------------------

    def put_arm(self, q_rad: npt.ArrayLike) -> None:
        """Set the joints (6,) at once, at rest, and forget the goals on their way."""
        q = np.clip(np.asarray(q_rad, np.float64), LIMITS_RAD[:, 0], LIMITS_RAD[:, 1])
        self._data.qpos[:6] = q
        self._data.qvel[:6] = 0.0
        self._data.ctrl[:] = q
        self._last_goal = q
        self._goals.clear()
        self._mujoco.mj_forward(self._model, self._data)

    def place_cube(self, rng: np.random.Generator | None = None) -> None:
        """Put the cube at rest somewhere in the task's area, upright, clear of the gripper where the area allows."""
        rng = rng or self._rng
        (cx, cy), (lx, ly) = self.settings.cube_area_centre_m, self.settings.cube_area_m
        tip = self._tip.xpos
        for _ in range(50):
            x, y = cx + lx * (rng.random() - 0.5), cy + ly * (rng.random() - 0.5)
            if tip[2] > 0.08 or math.hypot(x - tip[0], y - tip[1]) > 0.07:
                break
        self.put_cube(x, y, rng.uniform(-self.settings.cube_yaw_rad, self.settings.cube_yaw_rad))

    def put_cube(self, x_m: float, y_m: float, yaw_rad: float = 0.0, height_m: float = 0.0) -> None:
        """Put the cube at rest, its lower face height_m above the table."""
        z = self.settings.cube_side_m / 2 + height_m
        self._data.qpos[_CUBE_QPOS] = (x_m, y_m, z, math.cos(yaw_rad / 2), 0.0, 0.0, math.sin(yaw_rad / 2))
        self._data.qvel[_CUBE_QVEL] = 0.0
        self._mujoco.mj_forward(self._model, self._data)

    def truth(self) -> TruthState:
        """The true state now; success is a cube between the jaws, lifted by at least `lift_m`."""
        data, half = self._data, self.settings.cube_side_m / 2
        self._mujoco.mj_kinematics(self._model, data)
        turn = data.geom_xmat[self._cube_geom].reshape(3, 3)
        cube = data.geom_xpos[self._cube_geom].copy()
        lifted = float(cube[2] - half * np.abs(turn[2]).sum())
        grasped = self._is_grasped()
        return TruthState(
            cube_xyz_m=cube,
            cube_yaw_rad=_square_yaw(turn),
            tip_xyz_m=self._tip.xpos.copy(),
            jaw_rad=float(data.qpos[5]),
            lifted_m=lifted,
            grasped=grasped,
            success=grasped and lifted >= self.settings.lift_m,
        )

    def _is_grasped(self) -> bool:
        touched = {g for pair in self._data.contact.geom.tolist() if self._cube_geom in pair for g in pair}
        return touched.issuperset(self._pads)

    def qpos(self) -> F64:
        """All positions (13,), for an Eye that draws in another thread."""
        return self._data.qpos.copy()

    @property
    def light(self) -> Light:
        return self._light

    def set_light(self, light: Light) -> None:
        """Change the light of pictures that this World renders from now on."""
        self._light = light
        if self._eye is not None:
            self._eye.set_light(light)

    def render(self, camera_name: str) -> U8:
        """Picture (H, W, 3) of "front" or "wrist" as it is now. Raises SimError where no GL works."""
        if self._eye is None:
            self._eye = Eye(self.settings)
            self._eye.set_light(self._light)
        return self._eye.render(camera_name, self._data.qpos)

    def close(self) -> None:
        """Free the renderer; harmless when repeated. Rendering again makes a new one."""
        if self._eye is not None:
            self._eye.close()
            self._eye = None


def _square_yaw(turn: F64) -> float:
    """Yaw of a cube about the vertical, in -45..45 degrees, by the flattest of its own axes."""
    flat = int(np.argmin(np.abs(turn[2])))
    yaw = math.atan2(turn[1, flat], turn[0, flat])
    return (yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4
