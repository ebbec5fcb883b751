"""What is stored in replay follows the reward settings: source, form, threshold; and every change can be taken back."""

import numpy as np
import pytest
from test_correction import CONTRACT, QUICK, TASK, Robot

from steadyhand_models.messages import LabelKind
from steadyhand_models.reward import RewardForm, RewardSettings, RewardSource
from steadyhand_training.correction import Correction

DISCOUNT = 0.9


def paid_by(settings: RewardSettings) -> Robot:
    """A robot after eight demonstrations, whose naive classifier looks at the arm."""
    robot = Robot()
    robot.correction = Correction(
        CONTRACT, TASK, robot.replay, robot.ledger, QUICK, 0, paid=settings, discount=DISCOUNT
    )
    robot.prepare()
    return robot


def stored(robot: Robot, episode: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = robot.replay.rows(episode)[:-1]
    return robot.replay.reward[rows].copy(), robot.replay.terminal[rows].copy(), robot.replay.usable[rows].copy()


def missed(robot: Robot) -> int:
    episode = robot.miss()
    robot.correction.settle([episode])
    return episode


@pytest.mark.parametrize("form", list(RewardForm))
def test_a_flag_and_its_undo_leave_every_stored_reward_as_it_was(form: RewardForm) -> None:
    robot = paid_by(RewardSettings(form=form, force=True))
    episode = missed(robot)
    before = stored(robot, episode)
    assert before[1].any()
    flag = robot.say(LabelKind.FALSE_POSITIVE)
    reward, terminal, usable = stored(robot, episode)
    assert not terminal.any() and usable.all() and not np.array_equal(reward, before[0])
    robot.say(LabelKind.UNDO, undo_of=flag.event_id)
    for one, two in zip(before, stored(robot, episode)):
        np.testing.assert_array_equal(one, two)


def test_a_source_decides_whose_word_is_stored() -> None:
    for source, after_flag in ((RewardSource.HYBRID, False), (RewardSource.CLASSIFIER, True)):
        robot = paid_by(RewardSettings(source=source))
        episode = missed(robot)
        assert stored(robot, episode)[1].any(), "the naive classifier calls it a success"
        robot.say(LabelKind.FALSE_POSITIVE)
        assert bool(stored(robot, episode)[1].any()) is after_flag


def test_with_manual_rewards_the_classifier_pays_nothing_and_a_key_does() -> None:
    robot = paid_by(RewardSettings(source=RewardSource.MANUAL))
    episode = missed(robot)
    assert not stored(robot, episode)[0].any()
    robot.say(LabelKind.SUCCESS, after_s=0.0)
    assert stored(robot, episode)[0].sum() == 1.0


def test_a_threshold_of_ones_own_is_the_rule_and_leaves_with_the_artifact() -> None:
    robot = paid_by(RewardSettings(success_threshold=0.97))
    assert robot.correction.threshold == 0.97
    assert robot.correction.artifact(1).manifest.threshold == 0.97


def test_a_potential_is_of_one_version_and_shapes_by_the_learners_discount() -> None:
    robot = paid_by(RewardSettings(form=RewardForm.POTENTIAL))
    episode = missed(robot)
    reward, terminal, usable = stored(robot, episode)
    first = int(np.flatnonzero(terminal)[0])
    scores = robot.correction.scores
    assert scores is not None
    probabilities = scores.of(robot.replay.rows(episode))
    phi = np.clip(probabilities.mean(-1) - QUICK.pessimism * probabilities.std(-1), 0.0, 1.0)
    np.testing.assert_allclose(reward[:first], DISCOUNT * phi[1 : first + 1] - phi[:first], atol=1e-5)
    assert reward[first] == pytest.approx(1.0 - phi[first], abs=1e-5)
    assert not usable[first + 1 :].any() and not reward[first + 1 :].any()


def test_nuances_of_a_dense_reward_are_no_flips() -> None:
    runs_on = RewardSettings(form=RewardForm.PROBABILITY, terminate_on_success=False)
    robot = paid_by(runs_on)
    episode = missed(robot)
    rows = robot.replay.rows(episode)[:-1]
    robot.replay.reward[rows] += 0.09
    assert robot.correction.settle([episode]) == (0, len(rows))
    robot.replay.reward[rows[:3]] += 0.11
    assert robot.correction.settle([episode]) == (3, len(rows))
