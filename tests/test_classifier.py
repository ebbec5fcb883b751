"""The classifier's network, how it is fitted, and how it is judged by episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from steadyhand_models import reward
from steadyhand_models import task as tasks
from steadyhand_models.nets import classifier, export
from steadyhand_training import fitting, gate
from steadyhand_training.fitting import Fit, FitSettings, Pool
from steadyhand_training.gate import GateSettings, Judged, Quality, Trial

torch.set_num_threads(1)  # more threads than free cores wait for each other

SHAPE = (2, 16, 16, 3)


def pictures(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_every_head_gives_a_probability_of_raw_pixels() -> None:
    net = classifier.build(SHAPE, 3, seed=0)
    out = net(torch.from_numpy(pictures(5)))
    assert out.shape == (5, 3)
    assert ((out > 0) & (out < 1)).all()


def test_a_seed_gives_the_same_network_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    first = classifier.build(SHAPE, 2, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    again, other = classifier.build(SHAPE, 2, seed=1), classifier.build(SHAPE, 2, seed=2)
    frames = torch.from_numpy(pictures(4))
    assert torch.equal(first(frames), again(frames))
    assert not torch.equal(first(frames), other(frames))


def test_a_higher_temperature_means_less_certainty_and_the_same_answer() -> None:
    net = classifier.build(SHAPE, 3, seed=0)
    frames = torch.from_numpy(pictures(8))
    sharp = net(frames)
    net.temperature.fill_(4.0)
    soft = net(frames)
    assert ((soft - 0.5).abs() < (sharp - 0.5).abs()).all()
    assert torch.equal(soft > 0.5, sharp > 0.5)


def test_a_frame_is_judged_alike_alone_and_in_a_batch() -> None:
    net = classifier.build(SHAPE, 3, seed=0).train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    frames = torch.from_numpy(pictures(6))
    torch.testing.assert_close(net(frames)[2:3], net(frames[2:3]), atol=1e-6, rtol=0)


def test_the_exported_graph_carries_the_temperature() -> None:
    contract = tasks.load("lift").contract()
    net, exporter = classifier.build(contract.frames_shape, 3, seed=0), export.Exporter()
    frames = pictures(4, shape=contract.frames_shape)
    for temperature in (1.0, 3.0):
        net.temperature.fill_(temperature)
        _, golden = exporter.classifier(net, contract, frames)
        with torch.inference_mode():
            np.testing.assert_allclose(golden.output, net(torch.from_numpy(frames)).numpy(), atol=1e-6)


def test_batches_hold_as_many_of_each_class_however_rare_it_is() -> None:
    rng = np.random.default_rng(0)
    anchor, corrections = Pool(np.array([1]), np.arange(10, 500)), Pool(np.array([], np.int64), np.array([2, 3]))
    rows, targets = fitting.draw([anchor, corrections], 64, rng)
    assert targets.sum() == 32
    assert set(rows[targets > 0.5]) == {1}
    few = np.isin(rows[targets < 0.5], [2, 3]).sum()
    assert 6 <= few <= 26, "two corrections weigh as much as hundreds of other frames"


def test_a_pool_is_drawn_from_by_its_weight() -> None:
    whole, slight = Pool(np.array([1]), np.array([10])), Pool(np.array([2]), np.array([20]), 0.25)
    rows, _ = fitting.draw([whole, slight], 2000, np.random.default_rng(0))
    assert 0.16 < np.isin(rows, [2, 20]).mean() < 0.24, "a quarter as often as the other: a fifth"


def test_a_class_without_frames_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="no frames of one class"):
        fitting.draw([Pool(np.array([], np.int64), np.array([1]))], 8, np.random.default_rng(0))


def test_augmentation_keeps_shape_and_range_and_moves_pictures_a_little() -> None:
    frames = np.zeros((16, *SHAPE), np.uint8)
    frames[:, :, 8, 8] = 255
    out = fitting.augment(
        frames, FitSettings(shift_px=2, brightness=0.1, colour=0.0, shade=0.0), np.random.default_rng(0)
    )
    assert out.shape == frames.shape
    assert out.dtype == np.uint8
    places = np.argwhere(out[..., 0] > 200)[:, 2:]
    assert np.abs(places - 8).max() == 2
    assert len(np.unique(places, axis=0)) > 4
    assert out.max() == 255


def test_no_augmentation_leaves_frames_as_they_are() -> None:
    frames = pictures(9)
    same = fitting.augment(
        frames, FitSettings(shift_px=0, brightness=0.0, colour=0.0, shade=0.0), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(same, frames)


def test_fitting_separates_bright_from_dark_and_leaves_the_champion_alone() -> None:
    champion = classifier.build(SHAPE, 2, seed=0)
    frames = pictures(64) // 2
    frames[:32] += 100
    targets = np.repeat([1, 0], 32).astype(np.float32)
    before = fitting.log_odds(champion, frames)
    fit = Fit(champion, FitSettings(learning_rate=1e-3))
    losses = [fit.step(frames, targets, np.ones((64, 2), bool)) for _ in range(30)]
    after = fitting.log_odds(fit.net, frames)
    assert losses[-1] < losses[0] / 2
    assert ((after > 0).all(axis=1) == (targets > 0.5)).all()
    np.testing.assert_array_equal(fitting.log_odds(champion, frames), before)


def test_a_head_does_not_learn_from_rows_that_are_not_its_own() -> None:
    fit = Fit(classifier.build(SHAPE, 2, seed=0), FitSettings(weight_decay=0.0))
    before = [p.clone() for p in fit.net.heads[1].parameters()]
    fit.step(pictures(8), np.ones(8, np.float32), np.tile([True, False], (8, 1)))
    assert all(torch.equal(a, b) for a, b in zip(before, fit.net.heads[1].parameters()))
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in fit.net.heads[0].parameters())


def test_a_blend_lies_between_what_was_and_what_was_fitted() -> None:
    before = classifier.build(SHAPE, 2, seed=0)
    fit = Fit(before, FitSettings(learning_rate=1e-2))
    for _ in range(5):
        fit.step(pictures(8), np.ones(8, np.float32), np.ones((8, 2), bool))
    for share in (0.25, 1.0):
        parts = zip(before.parameters(), fit.net.parameters(), fitting.blended(before, fit.net, share).parameters())
        for old, new, mixed in parts:
            torch.testing.assert_close(mixed, share * new + (1 - share) * old)


def test_temperature_cools_an_overconfident_network_and_never_sharpens() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    honest = np.where(rng.random(400) < 0.8, truth, ~truth)  # right four times in five
    logits = np.where(honest, 8.0, -8.0)[:, None].astype(np.float32)
    assert fitting.temperature(logits, truth) == pytest.approx(8.0 / np.log(4), rel=0.1)
    assert fitting.temperature(logits, truth, most=2.0) == pytest.approx(2.0, rel=0.1)
    assert fitting.temperature(np.where(truth, 1.0, -1.0)[:, None].astype(np.float32), truth) == 1.0


def episode(lower: list[float], labels: list[int]) -> Judged:
    return Judged(np.array(lower, np.float32), np.array(labels, np.int8))


RULE = reward.Rule(threshold=0.7, debounce_frames=2)


def test_quality_counts_episodes_and_a_lone_frame_is_no_success() -> None:
    quality = gate.judge(
        [
            episode([0.1, 0.9, 0.1, 0.9], [-1, -1, -1, -1]),  # never two in a row
            episode([0.1, 0.9, 0.9, 0.9], [-1, -1, -1, -1]),  # one false episode, not two false frames
            episode([0.1, 0.2, 0.9, 0.9], [-1, 0, 1, 1]),
            episode([0.1, 0.2, 0.9, 0.2], [0, 0, 1, 1]),  # missed
        ],
        RULE,
    )
    assert (quality.refuted, quality.false, quality.confirmed, quality.found) == (3, 1, 2, 1)


def test_firing_on_frames_that_nobody_spoke_of_is_neither_right_nor_wrong() -> None:
    quality = gate.judge([episode([0.9, 0.9, 0.1], [0, 0, -1])], RULE)
    assert (quality.refuted, quality.false) == (1, 0)


def test_the_threshold_rises_until_the_false_episodes_meet_the_budget() -> None:
    hard = [episode([0.72, 0.72], [-1, -1])] * 4 + [episode([0.1, 0.1], [-1, -1])] * 60
    easy = [episode([0.95, 0.95], [1, 1])] * 10
    assert gate.choose_rule(hard + easy, RULE, GateSettings()).threshold >= 0.75
    assert gate.judge(hard + easy, gate.choose_rule(hard + easy, RULE, GateSettings())).recall == 1.0


def test_the_budget_comes_before_recall() -> None:
    episodes = [episode([0.85, 0.85], [-1, -1])] * 2 + [episode([0.1, 0.1], [-1, -1])] * 60
    episodes += [episode([0.8, 0.8], [1, 1])] + [episode([0.95, 0.95], [1, 1])] * 2
    quality = gate.judge(episodes, gate.choose_rule(episodes, RULE, GateSettings(false_success_budget=0.05)))
    assert (quality.false, quality.found) == (0, 2)


def test_the_budget_is_not_met_by_silence() -> None:
    episodes = [episode([0.85, 0.85], [-1, -1])] * 2 + [episode([0.1, 0.1], [-1, -1])] * 60
    episodes += [episode([0.8, 0.8], [1, 1])] * 3
    assert gate.judge(episodes, gate.choose_rule(episodes, RULE, GateSettings())).recall == 1.0


def test_with_few_episodes_one_wrong_key_does_not_silence_the_classifier() -> None:
    wrong_key = episode([0.1, 0.89, 0.89], [-1, -1, -1])
    episodes = [wrong_key] + [episode([0.1, 0.89, 0.89], [-1, 1, 1])] * 4
    assert gate.judge(episodes, gate.choose_rule(episodes, RULE, GateSettings())).recall == 1.0


def test_one_hard_episode_among_many_does_not_lower_the_threshold() -> None:
    hard, easy = episode([0.1, 0.66, 0.66], [-1, 1, 1]), episode([0.1, 0.95, 0.95], [-1, 1, 1])
    assert gate.choose_rule([hard] + [easy] * 29, RULE, GateSettings()).threshold == gate.HIGH
    assert gate.choose_rule([hard] + [easy] * 3, RULE, GateSettings()).threshold < 0.66


def test_the_false_bound_stays_high_until_enough_episodes_were_judged() -> None:
    assert Quality(3, 0, 1, 1, 1.0).false_bound > 0.4
    assert Quality(60, 0, 1, 1, 1.0).false_bound < 0.05
    assert Quality(0, 0, 1, 1, 1.0).false_bound == 1.0


GOOD = Quality(refuted=20, false=2, confirmed=20, found=19, balanced_accuracy=0.9)


def trial(**change: object) -> Trial:
    fields = {"candidate": GOOD, "champion": GOOD, "fresh": 3, "fresh_fixed": 2, "past": 10}
    fields |= {"past_kept_candidate": 9, "past_kept_champion": 9}
    return Trial(**fields | change)  # type: ignore[arg-type]


def test_a_candidate_that_fixes_most_of_what_was_flagged_passes() -> None:
    assert gate.objection(trial(), GateSettings()) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"candidate": Quality(20, 4, 20, 19, 0.9)}, "false_success 2 -> 4"),
        ({"candidate": Quality(20, 2, 20, 16, 0.9)}, "recall 19 -> 16"),
        ({"past_kept_candidate": 7}, "past_flags 9 -> 7"),
        ({"fresh_fixed": 1}, "not_fixed 1 of 3"),
    ],
)
def test_the_gate_says_why_it_refuses(change: dict[str, object], reason: str) -> None:
    assert reason in gate.objection(trial(**change), GateSettings())


LOWER = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40)


@given(LOWER, st.integers(1, 4), st.sampled_from(gate.THRESHOLDS))
def test_a_classifier_is_right_exactly_when_judging_finds_no_fault(
    lower: list[float], k: int, threshold: float
) -> None:
    labels = [(-1, 0, 1)[i % 3] for i in range(len(lower))]
    rule = reward.Rule(threshold, k)
    quality = gate.judge([episode(lower, labels)], rule)
    assert gate.right(episode(lower, labels), rule) == (quality.false == 0 and quality.found == quality.confirmed)
