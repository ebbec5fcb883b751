"""Evaluation: one policy over many episodes in lockstep, without help or noise, judged by ground truth."""

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
from steadyhand_models.artifact import Artifact, ArtifactError
from steadyhand_models.cli import UserError
from steadyhand_models.messages import BusAction, Channel, EventKind, Mode, OperatorEvent, Step
from steadyhand_models.registry import Registry
from steadyhand_models.task import Task
from steadyhand_runtime import encoders
from steadyhand_runtime.config import ControlSettings, RewardSource
from steadyhand_runtime.control import Control
from steadyhand_runtime.sim import light as lights
from steadyhand_runtime.sim.light import Light
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
    Example: steadyhand sim evaluate --registry runs/latest/registry --classifier 0 --light moved_lamp --at-step 2000
    """

    registry: Path = Path("runs/latest/registry")
    version: Annotated[int, Field(ge=0)] = 0  # 0: the newest
    classifier: Annotated[int, Field(ge=0)] | None = None  # the one that ends episodes as on the robot; 0: the newest
    episodes: Annotated[int, Field(ge=1, le=10_000)] = 200
    seed: Annotated[int, Field(ge=0)] = 0  # of the cube's places
    task: str = "lift"
    light: str = "steady"  # a light scenario that ships, or a .toml file
    at_step: Annotated[int, Field(ge=0)] = 0  # the light is the one that the scenario has at this step, throughout
    json: Path | None = None  # where the result goes
    frames: Path | None = None  # .npz for the front camera's pictures of the first episodes
    frame_episodes: Annotated[int, Field(ge=0, le=100)] = 4


@dataclass(frozen=True)
class Judged:
    """One episode: whether it was a success, actions until then (or all), and the cube's place.

    Without a classifier it is a success, and over, as soon as the truth has held for K frames. With one it is a
    success when the classifier ends it while the truth holds; `held` counts the last frames at which it did, and a
    `false_success` is an episode that the classifier ended although the truth had never been so.
    """

    success: bool
    steps: int
    cube_x_m: float
    cube_y_m: float
    end: str
    held: int = 0
    by_classifier: bool = False
    false_success: bool = False


class _Course:
    """What was true in the course of one episode."""

    def __init__(self, debounce_frames: int) -> None:
        self._debounce_frames = debounce_frames
        self._held = self._seen = 0
        self._first: int | None = None
        self._ever = False

    @property
    def success(self) -> bool:
        """The truth has held long enough at some time."""
        return self._first is not None

    def see(self, true: bool) -> None:
        """The truth at the next frame."""
        self._seen += 1
        self._ever |= true
        self._held = self._held + 1 if true else 0
        if self._first is None and self._held >= self._debounce_frames:
            self._first = self._seen

    def judged(self, last: Step, place: npt.NDArray[np.float32], by_truth: bool) -> Judged:
        """The whole episode, given its last record."""
        by_classifier = "ended_by_classifier" in last.reasons
        return Judged(
            success=self.success if by_truth else by_classifier and self._held > 0,
            steps=self._seen if self._first is None else self._first,
            cube_x_m=float(place[0]),
            cube_y_m=float(place[1]),
            end=last.end.value if last.end else "",
            held=self._held,
            by_classifier=by_classifier,
            false_success=by_classifier and not self._ever,
        )


class Usher:
    """Brings a lockstep robot to where an episode may begin. Use `close` at the end."""

    def __init__(self, robot: LockstepRobot, who: str) -> None:
        self.robot = robot
        self._who = who
        self._events = 0

    def wait_for_hold(self) -> None:
        """Arm it and let it come to its reset pose. Raises SimError when it does not."""
        commands: list[BusAction] = []
        for tick in range(MAX_WAIT_TICKS):
            status = self.robot.step([], None, commands).status
            commands = []
            if status.mode is Mode.HOLD:
                return
            if status.mode is Mode.IDLE and tick % 20 == 0:
                commands = [BusAction.CLEAR, BusAction.ARM]
            elif status.mode is Mode.FAULT and tick % 20 == 0:
                self.robot.step([self.press(EventKind.SCENE_READY)], None, [BusAction.CLEAR])
        raise SimError(f"the arm did not reach its reset pose: {status.mode.value}, {status.message}")

    def press(self, kind: EventKind) -> OperatorEvent:
        """A key, pressed now."""
        self._events += 1
        return OperatorEvent(f"{self._who}-{self._events}", kind, self.robot.now_ns, self._who, "script", 0.0)

    def close(self) -> None:
        self.robot.close()


class Examiner(Usher):
    """Runs episodes of one policy on a robot of its own. Use `close` at the end."""

    def __init__(
        self,
        task: Task,
        policy: Loaded,
        seed: int,
        log: Log | None = None,
        classifier: Loaded | None = None,
        light: Light | None = None,
    ) -> None:
        """With a classifier, episodes are its to end. Raises SimError where the simulation cannot run."""
        # The key instead of the timer: the cube is put down first, and nothing waits for nothing.
        self._task = replace(task, reset=replace(task.reset, scene_wait_s=0.0))
        quarantine = Quarantine()
        models = Models(Standby(Registry(Path()), task.contract(), quarantine), quarantine)
        models.policy.put(policy, 0)
        if classifier is not None:
            models.classifier.put(classifier, 0)
        source = RewardSource.MANUAL if classifier is None else RewardSource.CLASSIFIER
        chosen = ControlSettings(exploration=0.0, reward_source=source, seed=seed)
        control = Control(self._task, chosen, models, "evaluation")
        super().__init__(LockstepRobot(self._task, control, seed, log=log), "examiner")
        self.robot.world.set_light(light or self.robot.world.light)
        self._judges = classifier is None
        self._seed = seed
        self._episode = 0

    def episode(self, watch: Callable[[U8], None] | None = None) -> Judged:
        """The next episode; `watch` sees each native front picture. Raises SimError when the arm does not come back."""
        self.wait_for_hold()
        self._episode += 1
        self.robot.world.place_cube(np.random.default_rng([self._seed, self._episode]))
        place = self.robot.truth().cube_xyz_m
        self.robot.step()  # until a picture shows it there
        outputs = self.robot.step([self.press(EventKind.SCENE_READY)])
        course = _Course(self._task.debounce_frames)
        while True:
            if watch is not None:
                watch(self.robot.native["front"])
            if outputs.status.mode is not Mode.POLICY:
                last = next(r for r in outputs.records if isinstance(r, Step) and r.end is not None)
                return course.judged(last, place, self._judges)
            course.see(self.robot.truth().success)
            ends = self._judges and course.success
            outputs = self.robot.step([self.press(EventKind.SUCCESS)] if ends else [])


def load_policy(registry: Registry, version: int, task: Task) -> tuple[Artifact, Loaded]:
    """One policy of a registry (0: the newest), verified and built. Raises ArtifactError or UserError."""
    return load_model(registry, Channel.POLICY, version, task)


def load_model(registry: Registry, channel: Channel, version: int, task: Task) -> tuple[Artifact, Loaded]:
    """One model of a registry (0: the newest), verified and built. Raises ArtifactError or UserError."""
    chosen = version or registry.newest(channel)
    if not chosen:
        raise ArtifactError(f"{registry.root}: no {channel.value} there; give --registry RUN_FOLDER/registry")
    artifact = registry.load(channel, chosen)
    return artifact, encoders.load(registry, artifact, task.contract())


def evaluate(chosen: EvaluateSettings, progress: Callable[[list[Judged]], None]) -> dict[str, Any]:
    """All episodes; what goes into the JSON file. Raises ArtifactError, UserError, SettingsError or SimError."""
    task = tasks.load(chosen.task)
    registry, classifier = Registry(chosen.registry), None
    artifact, policy = load_policy(registry, chosen.version, task)
    if chosen.classifier is not None:
        classifier = load_model(registry, Channel.CLASSIFIER, chosen.classifier, task)[1]
    light = lights.load(chosen.light).at(chosen.at_step)
    examiner = Examiner(task, policy, chosen.seed, Log(io.StringIO()), classifier, light)
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
        "classifier_version": classifier.version if classifier else None,
        "light": chosen.light,
        "at_step": chosen.at_step,
        "sha256": artifact.manifest.sha256,
        "seed": chosen.seed,
        "episodes": [asdict(j) for j in judged],
        "successes": len(won),
        "success_rate": len(won) / len(judged),
        "false_successes": sum(j.false_success for j in judged),
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
