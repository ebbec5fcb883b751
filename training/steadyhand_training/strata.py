"""Strata of frames: the light of an episode, the camera set-up that saw it, and the phase of the task."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from steadyhand_models.task import Task
from steadyhand_training.replay import Replay

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
S = TypeVar("S", bound=np.generic)
T = TypeVar("T")

# Jaws that are more open than this share of their way have not begun to close. Measured on recorded lifts: never less
# than half open before the cube is between them, never more than half open while it is held.
OPEN_SHARE = 0.6
# Heights below this share of the workspace are at the table. Measured: tips that lift the cube reach it at once.
LOW_SHARE = 0.2
# Of every picture each 4th row and column is looked at, and as many frames of an episode as this.
PIXEL_STRIDE = 4
SIGNATURE_FRAMES = 16
PERCENTILES = (25, 50)
# Levels of 255. Measured over 115 lifts in constant light: episodes differ by at most 2.5 in the camera that stands.
LIGHT_TOLERANCE = 10.0
ONE_CAMERA = "camera"


class Phase(str, enum.Enum):
    """Where in the task a frame is, by jaws and height alone."""

    APPROACH = "approach"  # jaws open
    GRASP = "grasp"  # jaws closing or closed, at the table
    LIFT = "lift"  # jaws closing or closed, above it


PHASES = tuple(Phase)


def phases(state: F32, task: Task) -> I8:
    """Places in PHASES (N,) of recorded states (N, S)."""
    names = [f.name for f in task.contract().state]
    jaw_rad, tip_m = state[:, names.index("gripper_position")], state[:, names.index("tip_z")]
    gripper, lo_m, hi_m = task.gripper, task.workspace.lo_m[2], task.workspace.hi_m[2]
    opened = (jaw_rad - gripper.closed_rad) / (gripper.open_rad - gripper.closed_rad) > OPEN_SHARE
    low = tip_m < lo_m + LOW_SHARE * (hi_m - lo_m)
    return np.where(opened, 0, np.where(low, 1, 2)).astype(np.int8)


def evenly(many: npt.NDArray[S], most: int) -> npt.NDArray[S]:
    """At most so many of an array's items (N, ...), evenly spread."""
    return many[np.linspace(0, len(many) - 1, min(len(many), most)).astype(np.int64)]


def signature(frames: U8) -> F32:
    """What the light does to frames (N, C, H, W, 3): levels (C, P * 3) that moving arm and object hardly change.

    Percentiles over pixels, then the median over frames: most of a picture is table and wall.
    """
    few = evenly(frames, SIGNATURE_FRAMES)
    pixels = few[:, :, ::PIXEL_STRIDE, ::PIXEL_STRIDE].reshape(len(few), few.shape[1], -1, 3)
    levels = np.percentile(pixels, PERCENTILES, axis=2).astype(np.float32)  # (P, N, C, 3)
    found: F32 = np.median(levels, axis=1).transpose(1, 0, 2).reshape(frames.shape[1], -1).astype(np.float32)
    return found


def distance(one: F32, other: F32) -> float:
    """How far two lights are apart, in levels, by the camera that sees least of it.

    A camera on the wrist sees other things in every episode; a light that changed shows in every camera.
    """
    return float(np.abs(one - other).max(axis=1).min())


class Lights:
    """The lights that were met, numbered from 1 in order. A light is what the first episode under it looked like."""

    def __init__(self, tolerance: float = LIGHT_TOLERANCE) -> None:
        self.known: list[F32] = []
        self._tolerance = tolerance

    def nearest(self, seen: F32) -> tuple[int, float]:
        """Number of the known light nearest to a signature, and its distance; (0, inf) when none is known."""
        far = [distance(seen, light) for light in self.known]
        return (int(np.argmin(far)) + 1, min(far)) if far else (0, float("inf"))

    def number(self, seen: F32) -> int:
        """The light of a signature: a known one within the tolerance, else a new one."""
        nearest, far = self.nearest(seen)
        if far <= self._tolerance:
            return nearest
        self.known.append(seen)
        return len(self.known)


