"""The watch: what values are possible, and which warnings an operator reads when."""

import numpy as np
import pytest

from steadyhand_models.messages import EndReason, Source
from steadyhand_models.reward import DEFAULT, RewardForm, RewardSettings, outcome
from steadyhand_training.watch import (
    REMEDIES,
    ValueBounds,
    WarningCode,
    Watch,
    WatchSettings,
    value_bounds,
)

BOUNDS = ValueBounds(0.0, 1.0)
MOVING, STILL = np.array([0.0, -0.4, 0.1], np.float32), np.array([0.01, -0.02, 0.0], np.float32)


def codes(watch: Watch) -> list[WarningCode]:
    return [warning.code for warning in watch.warnings()]


def looked(metrics: dict[str, float], times: int) -> Watch:
    watch = Watch(BOUNDS, actions=4)
    for _ in range(times):
        watch.look(metrics)
    return watch


@pytest.mark.parametrize(
    ("form", "lo", "hi"),
    [(RewardForm.SUCCESS, 0.0, 1.0), (RewardForm.PROBABILITY, 0.0, 25.0), (RewardForm.POTENTIAL, -1.0, 1.0)],
)
def test_each_form_of_reward_has_its_bounds(form: RewardForm, lo: float, hi: float) -> None:
    got = value_bounds(RewardSettings(form=form, force=True), 0.96)
    assert (got.lo, got.hi) == pytest.approx((lo, hi))


def test_penalties_and_bonuses_of_every_step_widen_the_bounds_by_their_sum_for_ever() -> None:
    got = value_bounds(DEFAULT, 0.9, penalty=-0.02, bonus=0.1)
    assert (got.lo, got.hi) == pytest.approx((-0.2, 2.0))


def test_a_success_that_does_not_end_the_episode_pays_for_ever_and_the_success_reward_scales_the_bounds() -> None:
    once = value_bounds(RewardSettings(success_reward=10.0), 0.9)
    always = value_bounds(RewardSettings(success_reward=10.0, terminate_on_success=False), 0.9)
    shaped = value_bounds(RewardSettings(form=RewardForm.POTENTIAL, success_reward=10.0), 0.9)
    assert (once.hi, always.hi, shaped.lo, shaped.hi) == pytest.approx((10.0, 100.0, -10.0, 10.0))


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("form", list(RewardForm))
def test_no_episode_is_worth_more_or_less_than_the_bounds(form: RewardForm, ends: bool) -> None:
    random = np.random.default_rng(0)
    settings = RewardSettings(form=form, terminate_on_success=ends, success_reward=2.0, force=True)
    discount = 0.9
    bounds = value_bounds(settings, discount, penalty=-0.02)
    worths = []
    for _ in range(300):
        count = int(random.integers(1, 100))
        probability = random.integers(0, 2, count + 1).astype(np.float32)
        success = random.random(count + 1) < random.choice([0.0, 0.1, 1.0])
        paid = outcome(success, EndReason.FAILURE, probability, settings, discount)
        each = (paid.reward - 0.02 * random.integers(0, 2, count)) * paid.usable
        worths.append(float((each * discount ** np.arange(count)).sum()))
    span = bounds.hi - bounds.lo
    assert bounds.lo - 1e-5 <= min(worths) and max(worths) <= bounds.hi + 1e-5
    assert max(worths) > bounds.lo + 0.4 * span


def test_arguments_that_bound_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="discount"):
        value_bounds(DEFAULT, 1.0)
    with pytest.raises(ValueError, match="must not be positive"):
        value_bounds(DEFAULT, 0.9, penalty=0.1)


@pytest.mark.parametrize(
    ("metrics", "code", "says"),
    [
        ({"q_over_bound": 0.4}, WarningCode.VALUES_TOO_HIGH, "expect 1.40"),
        ({"entropy": -9.0}, WarningCode.ENTROPY_COLLAPSED, "entropy -9.0"),
        ({"saturated": 0.9}, WarningCode.ACTIONS_SATURATED, "90%"),
    ],
)
def test_a_metric_that_stays_bad_becomes_a_sentence_with_what_to_do(
    metrics: dict[str, float], code: WarningCode, says: str
) -> None:
    assert codes(looked(metrics, WatchSettings().looks - 1)) == []
    watch = looked(metrics, WatchSettings().looks)
    (warning,) = watch.warnings()
    assert warning.code is code and says in warning.sentence and warning.remedy == REMEDIES[code]
    watch.look({})
    assert codes(watch) == []


def test_healthy_metrics_raise_no_warning() -> None:
    assert codes(looked({"q_over_bound": 0.05, "entropy": -2.0, "saturated": 0.25}, 50)) == []


def test_an_arm_that_a_policy_drives_without_moving_is_reported_until_it_moves_or_a_person_takes_over() -> None:
    limit = WatchSettings().still_steps
    for source, motion in ((Source.POLICY, MOVING), (Source.TAKEOVER, STILL)):
        watch = Watch(BOUNDS, actions=4)
        for _ in range(limit - 1):
            watch.acted(Source.POLICY, STILL)
        assert codes(watch) == []
        watch.acted(Source.POLICY, STILL)
        assert codes(watch) == [WarningCode.ARM_FROZEN]
        assert f"{limit} steps" in watch.warnings()[0].sentence
        watch.acted(source, motion)
        assert codes(watch) == []


def test_a_person_who_holds_still_freezes_nothing() -> None:
    watch = Watch(BOUNDS, actions=4)
    for _ in range(500):
        watch.acted(Source.DEMONSTRATION, STILL)
    assert codes(watch) == []


def test_refused_takeovers_are_named_with_their_reasons() -> None:
    watch = Watch(BOUNDS, actions=4)
    watch.refused({})
    assert codes(watch) == []
    watch.refused({"beyond the range": 3, "zero": 1})
    (warning,) = watch.warnings()
    assert warning.code is WarningCode.TAKEOVERS_REFUSED and "3 beyond the range, 1 zero" in warning.sentence


def test_weights_that_had_to_be_taken_back_are_mentioned() -> None:
    watch = Watch(BOUNDS, actions=4)
    watch.restored(2)
    assert codes(watch) == [WarningCode.WEIGHTS_RESTORED] and "2x" in watch.warnings()[0].sentence


def test_every_warning_has_something_to_do() -> None:
    assert set(REMEDIES) == set(WarningCode)
