"""Scenes without what moves in them, and successes of which one camera shows nothing: negatives that nobody records.

A classifier finds the camera that tells most and looks at little else. Where the object leaves the picture of another
one, that camera alone then calls success what it cannot know: a cube between the jaws, on the table or above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_training.strata import evenly

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

LEAST_EPISODES = 4  # of fewer the object itself may lie where it lay in most of them
MOST_FRAMES = 96
NEAR = 0.5  # of the usual distance to the scene: a picture nearer than this shows nothing that could be hidden
# Usual distance, beside the spread over the scene's pixels, up to which a camera stands. Measured on three runs of
# `steadyhand lab drift`, four to 33 episodes of a light: .08 to .21 for the front camera, .29 to .72 for the wrist's.
STANDS = 0.25


@dataclass(frozen=True)
class Scene:
    """What the cameras show most of the time, (C, H, W, 3), and the median distance (C,) of frames to it, in levels.

    `standing` are the places of cameras that do not move: only theirs is what is left without arm and object.
    """

    picture: U8
    usual: F32
    standing: I64

    def shows(self, picture: U8, camera: int) -> bool:
        """Whether a camera's picture (H, W, 3) has anything in it that the scene has not."""
        return _distance(picture, self.picture[camera]) >= NEAR * self.usual[camera]


Scenes = Mapping[int, Scene]  # by light


def scenes(episodes: Mapping[int, Sequence[I64]], frames: Callable[[I64], U8]) -> dict[int, Scene]:
    """The scene of each light, from rows of its episodes, where they are enough and a camera stands.

    `frames` gives the pictures (N, C, H, W, 3) of rows (N,).
    """
    enough = {light: np.concatenate(rows) for light, rows in episodes.items() if len(rows) >= LEAST_EPISODES}
    found = {light: _scene(frames(evenly(rows, MOST_FRAMES))) for light, rows in enough.items()}
    return {light: scene for light, scene in found.items() if len(scene.standing)}


def hide(
    frames: U8, rows: I64, targets: F32, lights: I64, known: Scenes, share: float, rng: np.random.Generator
) -> None:
    """Replace a share of the negatives of a batch, in place, by successes of which a standing camera shows nothing.

    Frames (B, C, H, W, 3), rows (B,), targets (B,), lights (B,). What shows no more than the scene anyway stays: where
    a camera never sees a success there is nothing to be learned from its absence.
    """
    successes, others = np.flatnonzero(targets == 1.0), np.flatnonzero(targets == 0.0)
    if not len(successes):
        return
    for at in rng.choice(others, round(share * len(others)), replace=False):
        shown = int(rng.choice(successes))
        scene = known.get(int(lights[shown]))
        if scene is None:
            continue
        camera = int(rng.choice(scene.standing))
        if not scene.shows(frames[shown, camera], camera):
            continue
        rows[at], frames[at] = rows[shown], frames[shown]
        frames[at, camera] = scene.picture[camera]


def _scene(frames: U8) -> Scene:
    picture = np.median(frames, axis=0).astype(np.uint8)
    far = [[_distance(one, scene) for one, scene in zip(frame, picture)] for frame in frames]
    usual = np.median(far, axis=0).astype(np.float32)
    spread = picture.std(axis=(1, 2, 3))
    return Scene(picture, usual, np.flatnonzero(usual <= STANDS * spread))


def _distance(one: U8, other: U8) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())