@dataclass(frozen=True, order=True)
class Stratum:
    """Frames that a classifier must be judged on by themselves."""

    light: int
    camera: str
    phase: Phase

    def __str__(self) -> str:
        camera = "" if self.camera == ONE_CAMERA else f", {self.camera}"
        return f"light {self.light}{camera}, {self.phase.value}"


@dataclass(frozen=True)
class Cover:
    """What is labelled in a stratum: frames of success and without, and the episodes they are from."""

    positive: int
    negative: int
    episodes: int


class Strata:
    """The strata of a replay's rows.

    Everything follows from what is recorded and the order in which episodes ended, so that nothing needs to be kept:
    another process finds the same lights.
    """

    def __init__(
        self, replay: Replay, task: Task, camera_of: Callable[[int], str] = lambda episode: ONE_CAMERA
    ) -> None:
        """camera_of names the camera set-up that recorded an episode."""
        self.lights = Lights()
        self._replay, self._task, self._camera_of = replay, task, camera_of
        self._light: dict[int, int] = {}

    def light(self, episode: int) -> int:
        """The light of an ended episode; 0 while it runs."""
        if episode not in self._light:
            self._catch_up()
        return self._light.get(episode, 0)

    @property
    def newest_light(self) -> int:
        """The light of the episode that ended last; 0 before the first."""
        self._catch_up()
        return next(reversed(self._light.values()), 0)

    def of(self, episode: int) -> list[Stratum]:
        """The stratum of each row of an episode, in the order of `replay.rows(episode)`."""
        light, camera = self.light(episode), self._camera_of(episode)
        by_phase = [Stratum(light, camera, phase) for phase in PHASES]
        return [by_phase[i] for i in phases(self._replay.state[self._replay.rows(episode)], self._task)]

    def relit(self, rows: I64, rng: np.random.Generator) -> F32:
        """Gains (N, C, 3) that put each of rows (N,) into one of the known lights, all of them alike.

        A light under which people have only seen failures so far would else be learned as a sign of failure.
        """
        self._catch_up()
        lights = self.lights.known
        cameras = self._replay.contract.frames_shape[0]
        if len(lights) < 2:
            return np.ones((len(rows), cameras, 3), np.float32)
        levels = np.stack([light[:, -3:] for light in lights])  # medians
        own = np.array([max(self.light(int(e)), 1) - 1 for e in self._replay.episode[rows]])
        aim = rng.integers(0, len(lights), len(rows))
        return (np.maximum(levels[aim], 1.0) / np.maximum(levels[own], 1.0)).astype(np.float32)

    def coverage(self, labels: Mapping[int, I8]) -> dict[Stratum, Cover]:
        """What the labels (T,) of these episodes cover, by stratum."""
        found: dict[Stratum, list[int]] = {}
        for episode, said in labels.items():
            strata = self.of(episode)
            spoken = [(s, int(word)) for s, word in zip(strata, said) if word]
            for stratum, word in spoken:
                found.setdefault(stratum, [0, 0, 0])[0 if word > 0 else 1] += 1
            for stratum in {s for s, _ in spoken}:
                found[stratum][2] += 1
        return {stratum: Cover(*counts) for stratum, counts in sorted(found.items())}

    def _catch_up(self) -> None:
        for episode in self._replay.ended_episodes(len(self._light)):
            self._light[episode] = self.lights.number(signature(self._replay.frames[self._replay.rows(episode)]))


def by_light(episodes: Iterable[T], light: Callable[[T], int]) -> dict[int, list[T]]:
    """Episodes by their light, in order."""
    found: dict[int, list[T]] = {}
    for episode in episodes:
        found.setdefault(light(episode), []).append(episode)
    return dict(sorted(found.items()))
