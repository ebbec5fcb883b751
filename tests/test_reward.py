"""Reward and terminal follow from probabilities, labels and rule, and repair themselves when these change."""

import numpy as np
import pytest

from steadyhand_models import settings as settings_of
from steadyhand_models.messages import EndReason
from steadyhand_models.reward import (
    Outcome,
    RewardForm,
    RewardSettings,
    RewardSource,
    Rule,
    deny,
    fires,
    flips,
    lower_bound,
    outcome,
    success_frames,
    worth,
)

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


def test_a_success_that_its_own_end_cut_short_stands_under_a_rule_that_wants_one_more_frame():
    p = probabilities(0, 0, 0.4, 0.9)  # an earlier classifier saw two frames, this one would have waited for the next
    out = worth(p, silence(4), RULE, EndReason.SUCCESS, RewardSettings(), 1.0)
    np.testing.assert_array_equal(out.reward, [0, 0, 1])
    np.testing.assert_array_equal(out.terminal, [False, False, True])
    for end in (EndReason.TIMEOUT, EndReason.OPERATOR, None):
        assert not worth(p, silence(4), RULE, end, RewardSettings(), 1.0).reward.any(), "nothing was cut short"


def test_a_success_that_was_cut_short_falls_to_a_doubt_about_its_last_frame_and_to_a_persons_word():
    assert not worth(
        probabilities(0, 0, 0.9, 0.4), silence(4), RULE, EndReason.SUCCESS, RewardSettings(), 1.0
    ).reward.any()
    denied = np.array([0, 0, 0, -1], np.int8)
    out = worth(probabilities(0, 0, 0.4, 0.9), denied, RULE, EndReason.SUCCESS, RewardSettings(), 1.0)
    assert not out.reward.any() and not out.terminal.any()


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


# -- sources -----------------------------------------------------------------------------------------------------------

ENDED = EndReason.TIMEOUT
SPOKEN = np.array([0, 1, 0, 0, -1], np.int8)
SEEN = probabilities(0.1, 0.1, 0.9, 0.9, 0.9)  # fires at frames 3 and 4


def rewards(settings: RewardSettings, lower: np.ndarray | None = SEEN, labels: np.ndarray = SPOKEN) -> list[float]:
    return worth(lower, labels, RULE, ENDED, settings, 0.9).reward.tolist()


def test_a_source_says_whose_word_counts():
    runs_on = {"terminate_on_success": False}
    assert rewards(RewardSettings(source=RewardSource.HYBRID, **runs_on)) == [1, 0, 1, 0]
    assert rewards(RewardSettings(source=RewardSource.MANUAL, **runs_on)) == [1, 0, 0, 0]
    assert rewards(RewardSettings(source=RewardSource.CLASSIFIER, **runs_on)) == [0, 0, 1, 1]


@pytest.mark.parametrize("source", list(RewardSource))
def test_until_there_is_a_classifier_the_human_s_word_is_the_reward(source):
    assert rewards(RewardSettings(source=source), lower=None) == [1, 0, 0, 0]


# -- forms -------------------------------------------------------------------------------------------------------------


def test_success_that_does_not_end_the_episode_pays_on_every_frame_and_is_never_terminal():
    settings = RewardSettings(terminate_on_success=False, success_reward=2.0)
    out = outcome(np.array([False, True, True, False]), EndReason.SUCCESS, settings=settings)
    np.testing.assert_array_equal(out.reward, [2, 2, 0])
    assert not out.terminal.any() and out.usable.all()


def test_a_failure_is_terminal_also_where_success_is_not():
    settings = RewardSettings(terminate_on_success=False)
    assert outcome(np.array([False, True, False]), EndReason.FAILURE, settings=settings).terminal.tolist() == [
        False,
        True,
    ]


def test_a_probability_pays_on_every_step_and_the_human_s_word_wins():
    settings = RewardSettings(form=RewardForm.PROBABILITY, terminate_on_success=False, success_reward=2.0)
    np.testing.assert_allclose(rewards(settings), [2.0, 1.8, 1.8, 0.0])


def test_a_forced_probability_ends_at_success_and_pays_nothing_behind_it():
    settings = RewardSettings(form=RewardForm.PROBABILITY, force=True)
    out = worth(SEEN, silence(5), RULE, ENDED, settings, 0.9)
    np.testing.assert_allclose(out.reward, [0.1, 0.9, 0.9, 0.0], atol=1e-6)
    assert out.terminal.tolist() == [False, False, True, False]


def test_a_potential_shapes_by_the_change_of_probability_and_is_nothing_at_a_terminal():
    settings = RewardSettings(form=RewardForm.POTENTIAL)
    out = worth(SEEN, silence(5), RULE, ENDED, settings, 0.9)
    np.testing.assert_allclose(out.reward, [0.9 * 0.1 - 0.1, 0.9 * 0.9 - 0.1, 1.0 + 0.0 - 0.9, 0.0], atol=1e-6)


