"""The probe: scripted episodes whose frames carry the truth, and how well published classifiers judge them.

The episodes depend on seed and light alone, so that classifiers of different runs are judged by the same frames.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models import reward, settings
from steadyhand_models import task as tasks
from steadyhand_models.artifact import Artifact, verify
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, Drive, EventKind, Mode
from steadyhand_models.registry import Registry
from steadyhand_models.task import Task
from steadyhand_runtime import inference
from steadyhand_runtime.config import ControlSettings
from steadyhand_runtime.control import Control
from steadyhand_runtime.sim import light as lights
from steadyhand_runtime.sim.evaluation import Usher
from steadyhand_runtime.sim.expert import ExpertHand, HandSettings
from steadyhand_runtime.sim.light import Light
from steadyhand_runtime.sim.lockstep import LockstepRobot
from steadyhand_runtime.sim.operator import ReachEstimate
from steadyhand_runtime.sim.world import TruthState
from steadyhand_runtime.swap import Models, Quarantine, Standby
from steadyhand_runtime.telemetry import Log, write_json

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

EPISODE_TICKS = 44  # a lift takes about 25; what is left shows it held
# Frames so near the height at which success begins are left out: no picture of 64 px shows on which side they lie.
UNCLEAR_M = 0.005
BESIDE_M = (0.035, 0.05)  # how far beside the cube the hand closes
CLOSING_TICKS = 6  # so long it closes before it lifts nothing


class Manner(str, enum.Enum):
    """What a scripted hand does in an episode."""

    LIFT = "lift"  # as it should be
    LOW = "low"  # grasps the cube and holds it below the height of success
    BESIDE = "beside"  # closes beside the cube and lifts nothing


@dataclass(frozen=True)
class Frames:
    """Prepared frames (N, C, H, W, 3) in order, whether each shows success (N,), whether that is clear (N,), and the
    episode of each (N,)."""

    frames: U8
    success: Bool
    clear: Bool
    episode: I64


@dataclass(frozen=True)
class Verdict:
    """One classifier's word on a probe: over its clear frames, and over its episodes as the robot would end them."""

    version: int
    step: int  # recorded steps when it was published
    threshold: float
    positives: int
    found: int
    negatives: int
    false: int
    episodes_without: int  # episodes that never show success
    false_episodes: int  # of these, those that it would have ended as one

    @property
    def balanced_accuracy(self) -> float:
        return 0.5 * (self.found / max(1, self.positives) + 1.0 - self.false / max(1, self.negatives))


class Prober(Usher):
    """Runs scripted episodes on a robot of its own and keeps their frames. Use `close` at the end."""

    def __init__(self, task: Task, seed: int, light: Light, log: Log | None = None) -> None:
        """Raises SimError where the simulation cannot run."""
        quiet = dataclasses.replace(task, reset=dataclasses.replace(task.reset, scene_wait_s=0.0))
        quarantine = Quarantine()
        models = Models(Standby(Registry(Path()), task.contract(), quarantine), quarantine)
        control = Control(quiet, ControlSettings(seed=seed), models, "probe")
        super().__init__(LockstepRobot(quiet, control, seed, log=log), "prober")
        self.robot.world.set_light(light)
        self._task, self._seed, self._episode = quiet, seed, 0

    def episode(self, manner: Manner) -> Frames:
        """The frames of the next episode. Raises SimError when the arm does not come back."""
        self.wait_for_hold()
        self._episode += 1
        rng = np.random.default_rng([self._seed, self._episode])
        self.robot.world.place_cube(rng)
        self.robot.step()
        hand = _Hand(self._task, manner, rng)
        pictures: list[U8] = []
        truths: list[tuple[bool, bool]] = []
        events = [self.press(EventKind.TAKEOVER_BEGIN)]
        for _ in range(EPISODE_TICKS):
            action = hand.act(self.robot.world.truth()).astype(np.float32)
            outputs = self.robot.step(events, Drive(self.robot.now_ns, action, neutral=False))
            events = []
            if outputs.status.mode is not Mode.TAKEOVER:
                continue
            shown = self.robot.pictured
            pictures.append(np.stack([frame.pixels for frame in self.robot.pictures.values()]))
            height_m = self._task.scene.success_lift_m
            near = shown.grasped and abs(shown.lifted_m - height_m) < UNCLEAR_M
            truths.append((shown.success, not near))
        self.robot.step([self.press(EventKind.FAILURE)])
        table = np.array(truths, np.bool_).reshape(-1, 2)
        number = np.full(len(pictures), self._episode, np.int64)
        return Frames(np.stack(pictures), table[:, 0], table[:, 1], number)


class _Hand:
    """A scripted hand that works in one manner."""

    def __init__(self, task: Task, manner: Manner, rng: np.random.Generator) -> None:
        jaw = task.gripper
        made = HandSettings(task.workspace.step_m, jaw_open_rad=jaw.open_rad, jaw_closed_rad=jaw.closed_rad)
        if manner is Manner.LOW:
            made = dataclasses.replace(made, lift_height_m=0.034)
        self._hand = ExpertHand(rng, made)
        self._reach = ReachEstimate(task)
        self._begun = False
        self._closing = 0
        angle, far_m = rng.uniform(-np.pi, np.pi), rng.uniform(*BESIDE_M)
        beside = manner is Manner.BESIDE
        self._offset_m: F64 = far_m * np.array([np.cos(angle), np.sin(angle), 0.0]) * beside
        self._beside = beside

    def act(self, truth: TruthState) -> F64:
        """The next action (4,)."""
        if not self._begun:
            self._reach.begin(truth.tip_xyz_m)
            self._begun = True
        if self._beside:
            grasped = self._closing > CLOSING_TICKS
            cube = truth.cube_xyz_m + self._offset_m
            truth = dataclasses.replace(truth, cube_xyz_m=cube, grasped=grasped)
        action = self._hand.act(truth, self._reach.xyz_m)
        self._closing += self._beside and self._hand.move.value in ("close", "lift")
        self._reach.advance(action, truth.tip_xyz_m)
        return action


