"""The critics' response to changed rewards: by the share that flipped, until the error is back, and never too long."""

import math

import pytest

from steadyhand_training.response import LOOK_EVERY, CriticResponse, Response, ResponseSettings

S = ResponseSettings()
MANY = 100_000  # actions


def respond(share: float, error: float = 0.1) -> tuple[CriticResponse, Response]:
    response = CriticResponse(S)
    return response, response.promoted(round(share * MANY), MANY, error)


def updates_until_released(response: CriticResponse, error: float) -> int:
    count = 0
    while response.holds:
        response.updated(error if response.looks else None)
        count += 1
    return count


@pytest.mark.parametrize(
    ("share", "asked"),
    [
        (0.0, Response.NONE),
        (0.0009, Response.NONE),
        (0.0011, Response.HOLD),
        (0.0199, Response.HOLD),
        (0.0201, Response.RESET),
        (1.0, Response.RESET),
    ],
)
def test_the_share_of_flipped_rewards_decides(share: float, asked: Response) -> None:
    response, got = respond(share)
    assert got is asked and response.response is asked and response.holds is (asked is not Response.NONE)


def test_a_few_flips_of_a_small_replay_hold_the_actor_but_reset_nothing() -> None:
    response = CriticResponse(S)
    actions = 10 * S.reset_flips
    assert response.promoted(S.reset_flips - 1, actions, 0.1) is Response.HOLD
    assert response.promoted(S.reset_flips, actions, 0.1) is Response.RESET


def test_a_promotion_before_anything_is_stored_asks_for_nothing() -> None:
    assert CriticResponse(S).promoted(0, 0, math.inf) is Response.NONE


def test_the_actor_is_released_once_the_error_is_back_at_its_level() -> None:
    response, _ = respond(0.01, error=0.1)
    for _ in range(S.least_updates):
        response.updated(0.3 if response.looks else None)
    assert response.holds
    assert updates_until_released(response, error=0.1 * S.recovered) == LOOK_EVERY


def test_recovery_is_not_believed_before_the_error_can_have_risen() -> None:
    response, _ = respond(0.01)
    assert updates_until_released(response, error=0.0) >= S.least_updates


@pytest.mark.parametrize(("share", "most"), [(0.01, S.most_updates), (0.5, S.most_reset_updates)])
@pytest.mark.parametrize("error", [1e9, math.nan])
def test_an_error_that_never_recovers_holds_for_a_limited_time(share: float, most: int, error: float) -> None:
    response, _ = respond(share)
    assert updates_until_released(response, error) == most


def test_after_a_hold_the_actor_gets_as_many_updates_before_the_next_one() -> None:
    response, _ = respond(0.01)
    held = updates_until_released(response, error=9.0)
    assert response.promoted(MANY // 100, MANY, 0.1) is Response.NONE
    for _ in range(held):
        assert not response.holds
        response.updated()
    assert response.promoted(MANY // 100, MANY, 0.1) is Response.HOLD


def test_promotions_without_end_leave_the_actor_half_of_the_updates() -> None:
    response = CriticResponse(S)
    free = 0
    for _ in range(4000):
        response.promoted(MANY // 100, MANY, 0.1)
        free += not response.holds
        response.updated(9.0 if response.looks else None)
    assert free >= 2000 - S.most_updates


def test_a_further_promotion_neither_prolongs_a_hold_nor_takes_its_risen_error_for_the_level() -> None:
    response, _ = respond(0.01, error=0.1)
    for _ in range(S.most_updates - 1):
        response.updated(5.0 if response.looks else None)
    assert response.promoted(MANY // 100, MANY, 5.0) is Response.NONE
    response.updated(0.2)
    assert not response.holds


def test_a_reset_may_come_during_a_hold_and_is_counted() -> None:
    response, _ = respond(0.01, error=0.1)
    response.updated()
    assert response.promoted(MANY // 10, MANY, 5.0) is Response.RESET
    assert response.metrics["critic_resets"] == 1 and response.metrics["critic_response"] == Response.RESET
    assert updates_until_released(response, error=0.2) == S.most_reset_updates  # its level is still 0.1


def test_critics_that_began_anew_are_given_their_updates_however_small_their_error_is() -> None:
    response, _ = respond(0.5)
    assert updates_until_released(response, error=0.0) == S.least_reset_updates


def test_targets_follow_faster_only_while_new_critics_learn_alone() -> None:
    for share, rate in ((0.0, None), (0.01, None), (0.5, S.reset_target_rate)):
        response, _ = respond(share)
        assert response.target_rate == rate
    updates_until_released(response, error=0.0)
    assert response.target_rate is None


def test_a_saved_response_goes_on_where_it_was() -> None:
    one, _ = respond(0.01)
    for _ in range(7):
        one.updated(9.0 if one.looks else None)
    two = CriticResponse(S)
    two.load(one.save())
    assert updates_until_released(one, 9.0) == updates_until_released(two, 9.0) == S.most_updates - 7
    assert one.save() == two.save()
