"""Show the tasks: workspace, reset pose, action dimensions, episode length, cameras, debounce."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from steadyhand_models import settings
from steadyhand_models.contract import ActionField, Camera, Contract, Joint, StateField

Xyz = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0)]

# URDF "new calib" ranges of the SO-101, rad about mid-travel.
SO101_JOINTS = (
    Joint("shoulder_pan", -1.91986, 1.91986),
    Joint("shoulder_lift", -1.74533, 1.74533),
    Joint("elbow_flex", -1.69, 1.69),
    Joint("wrist_flex", -1.65806, 1.65806),
    Joint("wrist_roll", -2.74385, 2.84121),
    Joint("gripper", -0.174533, 1.74533),
)
NO_LOAD_RAD_S = 4.7  # STS3215 at 7.4 V
PITCH_RULE = "highest reachable pitch at or below pitch_hi; wrist_roll follows the runtime's kinematics"


@dataclass(frozen=True)
class Workspace:
    """Where the tip may go and how far one action moves it."""

    lo_m: Xyz
    hi_m: Xyz
    step_m: Positive
    leash_m: Positive
    pitch_hi_rad: float
    pitch_lo_rad: float


@dataclass(frozen=True)
class Gripper:
    """Jaw angles of the ends of the gripper's action range."""

    open_rad: float
    closed_rad: float


@dataclass(frozen=True)
class Reset:
    """Where an episode starts; `scene_wait_s` of zero waits for the operator's scene-ready key."""

    tip_m: Xyz
    jaw_rad: float
    timeout_s: Positive
    scene_wait_s: Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class CameraSpec:
    name: str
    native_px: tuple[int, int]
    crop_px: tuple[int, int, int, int]
    size_px: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """What stands on the simulated table and what counts as success there."""

    cube_m: Positive
    cube_centre_m: tuple[float, float]
    cube_area_m: tuple[float, float]
    cube_yaw_rad: Annotated[float, Field(ge=0)]
    success_lift_m: Positive


@dataclass(frozen=True)
class Task:
    """One task file."""

    name: str
    description: str
    rate_hz: Positive
    episode_steps: Annotated[int, Field(gt=1, le=4096)]
    debounce_frames: Annotated[int, Field(gt=0, le=32)]
    workspace: Workspace
    gripper: Gripper
    reset: Reset
    cameras: tuple[CameraSpec, ...]
    scene: Scene

    def contract(self) -> Contract:
        """What observations and actions of this task mean, to the last unit."""
        space = self.workspace
        centre = [(lo + hi) / 2 for lo, hi in zip(space.lo_m, space.hi_m)]
        reach = [(hi - lo) / 2 for lo, hi in zip(space.lo_m, space.hi_m)]
        state = [
            StateField(f"{j.name}_position", "rad", (j.lo_rad + j.hi_rad) / 2, (j.hi_rad - j.lo_rad) / 2)
            for j in SO101_JOINTS
        ]
        state += [StateField(f"{j.name}_velocity", "rad/s", 0.0, NO_LOAD_RAD_S / 2) for j in SO101_JOINTS]
        state += [StateField(f"tip_{axis}", "m", c, r) for axis, c, r in zip("xyz", centre, reach)]
        state += [StateField(f"tip_ahead_{axis}", "m", 0.0, space.leash_m) for axis in "xyz"]
        moves = [ActionField(f"d{axis}", "base", "m", -space.step_m, space.step_m) for axis in "xyz"]
        jaw = ActionField("gripper", "jaw opening, open to closed", "1", -1.0, 1.0)
        return Contract(
            robot="so101",
            rate_hz=self.rate_hz,
            joints=SO101_JOINTS,
            cameras=tuple(Camera(c.name, c.native_px, c.crop_px, c.size_px) for c in self.cameras),
            state=tuple(state),
            action=(*moves, jaw),
            pitch_rule=PITCH_RULE,
        )


def load(name_or_path: str) -> Task:
    """A task by the name of one that ships, or by path. Raises SettingsError naming what exists or what is wrong."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        shipped = resources.files("steadyhand_models") / "tasks" / f"{name_or_path}.toml"
        if not shipped.is_file():
            raise settings.SettingsError(f"no task '{name_or_path}'; known: {', '.join(names())}; or give a .toml file")
        with resources.as_file(shipped) as real:
            return _checked(settings.load(Task, real), str(name_or_path))
    return _checked(settings.load(Task, path), str(path))


def names() -> list[str]:
    """Tasks that ship with the product."""
    folder = resources.files("steadyhand_models") / "tasks"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def _checked(task: Task, where: str) -> Task:
    problems = task.contract().problems()
    inside = all(lo <= v <= hi for lo, v, hi in zip(task.workspace.lo_m, task.reset.tip_m, task.workspace.hi_m))
    if not inside:
        problems.append(f"reset.tip_m {task.reset.tip_m} lies outside the workspace")
    if problems:
        raise settings.SettingsError(f"task {where}:\n  " + "\n  ".join(problems))
    return task


@dataclass(frozen=True)
class Show:
    """Show one task and its contract.

    Example: steadyhand task --name lift
    """

    name: str = "lift"


def main(argv: Sequence[str]) -> int:
    """`steadyhand task`: print a task's settings and contract hash."""
    chosen = tyro.cli(Show, args=list(argv), prog="steadyhand task")
    task = load(chosen.name)
    sys.stdout.write(
        f"# contract {task.contract().hash}; tasks that ship: {', '.join(names())}\n{settings.to_toml(task)}"
    )
    return 0