def test_a_potential_at_a_timeout_is_the_last_frame_s_because_the_value_behind_it_is_bootstrapped():
    settings = RewardSettings(form=RewardForm.POTENTIAL)
    out = worth(probabilities(0.2, 0.4, 0.6), silence(3), Rule(0.9, 2), ENDED, settings, 0.5)
    np.testing.assert_allclose(out.reward, [0.2 - 0.2, 0.3 - 0.4], atol=1e-6)


def test_a_human_s_no_takes_the_potential_and_a_yes_gives_it():
    settings = RewardSettings(form=RewardForm.POTENTIAL, terminate_on_success=False)
    said = worth(SEEN, np.array([0, 0, -1, -1, 1], np.int8), RULE, ENDED, settings, 1.0)
    np.testing.assert_allclose(said.reward, [0.0, -0.1, 0.0, 2.0], atol=1e-6)


@pytest.mark.parametrize("end", [EndReason.FAILURE, EndReason.TIMEOUT])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_shaping_adds_the_same_to_every_way_from_one_start_so_that_the_best_stays_the_best(end, scale):
    random = np.random.default_rng(1)
    discount = 0.9
    plain = RewardSettings(success_reward=scale)
    shaped = RewardSettings(form=RewardForm.POTENTIAL, success_reward=scale)
    for _ in range(50):
        lower = random.random(int(random.integers(2, 40))).astype(np.float32)
        outs = [worth(lower, silence(len(lower)), RULE, end, s, discount) for s in (plain, shaped)]
        np.testing.assert_array_equal(outs[0].terminal, outs[1].terminal)
        count = int(outs[0].usable.sum())
        weights = discount ** np.arange(count)
        one, two = (float((out.reward[:count] * weights).sum()) for out in outs)
        behind = 0.0 if outs[0].terminal.any() else discount**count * lower[count]
        assert two - one == pytest.approx(scale * (behind - lower[0]), abs=1e-4 * scale)


def test_a_dense_form_without_probabilities_says_what_it_needs():
    with pytest.raises(ValueError, match="needs the probability"):
        outcome(np.zeros(3, bool), None, settings=RewardSettings(form=RewardForm.POTENTIAL))


@pytest.mark.parametrize(
    ("chosen", "why", "fix"),
    [
        ({"form": "probability"}, "hovering", "terminate_on_success"),
        ({"form": "probability", "source": "manual", "force": True}, "asks no classifier", "'hybrid'"),
        ({"form": "potential", "source": "manual"}, "asks no classifier", "'success'"),
        ({"success_threshold": 1.0}, "success_threshold", "less than 1"),
        ({"success_reward": 0.0}, "success_reward", "greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason_and_the_fix(chosen, why, fix):
    with pytest.raises(settings_of.SettingsError) as refused:
        settings_of.validate(RewardSettings, chosen, "here")
    assert why in str(refused.value) and fix in str(refused.value)


def test_a_probability_with_an_end_by_success_can_be_forced():
    chosen = settings_of.validate(RewardSettings, {"form": "probability", "force": True}, "here")
    assert chosen.form is RewardForm.PROBABILITY and chosen.terminate_on_success


def test_a_flip_is_a_changed_terminal_or_more_than_a_tenth_of_the_success_reward():
    settings = RewardSettings(form=RewardForm.PROBABILITY, terminate_on_success=False, success_reward=10.0)
    before = np.array([5.0, 5.0, 5.0], np.float32)
    now = Outcome(np.array([5.9, 6.1, 5.0], np.float32), np.array([False, False, True]), np.ones(3, bool))
    assert flips(before, np.zeros(3, bool), now, settings).tolist() == [False, True, True]


def test_a_vetoed_success_stays_denied_until_the_classifier_has_fallen_below_its_threshold() -> None:
    rule = Rule(0.5, 2)
    lower = np.array([0, 0.9, 0.9, 0.8, 0.9, 0.2, 0.9, 0.9], np.float32)
    labels = np.array([-1, -1, -1, 0, 0, 0, 0, 0], np.int8)
    hybrid = RewardSettings()

    def paid(settings: RewardSettings, denied: tuple[int, ...]) -> list[int]:
        found = worth(lower, labels, rule, EndReason.SUCCESS, settings, 0.97, denied)
        return np.flatnonzero(found.reward).tolist()

    assert paid(hybrid, ()) == [2]  # the frame behind the denied ones
    assert paid(hybrid, (2,)) == [6]
    assert paid(RewardSettings(source=RewardSource.CLASSIFIER), (2,)) == [1]
    assert deny(lower[:5], [2], rule).tolist() == pytest.approx([0, 0.9, 0.9, 0, 0])
