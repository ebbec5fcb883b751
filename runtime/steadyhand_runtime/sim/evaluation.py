"""Evaluation: one policy over many episodes in lockstep, without help, noise or classifier, judged by ground truth."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models import settings
from steadyhand_models import task as tasks
from steadyhand_models.artifact import Artifact, ArtifactError, verify
from steadyhand_models.cli import UserError
from steadyhand_models.messages import BusAction, Channel, EventKind, Mode, OperatorEvent, Step
from steadyhand_models.registry import Registry
from steadyhand_models.task import Task
from steadyhand_runtime import inference
from steadyhand_runtime.config import ControlSettings, RewardSource
from steadyhand_runtime.control import Control
from steadyhand_runtime.sim.lockstep import LockstepRobot
from steadyhand_runtime.sim.scene import SimError
from steadyhand_runtime.swap import Loaded, Models, Quarantine, Standby
from steadyhand_runtime.telemetry import Log, write_json

U8 = npt.NDArray[np.uint8]
MAX_WAIT_TICKS = 200  # from the end of an episode to the next one's first step


@dataclass(frozen=True)
class EvaluateSettings:
    """One policy, many episodes.

    Example: steadyhand sim evaluate --registry runs/latest/registry --episodes 50 --seed 1
    """

    registry: Path = Path("runs/latest/registry")
    version: Annotated[int, Field(ge=0)] = 0  # 0: the newest
    episodes: Annotated[int, Field(ge=1, le=10_000)] = 200
    seed: Annotated[int, Field(ge=0)] = 0  # of the cube's places
    task: str = "lift"
    json: Path | None = None  # where the result goes
    frames: Path | None = None  # .npz for the front camera's pictures of the first episodes
    frame_episodes: Annotated[int, Field(ge=0, le=100)] = 4


@dataclass(frozen=True)
class Judged:
    """One episode: whether the truth held for K frames, actions until it first did (or all), and the cube's place."""

    success: bool
    steps: int
    cube_x_m: float
    cube_y_m: float
    end: str


class Examiner:
    """Runs episodes of one policy on a robot of its own. Use `close` at the end."""

    def __init__(self, task: Task, policy: Loaded, seed: int, log: Log | None = None) -> None:
        """Raises SimError where the simulation cannot run."""
        # The key instead of the timer: the cube is put down first, and nothing waits for nothing.
        self._task = replace(task, reset=replace(task.reset, scene_wait_s=0.0))
        quarantine = Quarantine()
        models = Models(Standby(Registry(Path()), task.contract(), quarantine), quarantine)
        models.policy.put(policy, 0)
        chosen = ControlSettings(exploration=0.0, reward_source=RewardSource.MANUAL, seed=seed)
        self.robot = LockstepRobot(self._task, Control(self._task, chosen, models, "evaluation"), seed, log=log)
        self._seed = seed
        self._events = 0
        self._episode = 0

    def episode(self, watch: Callable[[U8], None] | None = None) -> Judged:
        """The next episode; `watch` sees each native front picture. Raises SimError when the arm does not come back."""
        self._wait_for_hold()
        self._episode += 1
        self.robot.world.place_cube(np.random.default_rng([self._seed, self._episode]))
        place = self.robot.truth().cube_xyz_m
        self.robot.step()  # until a picture shows it there
        outputs = self.robot.step([self._press(EventKind.SCENE_READY)])
        held, steps, success = 0, 0, False
        while True:
            if watch is not None:
                watch(self.robot.native["front"])
            if outputs.status.mode is not Mode.POLICY:
                end = next(r.end for r in outputs.records if isinstance(r, Step) and r.end is not None)
                return Judged(success, steps, float(place[0]), float(place[1]), end.value)
            steps += not success
            held = held + 1 if self.robot.truth().success else 0
            success |= held >= self._task.debounce_frames
            outputs = self.robot.step([self._press(EventKind.SUCCESS)] if success else [])

    def close(self) -> None:
        self.robot.close()

    def _wait_for_hold(self) -> None:
        commands: list[BusAction] = []
        for tick in range(MAX_WAIT_TICKS):
            status = self.robot.step([], None, commands).status
            commands = []
            if status.mode is Mode.HOLD:
                return
            if status.mode is Mode.IDLE and tick % 20 == 0:
                commands = [BusAction.CLEAR, BusAction.ARM]
            elif status.mode is Mode.FAULT and tick % 20 == 0:
                self.robot.step([self._press(EventKind.SCENE_READY)], None, [BusAction.CLEAR])
        raise SimError(f"the arm did not reach its reset pose: {status.mode.value}, {status.message}")

    def _press(self, kind: EventKind) -> OperatorEvent:
        self._events += 1
        return OperatorEvent(f"examiner-{self._events}", kind, self.robot.now_ns, "examiner", "script", 0.0)


