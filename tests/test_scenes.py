"""Scenes are what cameras show most of the time, and a success that one camera misses is a negative."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_correction import CONTRACT, QUICK, Robot

from steadyhand_training import fitting
from steadyhand_training.scenes import LEAST_EPISODES, Scene, hide, scenes

SHAPE = (2, 16, 16, 3)  # cameras, height, width, colours; the first camera stands, the second one moves
TABLE = np.tile(np.array([30, 130], np.uint8).repeat(4), 2)[:, None].repeat(16, 1)[..., None].repeat(3, 2)


def frame(at: int | None, moved: int = 0) -> np.ndarray:
    """A striped table, in the first camera with a bright square at one of four places, in the second one rolled on."""
    frames = np.stack([TABLE, np.roll(TABLE, moved, axis=0)])
    if at is not None:
        frames[0, 4 * at : 4 * at + 3, 2:6] = 250
    return frames


STORE = np.stack([frame(i % 4, moved=5 * i) for i in range(40)])
ROWS = [np.arange(5 * i, 5 * i + 5) for i in range(8)]


def test_a_scene_is_what_a_standing_camera_shows_without_what_moves() -> None:
    [(light, found)] = scenes({3: ROWS}, STORE.__getitem__).items()
    assert light == 3
    np.testing.assert_array_equal(found.picture[0], TABLE)
    assert found.standing.tolist() == [0], "the second camera moves"


def test_where_every_camera_moves_there_is_no_scene() -> None:
    assert scenes({1: ROWS}, lambda rows: STORE[rows][:, [1, 1]]) == {}


def test_of_few_episodes_no_scene_is_known() -> None:
    assert scenes({1: ROWS[: LEAST_EPISODES - 1], 2: ROWS[:LEAST_EPISODES]}, STORE.__getitem__).keys() == {2}


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sixteen frames of which the first half are successes."""
    rows = np.arange(16)
    return STORE[rows], rows, (rows < 8).astype(np.float32)


KNOWN = {1: Scene(np.stack([TABLE, TABLE]), np.array([8.0, 50.0], np.float32), np.array([0]))}


def test_some_negatives_become_successes_that_the_standing_camera_misses() -> None:
    frames, rows, targets = batch()
    hide(frames, rows, targets, np.ones(16, np.int64), KNOWN, 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(frames[:8], STORE[:8])
    changed = np.flatnonzero(rows != np.arange(16))
    assert len(changed) == 4 and (changed >= 8).all()
    for at in changed:
        assert rows[at] < 8, "heads that never saw that episode must not learn from it"
        np.testing.assert_array_equal(frames[at, 0], TABLE)
        np.testing.assert_array_equal(frames[at, 1], STORE[rows[at], 1])
    assert targets.tolist() == [1.0] * 8 + [0.0] * 8


def test_where_the_camera_never_sees_a_success_nothing_is_hidden() -> None:
    frames, rows, targets = batch()
    frames[:8, 0] = TABLE + 1
    hide(frames, rows, targets, np.ones(16, np.int64), KNOWN, 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(rows, np.arange(16))
    np.testing.assert_array_equal(frames[8:], STORE[8:16])


@pytest.mark.parametrize(
    ("light", "share", "successes"), [(2, 0.5, 8), (1, 0.0, 8), (1, 0.5, 0)], ids=["unknown light", "off", "none"]
)
def test_nothing_is_hidden_where_there_is_nothing_to_hide(light: int, share: float, successes: int) -> None:
    frames, rows, _ = batch()
    targets = (rows < successes).astype(np.float32)
    hide(frames, rows, targets, np.full(16, light), KNOWN, share, np.random.default_rng(0))
    np.testing.assert_array_equal(frames, STORE[:16])
    np.testing.assert_array_equal(rows, np.arange(16))


class Striped(Robot):
    """Before a background that tells a standing camera from one that moves."""

    def picture(self, arm: int, cube: int) -> np.ndarray:
        frames = self.rng.integers(0, 20, CONTRACT.frames_shape, dtype=np.uint8)
        frames[:, :, ::2] += 200
        frames[:, arm : arm + 4, 3:13] = 100
        frames[:, cube : cube + 1, 7:9] = (250, 30, 30)
        return frames


@pytest.mark.parametrize("hidden", [0.125, 0.0])
def test_a_classifier_calls_nothing_a_success_that_one_camera_does_not_see(hidden: float) -> None:
    fit = dataclasses.replace(QUICK.fit, hidden=hidden)
    robot = Striped(dataclasses.replace(QUICK, fit=fit, first_batches=150))
    robot.prepare()
    champion, lifted = robot.correction.champion, robot.lift()
    assert champion is not None
    held = robot.replay.rows(lifted)[-4:]
    assert (robot.correction.judge.lower(champion, lifted)[-4:] > 0.9).all()
    seen = robot.replay.frames[: robot.replay.size]
    likely = []
    for camera in (0, 1):
        frames = robot.replay.frames[held].copy()
        frames[:, camera] = np.median(seen[:, camera], axis=0)
        likely.append(1 / (1 + np.exp(-fitting.log_odds(champion.net, frames))))
    assert np.max(likely) < 0.1 if hidden else np.max(likely) > 0.9
