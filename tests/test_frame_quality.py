"""Rates of labelled frames, with intervals that count episodes and not frames."""

from __future__ import annotations

import numpy as np
import pytest

from steadyhand_models.reward import Rule
from steadyhand_training import frame_quality
from steadyhand_training.frame_quality import Scored
from steadyhand_training.metrics import wilson

RULE = Rule(threshold=0.5, debounce_frames=2, pessimism=0.0)


def episode(probabilities: list[float], labels: list[int]) -> Scored:
    return Scored(np.array(probabilities, np.float32)[:, None].repeat(2, axis=1), np.array(labels, np.int8))


def test_every_rate_follows_from_the_four_counts() -> None:
    found = frame_quality.frames([episode([0.9, 0.2, 0.8, 0.1, 0.9], [1, 1, -1, -1, 0])], RULE)
    assert (found.positive, found.negative, found.true_positive, found.false_positive) == (2, 2, 1, 1)
    assert found.accuracy == found.precision == found.recall == found.balanced_accuracy == 0.5
    assert found.false_positive_rate.value == 0.5


def test_without_frames_of_a_kind_its_rates_are_unknown_and_not_perfect() -> None:
    found = frame_quality.frames([episode([0.1, 0.1], [-1, -1])], RULE)
    assert found.accuracy == 1.0
    assert found.recall is None and found.precision is None and found.balanced_accuracy is None
    empty = frame_quality.frames([episode([0.1], [0])], RULE)
    assert empty.episodes == 0 and empty.accuracy is None and empty.calibration_error is None
    assert (empty.false_positive_rate.lo, empty.false_positive_rate.hi) == (0.0, 1.0)


def test_pessimism_counts_in_what_is_called_a_success() -> None:
    torn = Scored(np.array([[0.95, 0.45]], np.float32), np.array([-1], np.int8))
    assert frame_quality.frames([torn], RULE).false_positive == 1
    assert frame_quality.frames([torn], Rule(0.5, 2, pessimism=1.0)).false_positive == 0


def test_one_frame_above_the_threshold_is_no_false_success_of_its_episode() -> None:
    scored = [episode([0.9, 0.1, 0.9], [-1] * 3), episode([0.1, 0.9, 0.9], [-1] * 3), episode([0.9, 0.9], [1, 1])]
    found = frame_quality.episodes(scored, RULE)
    assert (found.refuted, found.false, found.confirmed, found.found) == (2, 1, 1, 1)
    assert (found.false_rate.lo, found.false_rate.hi) == wilson(1, 2)


def test_frames_that_err_together_widen_the_interval() -> None:
    frames = np.full(10, 20)
    together = frame_quality.clustered(np.array([20] + [0] * 9), frames)
    apart = frame_quality.clustered(np.full(10, 2), frames)
    assert together.value == apart.value == pytest.approx(0.1)
    assert apart.hi - apart.lo < 0.01 < together.hi - together.lo
    assert together.lo <= 0.1 <= together.hi


def test_an_interval_without_a_single_error_counts_episodes_as_trials() -> None:
    found = frame_quality.clustered(np.zeros(8, np.int64), np.full(8, 100))
    assert (found.value, found.lo, found.hi) == (0.0, *wilson(0, 8))


def test_one_episode_says_nothing_about_others() -> None:
    found = frame_quality.clustered(np.array([3]), np.array([10]))
    assert (found.value, found.lo, found.hi) == (0.3, 0.0, 1.0)


def test_equal_seeds_draw_equal_intervals() -> None:
    hits, trials = np.array([0, 3, 1, 0, 5]), np.array([10, 12, 9, 30, 11])
    assert frame_quality.clustered(hits, trials, 4) == frame_quality.clustered(hits, trials, 4)
    assert frame_quality.clustered(hits, trials, 4) != frame_quality.clustered(hits, trials, 5)


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        # Episodes differ: half of them err on 5% of their frames, half on 35%.
        hits = rng.binomial(20, rng.choice([0.05, 0.35], 40))
        found = frame_quality.clustered(hits, np.full(40, 20), seed)
        covered += found.lo <= 0.2 <= found.hi
    assert 0.88 <= covered / 200 <= 1.0


def test_calibration_error_is_the_gap_between_what_is_said_and_what_comes() -> None:
    sure_and_right = episode([1.0, 0.0], [1, -1])
    assert frame_quality.calibration_error([sure_and_right]) == 0.0
    said_80_came_50 = episode([0.8] * 4, [1, 1, -1, -1])
    assert frame_quality.calibration_error([said_80_came_50]) == pytest.approx(0.3, abs=1e-6)
