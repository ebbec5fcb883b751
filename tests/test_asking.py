"""Frames are asked about by what an answer would teach: each term of the ranking by itself, and what bounds it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from steadyhand_models.reward import Rule
from steadyhand_training import asking
from steadyhand_training.asking import MOST_PER_EPISODE, AskingSettings, Glances

RULE = Rule(threshold=0.5, debounce_frames=1, pessimism=0.0)
ALL = AskingSettings(least_score=0.0, spacing_steps=1)


def glances(count: int, **terms: object) -> Glances:
    """Frames of one episode, 10 steps apart, with nothing worth asking but the given terms."""
    found = Glances(
        episode=np.ones(count, np.int64),
        seq=10 * np.arange(count),
        disagreement=np.zeros(count, np.float32),
        novelty=np.zeros(count, np.float32),
        effect=np.zeros(count, np.float32),
        silent=np.ones(count, np.bool_),
    )
    return dataclasses.replace(found, **{k: np.asarray(v) for k, v in terms.items()})  # type: ignore[arg-type]


def one_head(*probabilities: float) -> np.ndarray:
    return np.array(probabilities, np.float32)[:, None]


@pytest.mark.parametrize("term", ["disagreement", "novelty", "effect"])
def test_each_term_alone_puts_its_frame_first(term: str) -> None:
    values = np.array([0.1, 0.2, 0.9, 0.0], np.float32)
    assert asking.rank(glances(4, **{term: values}), [], ALL, drift=False)[:2] == [2, 1]


@pytest.mark.parametrize("term", ["disagreement", "novelty", "effect"])
def test_a_term_without_weight_counts_nothing(term: str) -> None:
    settings = dataclasses.replace(ALL, **{f"{term}_weight": 0.0})
    assert not glances(3, **{term: np.ones(3, np.float32)}).scores(settings).any()


def test_heads_that_deny_each_other_disagree_most_and_equal_ones_not_at_all() -> None:
    found = asking.disagreement(np.array([[0.5, 0.5], [0.4, 0.6], [0.0, 1.0]], np.float32))
    np.testing.assert_allclose(found, [0.0, 0.2, 1.0], atol=1e-6)


def test_a_frame_is_new_by_its_distance_to_the_nearest_labelled_one() -> None:
    known = np.array([[0.0, 0.0], [4.0, 0.0]], np.float32)
    seen = np.array([[0.0, 0.0], [4.0, 1.0], [0.0, 40.0]], np.float32)
    np.testing.assert_allclose(asking.novelty(seen, known), [0.0, 0.25, 1.0], atol=1e-3)


def test_everything_is_new_where_nothing_is_labelled() -> None:
    assert asking.novelty(np.zeros((3, 2), np.float32), np.zeros((0, 2), np.float32)).tolist() == [1.0, 1.0, 1.0]


def test_a_yes_before_the_first_success_changes_more_the_earlier_it_comes() -> None:
    effect = asking.effects(one_head(0.0, 0.4, 0.4, 0.4, 0.9, 0.9), np.zeros(6, np.int8), RULE, 0.9)
    assert effect[1] > effect[2] > effect[3] > 0.0
    assert effect[1] == pytest.approx(0.4 * (1 - 0.9**3))


def test_a_no_to_the_frame_that_ended_it_takes_the_whole_return() -> None:
    effect = asking.effects(one_head(0.0, 0.0, 0.7, 0.8), np.zeros(4, np.int8), RULE, 0.9)
    assert effect[2] == pytest.approx(0.3)


def test_a_later_claim_leaves_something_of_the_return() -> None:
    effect = asking.effects(one_head(0.0, 0.7, 0.0, 0.8), np.zeros(4, np.int8), RULE, 0.9)
    assert effect[1] == pytest.approx(0.3 * (1 - 0.9**2))


def test_frames_behind_the_first_success_and_the_first_frame_change_nothing() -> None:
    effect = asking.effects(one_head(0.4, 0.8, 0.4, 0.9), np.zeros(4, np.int8), RULE, 0.9)
    assert effect[0] == effect[2] == effect[3] == 0.0


def test_labelled_frames_have_no_effect_left() -> None:
    labels = np.array([0, -1, 0, 1], np.int8)
    effect = asking.effects(one_head(0.4, 0.4, 0.4, 0.4), labels, RULE, 0.9)
    assert effect[1] == effect[3] == 0.0 and effect[2] > 0.0


def test_at_most_five_frames_are_asked_about() -> None:
    worth = glances(9, effect=np.linspace(0.1, 0.9, 9, dtype=np.float32))
    assert asking.rank(worth, [], ALL, drift=False) == [8, 7, 6, 5, 4]
    assert MOST_PER_EPISODE == 5


def test_what_was_answered_or_asked_does_not_come_again_and_neither_do_its_neighbours() -> None:
    settings = dataclasses.replace(ALL, spacing_steps=11)
    worth = glances(6, effect=np.ones(6, np.float32), silent=[True, True, True, True, True, False])
    # 0 was asked about, so 10 is near it; of 20 and 30 one is enough; 50 is labelled.
    assert asking.rank(worth, [(1, 0)], settings, drift=False) == [2, 4]


def test_another_episode_is_no_neighbour() -> None:
    assert asking.rank(glances(1, effect=[1.0]), [(2, 0)], ALL, drift=False) == [0]


def test_nobody_is_bothered_with_frames_that_teach_little_unless_something_drifts() -> None:
    settings = AskingSettings(least_score=0.3, least_score_in_drift=0.1)
    dull = glances(1, effect=[0.5])  # a score of 0.2
    assert asking.rank(dull, [], settings, drift=False) == []
    assert asking.rank(dull, [], settings, drift=True) == [0]