def record(task: Task, episodes: int, seed: int, light: Light, progress: Callable[[int], None]) -> Frames:
    """The frames of a probe: every other episode is lifted as it should be. Raises SimError."""
    prober = Prober(task, seed, light, Log(io.StringIO()))
    turns = (Manner.LIFT, Manner.BESIDE, Manner.LIFT, Manner.LOW)
    parts = []
    try:
        for number in range(episodes):
            parts.append(prober.episode(turns[number % len(turns)]))
            progress(number + 1)
    finally:
        prober.close()
    return Frames(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Frames)))


def judge(artifact: Artifact, probe: Frames, task: Task) -> Verdict:
    """What one classifier says of a probe. Raises ArtifactError."""
    contract = task.contract()
    verify(artifact, contract.hash)
    model, manifest = inference.load(artifact, contract), artifact.manifest
    heads = np.stack([model.run(frames) for frames in probe.frames])
    rule = reward.Rule(manifest.threshold, manifest.debounce_frames, manifest.pessimism)
    lower = reward.lower_bound(heads, rule.pessimism)
    said, positive, negative = lower > rule.threshold, probe.clear & probe.success, probe.clear & ~probe.success
    without = [e for e in np.unique(probe.episode) if not probe.success[probe.episode == e].any()]
    ended = [e for e in without if reward.fires(lower[probe.episode == e], rule).any()]
    return Verdict(
        version=manifest.version,
        step=manifest.training_step,
        threshold=manifest.threshold,
        positives=int(positive.sum()),
        found=int((said & positive).sum()),
        negatives=int(negative.sum()),
        false=int((said & negative).sum()),
        episodes_without=len(without),
        false_episodes=len(ended),
    )


def write(path: Path, probe: Frames) -> None:
    """Keep a probe. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.part.npz")
        np.savez_compressed(aside, **{f.name: getattr(probe, f.name) for f in dataclasses.fields(Frames)})
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --frames") from None


def read(path: Path, task: Task) -> Frames:
    """A probe that was kept. Raises UserError when it is none of this task."""
    try:
        with np.load(path, allow_pickle=False) as file:
            probe = Frames(**{f.name: file[f.name] for f in dataclasses.fields(Frames)})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no probe can be read from it ({error}); remove it to make a new one") from None
    shape, count = task.contract().frames_shape, len(probe.success)
    flat = (probe.success, probe.clear, probe.episode)
    if probe.frames.shape != (count, *shape) or any(part.shape != (count,) for part in flat):
        raise UserError(f"{path}: is a probe of another task; remove it to make a new one")
    return probe


@dataclass(frozen=True)
class ProbeSettings:
    """Scripted episodes with their truth, and every classifier of a registry judged by them.

    Example: steadyhand sim probe --registry runs/latest/registry --light moved_lamp --at-step 2000
    Example: steadyhand sim probe --frames probe.npz --episodes 24
    """

    registry: Path | None = None  # whose classifiers to judge; none: only make the frames
    frames: Path | None = None  # .npz file of the frames; read when it is there, made when it is not
    episodes: Annotated[int, Field(ge=2, le=1000)] = 24
    seed: Annotated[int, Field(ge=0)] = 0
    task: str = "lift"
    light: str = "steady"  # a light scenario that ships, or a .toml file
    at_step: Annotated[int, Field(ge=0)] = 0  # the light is the one that the scenario has at this step, throughout
    json: Path | None = None  # where the verdicts go


def probe(chosen: ProbeSettings) -> dict[str, Any]:
    """Make or read the frames and judge; what goes into the JSON file. Raises as `record`, `read` and `judge` do."""
    task = tasks.load(chosen.task)
    light = lights.load(chosen.light).at(chosen.at_step)
    if chosen.frames is not None and chosen.frames.is_file():
        made = read(chosen.frames, task)
    else:
        made = record(task, chosen.episodes, chosen.seed, light, lambda done: _tell("episode", done, chosen.episodes))
        if chosen.frames is not None:
            write(chosen.frames, made)
    verdicts = []
    if chosen.registry is not None:
        registry = Registry(chosen.registry)
        versions = registry.versions(Channel.CLASSIFIER)
        for done, version in enumerate(versions, 1):
            verdicts.append(judge(registry.load(Channel.CLASSIFIER, version), made, task))
            _tell("classifier", done, len(versions))
    return {
        "light": chosen.light,
        "at_step": chosen.at_step,
        "frames": len(made.success),
        "positives": int((made.success & made.clear).sum()),
        "negatives": int((~made.success & made.clear).sum()),
        "unclear": int((~made.clear).sum()),
        "verdicts": [asdict(v) | {"balanced_accuracy": v.balanced_accuracy} for v in verdicts],
    }


def _tell(what: str, done: int, total: int) -> None:
    if done % 10 == 0 or done == total:
        print(f"{what} {done}/{total}", flush=True)


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim probe`: how well the classifiers of a registry judge frames whose truth is known."""
    description = "Record scripted episodes with their truth, and judge every classifier of a registry by them."
    chosen = settings.parse_command_line(ProbeSettings, argv, "steadyhand sim probe", description)
    result = probe(chosen)
    if chosen.json is None:
        print(json.dumps(result, indent=1))
        return 0
    try:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(chosen.json, result)
    except OSError as error:
        raise UserError(f"{chosen.json}: cannot be written ({error.strerror}); choose another --json") from None
    return 0