def load_policy(registry: Registry, version: int, task: Task) -> tuple[Artifact, Loaded]:
    """One policy of a registry (0: the newest), verified and built. Raises ArtifactError or UserError."""
    chosen = version or registry.newest(Channel.POLICY)
    if not chosen:
        raise ArtifactError(f"{registry.root}: no policy there; give --registry RUN_FOLDER/registry")
    artifact = registry.load(Channel.POLICY, chosen)
    contract = task.contract()
    verify(artifact, contract.hash)
    return artifact, inference.load(artifact, contract)


def evaluate(chosen: EvaluateSettings, progress: Callable[[list[Judged]], None]) -> dict[str, Any]:
    """All episodes; what goes into the JSON file. Raises ArtifactError, UserError, SettingsError or SimError."""
    task = tasks.load(chosen.task)
    artifact, policy = load_policy(Registry(chosen.registry), chosen.version, task)
    examiner = Examiner(task, policy, chosen.seed, Log(io.StringIO()))
    pictures: dict[str, list[U8]] = {}
    judged: list[Judged] = []
    start_s = time.perf_counter()
    try:
        for number in range(chosen.episodes):
            film = pictures.setdefault(f"episode_{number:03d}", []) if number < _filmed(chosen) else None
            judged.append(examiner.episode(film.append if film is not None else None))
            progress(judged)
    finally:
        examiner.close()
    if chosen.frames is not None:
        chosen.frames.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(chosen.frames, **{name: np.stack(film) for name, film in pictures.items()})  # type: ignore[arg-type]
    won = [j.steps for j in judged if j.success]
    return {
        "task": task.name,
        "contract": artifact.manifest.contract_hash,
        "policy_version": artifact.manifest.version,
        "sha256": artifact.manifest.sha256,
        "seed": chosen.seed,
        "episodes": [asdict(j) for j in judged],
        "successes": len(won),
        "success_rate": len(won) / len(judged),
        "median_steps": float(np.median(won)) if won else None,
        "wall_s": time.perf_counter() - start_s,
    }


def _filmed(chosen: EvaluateSettings) -> int:
    return chosen.frame_episodes if chosen.frames is not None else 0


def _show(total: int) -> Callable[[list[Judged]], None]:
    """Progress: one line that is rewritten on a terminal, else a line every twenty episodes."""
    live = sys.stdout.isatty()

    def show(judged: list[Judged]) -> None:
        done = len(judged)
        if not live and done % 20 and done != total:
            return
        won = sum(j.success for j in judged)
        end = "\n" if not live or done == total else ""
        print(f"{chr(13) if live else ''}episode {done}/{total}: {won} lifted ({won / done:.1%})", end=end, flush=True)

    return show


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim evaluate`: success of one policy over many episodes."""
    description = "Run one policy in lockstep, without help or noise, and judge it by the simulation's ground truth."
    chosen = settings.parse_command_line(EvaluateSettings, argv, "steadyhand sim evaluate", description)
    result = evaluate(chosen, _show(chosen.episodes))
    if chosen.json is not None:
        try:
            chosen.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(chosen.json, result)
        except OSError as error:
            raise UserError(f"{chosen.json}: cannot be written ({error.strerror})") from None
    else:
        print(json.dumps({k: v for k, v in result.items() if k != "episodes"}))
    return 0
