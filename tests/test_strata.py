"""Frames are sorted by light, camera and phase, from what is recorded alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from training_steps import CONTRACT, TASK, driven, step

from steadyhand_models.messages import EndReason, Source, Step
from steadyhand_training import strata
from steadyhand_training.replay import Replay
from steadyhand_training.strata import Cover, Lights, Phase, Strata, Stratum

NAMES = [f.name for f in CONTRACT.state]


def state(jaw_rad: float, tip_z_m: float) -> np.ndarray:
    found = np.zeros(len(NAMES), np.float32)
    found[NAMES.index("gripper_position")], found[NAMES.index("tip_z")] = jaw_rad, tip_z_m
    return found


def lit(episode: int, level: int, colour: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> list[Step]:
    """A short episode whose pictures have about this level."""
    rng = np.random.default_rng(episode)
    steps = [s for s in driven(episode, Source.POLICY, 4) if isinstance(s, Step)]
    noise = rng.integers(-2, 3, CONTRACT.frames_shape)
    frames = np.clip(level * np.array(colour) + noise, 0, 255).astype(np.uint8)
    return [dataclasses.replace(s, frames=frames, state=state(0.2, 0.02)) for s in steps]


def recorded(*episodes: list[Step]) -> Replay:
    replay = Replay(CONTRACT, 1000)
    for steps in episodes:
        for each in steps:
            replay.append(each)
    return replay


@pytest.mark.parametrize(
    ("jaw_rad", "tip_z_m", "phase"),
    [
        (0.9, 0.11, Phase.APPROACH),
        (0.9, 0.02, Phase.APPROACH),
        (0.3, 0.02, Phase.GRASP),
        (0.3, 0.08, Phase.LIFT),
        (-0.1, 0.08, Phase.LIFT),
    ],
)
def test_jaws_and_height_tell_the_phase(jaw_rad: float, tip_z_m: float, phase: Phase) -> None:
    [place] = strata.phases(state(jaw_rad, tip_z_m)[None], TASK)
    assert strata.PHASES[place] is phase


def test_episodes_in_one_light_are_one_light_and_a_dimmer_or_redder_one_is_another() -> None:
    replay = recorded(lit(0, 120), lit(1, 122), lit(2, 70), lit(3, 119), lit(4, 120, (1.0, 0.8, 0.6)), lit(5, 71))
    found = Strata(replay, TASK)
    assert [found.light(e) for e in range(6)] == [1, 1, 2, 1, 3, 2]
    assert found.newest_light == 2


def test_what_one_camera_alone_sees_is_no_other_light() -> None:
    one = strata.signature(np.full((3, *CONTRACT.frames_shape), 100, np.uint8))
    wrist = np.full((3, *CONTRACT.frames_shape), 100, np.uint8)
    wrist[:, 1] = 200
    assert strata.distance(one, strata.signature(wrist)) == 0
    assert strata.distance(one, strata.signature(wrist // 4)) == 50


def test_an_arm_that_covers_a_third_of_the_picture_does_not_change_its_light() -> None:
    plain = np.full((4, *CONTRACT.frames_shape), 120, np.uint8)
    covered = plain.copy()
    covered[:, :, : CONTRACT.frames_shape[1] // 5] = 20
    covered[:, :, -CONTRACT.frames_shape[1] // 5 :] = 250
    assert strata.distance(strata.signature(plain), strata.signature(covered)) == 0


def test_a_running_episode_has_no_light_yet() -> None:
    replay = recorded(lit(0, 120), lit(1, 60)[:-1])
    found = Strata(replay, TASK)
    assert (found.light(1), found.newest_light) == (0, 1)
    replay.append(lit(1, 60)[-1])
    assert (found.light(1), found.newest_light) == (2, 2)


def test_lights_are_numbered_by_the_order_in_which_episodes_ended_whenever_one_asks() -> None:
    episodes = [lit(e, level) for e, level in enumerate((120, 60, 200, 121, 61))]
    late = Strata(recorded(*episodes), TASK)
    replay, early = Replay(CONTRACT, 1000), []
    asked = Strata(replay, TASK)
    for number, steps in enumerate(episodes):
        for each in steps:
            replay.append(each)
        early.append(asked.light(number))
    assert [late.light(e) for e in reversed(range(5))] == early[::-1]


def test_coverage_counts_labelled_frames_and_their_episodes_in_every_stratum() -> None:
    replay = recorded(lit(0, 120), lit(1, 60))
    found = Strata(replay, TASK, camera_of=lambda episode: "cell")
    said = {0: np.array([-1, -1, 0, 1, 1], np.int8), 1: np.array([-1, 0, 0, 0, 0], np.int8)}
    assert found.coverage(said) == {
        Stratum(1, "cell", Phase.GRASP): Cover(positive=2, negative=2, episodes=1),
        Stratum(2, "cell", Phase.GRASP): Cover(positive=0, negative=1, episodes=1),
    }


def test_a_stratum_names_its_camera_only_where_there_are_several() -> None:
    assert str(Stratum(2, strata.ONE_CAMERA, Phase.GRASP)) == "light 2, grasp"
    assert str(Stratum(1, "cell", Phase.LIFT)) == "light 1, cell, lift"


def test_no_light_is_near_before_the_first_was_met() -> None:
    assert Lights().nearest(strata.signature(step(0, 0, end=EndReason.TIMEOUT).frames[None])) == (0, float("inf"))


def test_frames_are_put_into_the_light_of_others_that_are_known() -> None:
    replay = recorded(lit(0, 120), lit(1, 60), lit(2, 120))
    found = Strata(replay, TASK)
    rows = np.concatenate([replay.rows(0)] * 20)
    gains = found.relit(rows, np.random.default_rng(0))
    assert np.isin(gains.round(1), (0.5, 1.0)).all()
    assert 0.3 < (gains[:, 0, 0] < 0.6).mean() < 0.7


def test_in_a_single_light_nothing_is_put_into_another() -> None:
    replay = recorded(lit(0, 120))
    assert (Strata(replay, TASK).relit(replay.rows(0), np.random.default_rng(0)) == 1).all()
