"""Reward and terminal follow from probabilities, labels and rule, and repair themselves when these change."""

import numpy as np
import pytest

from steadyhand_models.messages import EndReason
from steadyhand_models.reward import Rule, fires, lower_bound, outcome, success_frames

RULE = Rule(threshold=0.5, debounce_frames=2)


def probabilities(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def silence(n: int) -> np.ndarray:
    return np.zeros(n, np.int8)


def test_the_classifier_fires_only_after_k_frames_in_a_row():
    fired = fires(probabilities(0.9, 0.1, 0.9, 0.9, 0.9), RULE)
    np.testing.assert_array_equal(fired, [False, False, False, True, True])


def test_the_first_frames_of_an_episode_cannot_fire_alone():
    np.testing.assert_array_equal(fires(probabilities(0.9), RULE), [False])


def test_disagreeing_heads_count_for_less():
    agree = lower_bound(np.full((1, 3), 0.7, np.float32), 1.0)
    disagree = lower_bound(np.array([[0.4, 0.7, 1.0]], np.float32), 1.0)
    assert disagree[0] < agree[0] == pytest.approx(0.7)


def test_the_reward_of_an_action_is_judged_on_the_frame_after_it():
    success = success_frames(probabilities(0, 0, 0.9, 0.9), silence(4), RULE)
    out = outcome(success, EndReason.SUCCESS)
    np.testing.assert_array_equal(out.reward, [0, 0, 1])
    np.testing.assert_array_equal(out.terminal, [False, False, True])


def test_a_human_label_wins_over_the_classifier_both_ways():
    labels = np.array([0, 1, 0, -1], np.int8)
    success = success_frames(probabilities(0, 0, 0.9, 0.9), labels, RULE)
    np.testing.assert_array_equal(success, [False, True, False, False])


def test_a_false_success_becomes_a_truncation():
    labels = np.full(4, -1, np.int8)
    out = outcome(success_frames(probabilities(0, 0, 0.9, 0.9), labels, RULE), EndReason.SUCCESS)
    assert not out.reward.any()
    assert not out.terminal.any()
    assert out.usable.all()


def test_a_missed_success_becomes_terminal_and_masks_its_tail():
    labels = np.array([0, 0, 1, 0, 0, 0], np.int8)
    out = outcome(success_frames(probabilities(*[0.0] * 6), labels, RULE), EndReason.TIMEOUT)
    np.testing.assert_array_equal(out.reward, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(out.terminal, [False, True, False, False, False])
    np.testing.assert_array_equal(out.usable, [True, True, False, False, False])


def test_relabelling_is_reversible():
    p = probabilities(0, 0.9, 0.9, 0, 0)
    before = outcome(success_frames(p, silence(5), RULE), EndReason.TIMEOUT)
    outcome(success_frames(p, np.full(5, -1, np.int8), RULE), EndReason.TIMEOUT)
    again = outcome(success_frames(p, silence(5), RULE), EndReason.TIMEOUT)
    np.testing.assert_array_equal(before.reward, again.reward)
    np.testing.assert_array_equal(before.usable, again.usable)


@pytest.mark.parametrize("end", [EndReason.TIMEOUT, EndReason.OPERATOR, EndReason.FAULT, None])
def test_an_end_that_the_task_did_not_cause_is_bootstrapped(end):
    assert not outcome(np.zeros(5, bool), end).terminal.any()


def test_a_failure_is_terminal_without_reward():
    out = outcome(np.zeros(5, bool), EndReason.FAILURE)
    np.testing.assert_array_equal(out.terminal, [False, False, False, True])
    assert not out.reward.any()


def test_without_a_classifier_only_the_human_decides():
    success = success_frames(None, np.array([0, 0, 1], np.int8), RULE)
    np.testing.assert_array_equal(success, [False, False, True])
