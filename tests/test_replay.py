"""Replay: links, outcomes and what may be sampled."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from steadyhand_models import reward, task
from steadyhand_models.contract import Contract
from steadyhand_models.messages import EndReason, Source, Step
from steadyhand_training.replay import ARRAYS, FIRST_ROWS, NO_ROW, SOURCES, Batch, Refusal, Replay, ReplayFull

CONTRACT = task.load("lift").contract()
ACTIONS = len(CONTRACT.action)


def make_step(
    episode: int, seq: int, source: Source = Source.POLICY, end: EndReason | None = None, contract: Contract = CONTRACT
) -> Step:
    action = None if end else np.full(ACTIONS, 0.01 * (seq + 1), np.float32)
    return Step(
        run="run",
        episode=episode,
        seq=seq,
        tick=seq,
        stamp_ns=1_000 * episode + seq,
        contract=contract.hash,
        frames=np.full(contract.frames_shape, (7 * episode + seq) % 256, np.uint8),
        state=np.full(len(contract.state), episode + seq / 100, np.float32),
        proposed=action,
        executed=action,
        source=Source.NONE if end else source,
        reasons=(),
        classifier=None,
        policy_version=3,
        classifier_version=2,
        frame_age_s=0.0,
        state_age_s=0.0,
        end=end,
    )


def fill(replay: Replay, episode: int, actions: int, end: EndReason, source: Source = Source.POLICY) -> None:
    for seq in range(actions):
        replay.append(make_step(episode, seq, source))
    replay.append(make_step(episode, actions, end=end))


def judge(replay: Replay, episode: int, success_at: Sequence[int] = ()) -> None:
    success = np.zeros(len(replay.rows(episode)), np.bool_)
    success[list(success_at)] = True
    replay.set_outcome(episode, reward.outcome(success, replay.ended(episode)))


def test_rows_of_an_episode_are_linked_and_hold_what_was_recorded() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 4, 3, EndReason.TIMEOUT)
    rows = replay.rows(4)
    assert replay.size == 4
    assert replay.next_row[rows].tolist() == [1, 2, 3, NO_ROW]
    assert replay.has_action[rows].tolist() == [True, True, True, False]
    assert replay.ended(4) is EndReason.TIMEOUT
    assert replay.seq[rows].tolist() == [0, 1, 2, 3]
    assert np.allclose(replay.executed[rows[2]], 0.03)
    assert replay.frames[rows[1]].max() == 29
    assert replay.stamp_ns[rows[3]] == 4003
    assert (replay.policy_version[0], replay.classifier_version[0]) == (3, 2)


def test_no_transition_joins_two_episodes_even_when_their_steps_interleave() -> None:
    replay = Replay(CONTRACT, 64)
    for seq in range(5):
        replay.append(make_step(1, seq))
        replay.append(make_step(2, seq))
    for episode in (1, 2):
        judge(replay, episode)
    batch = replay.sample(256, np.random.default_rng(0))
    assert (replay.episode[batch.rows] == replay.episode[batch.next_rows]).all()
    assert (replay.seq[batch.rows] + 1 == replay.seq[batch.next_rows]).all()


def test_a_missing_step_leaves_no_transition_across_the_gap() -> None:
    replay = Replay(CONTRACT, 64)
    for seq in (0, 1, 3, 4):
        replay.append(make_step(1, seq))
    judge(replay, 1)
    assert replay.usable[:4].tolist() == [True, False, True, False]


def test_a_timeout_is_bootstrapped_and_a_success_is_terminal() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 4, EndReason.TIMEOUT)
    fill(replay, 2, 4, EndReason.SUCCESS)
    judge(replay, 1)
    judge(replay, 2, [4])
    batch = replay.sample(400, np.random.default_rng(1))
    terminal = batch.discount == 0.0
    assert set(batch.rows[terminal].tolist()) == {replay.rows(2)[3]}
    assert (batch.reward == terminal).all()
    assert replay.rows(1)[3] in batch.rows


def test_nothing_is_sampled_behind_the_first_success() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 10, EndReason.SUCCESS, Source.DEMONSTRATION)
    judge(replay, 1, [4, 5, 6, 7, 8, 9, 10])
    batch = replay.sample(200, np.random.default_rng(2))
    assert set(replay.seq[batch.rows].tolist()) == {0, 1, 2, 3}


def test_a_new_outcome_repairs_a_false_success_and_returns_its_tail() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 6, EndReason.TIMEOUT)
    judge(replay, 1, [2])
    assert replay.transitions == 2
    judge(replay, 1)
    assert replay.transitions == 6
    assert replay.reward.sum() == 0.0
    assert not replay.terminal.any()


def outcomes_of(replay: Replay) -> list[np.ndarray]:
    return [values[: replay.size].copy() for values in (replay.reward, replay.terminal, replay.usable)]


def test_a_false_success_becomes_a_truncation_whose_value_is_bootstrapped() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 6, EndReason.SUCCESS)
    judge(replay, 1, [6])
    last = replay.rows(1)[-2]
    assert replay.terminal[last] and replay.reward[last] == 1.0
    judge(replay, 1)
    batch = replay.sample(100, np.random.default_rng(0), discount=0.9)
    assert last in batch.rows and replay.rows(1)[-1] in batch.next_rows
    assert (batch.discount == np.float32(0.9)).all() and not batch.reward.any()


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_missed_success_becomes_a_terminal_and_nothing_behind_it_is_sampled(n_step: int) -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 8, EndReason.TIMEOUT)
    judge(replay, 1)
    judge(replay, 1, [4])
    batch = replay.sample(300, np.random.default_rng(0), n_step, 0.9)
    assert replay.seq[batch.next_rows].max() == 4
    ends = replay.seq[batch.next_rows] == 4
    assert (batch.discount[ends] == 0.0).all() and (batch.reward[ends] > 0.0).all()
    assert not batch.reward[~ends].any()


@pytest.mark.parametrize("said", [[], [2], [2, 3, 9], [9]])
@pytest.mark.parametrize("before", [[], [5], [9]])
def test_an_outcome_that_is_taken_back_leaves_every_row_as_it_was(before: list[int], said: list[int]) -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 9, EndReason.SUCCESS)
    for seq in (0, 1, 3, 4):  # a lost step: no transition across the gap, whatever the outcome
        replay.append(make_step(2, seq))
    replay.append(make_step(2, 5, end=EndReason.TIMEOUT))
    judge(replay, 1, before)
    judge(replay, 2)
    first, sampled = outcomes_of(replay), replay.sample(50, np.random.default_rng(3)).rows
    judge(replay, 1, said)
    judge(replay, 2, [1])
    judge(replay, 1, before)
    judge(replay, 2)
    for one, two in zip(first, outcomes_of(replay)):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(replay.sample(50, np.random.default_rng(3)).rows, sampled)


def test_half_of_a_batch_is_guided_however_few_guided_steps_there_are() -> None:
    replay = Replay(CONTRACT, 512)
    fill(replay, 1, 5, EndReason.SUCCESS, Source.DEMONSTRATION)
    fill(replay, 2, 5, EndReason.TIMEOUT, Source.TAKEOVER)
    fill(replay, 3, 200, EndReason.TIMEOUT)
    for episode in (1, 2, 3):
        judge(replay, episode)
    batch = replay.sample(200, np.random.default_rng(3))
    assert batch.guided[:100].all()
    assert batch.guided.sum() < 120
    assert set(replay.episode[batch.rows[batch.guided]].tolist()) == {1, 2}
    assert replay.guided_rows().tolist() == [*replay.rows(1)[:5], *replay.rows(2)[:5]]


def test_steps_without_an_outcome_are_not_sampled() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 5, EndReason.TIMEOUT)
    assert replay.transitions == 0
    with pytest.raises(ValueError, match="no transition"):
        replay.sample(8, np.random.default_rng(0))


def test_an_open_episode_can_be_judged_and_judged_again_as_it_grows() -> None:
    replay = Replay(CONTRACT, 64)
    for seq in range(3):
        replay.append(make_step(1, seq))
    judge(replay, 1)
    assert replay.transitions == 2
    replay.append(make_step(1, 3))
    judge(replay, 1)
    assert replay.transitions == 3


def test_an_outcome_of_another_length_is_refused() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 5, EndReason.TIMEOUT)
    with pytest.raises(ValueError, match="outcome of 3 actions for 6 frames"):
        replay.set_outcome(1, reward.outcome(np.zeros(4, np.bool_), None))


def test_growing_keeps_every_row() -> None:
    replay = Replay(CONTRACT, 4 * FIRST_ROWS)
    for episode in range(30):
        fill(replay, episode, 49, EndReason.TIMEOUT)
    assert replay.size == 1500 > FIRST_ROWS
    assert len(replay.seq) < 4 * FIRST_ROWS
    assert replay.seq[: replay.size].tolist() == list(range(50)) * 30
    assert replay.frames[1499].min() == replay.frames[1499].max() == (7 * 29 + 49) % 256


def test_a_full_replay_says_which_setting_to_raise() -> None:
    replay = Replay(CONTRACT, 3)
    for seq in range(3):
        replay.append(make_step(1, seq))
    with pytest.raises(ReplayFull, match=r"learner\.replay_capacity"):
        replay.append(make_step(1, 3))


def test_steps_that_repeat_or_follow_an_end_or_carry_another_contract_are_refused() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 2, EndReason.SUCCESS)
    replay.append(make_step(2, 0))
    with pytest.raises(ValueError, match="has ended"):
        replay.append(make_step(1, 3))
    with pytest.raises(ValueError, match="does not follow"):
        replay.append(make_step(2, 0))
    other = dataclasses.replace(CONTRACT, rate_hz=20.0)
    with pytest.raises(ValueError, match="contract"):
        replay.append(make_step(3, 0, contract=other))
    broken = dataclasses.replace(make_step(2, 1), state=np.full(len(CONTRACT.state), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        replay.append(broken)
    assert replay.size == 4


def test_an_action_beyond_the_contract_is_stored_within_it() -> None:
    replay = Replay(CONTRACT, 64)
    step = dataclasses.replace(make_step(1, 0), executed=np.array([1.5, -2.0, 0.5, 1.0], np.float32))
    assert replay.executed[replay.append(step)].tolist() == [1.0, -1.0, 0.5, 1.0]


def test_a_demonstration_that_failed_is_data_but_nothing_to_imitate() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 4, EndReason.SUCCESS, Source.DEMONSTRATION)
    fill(replay, 2, 4, EndReason.FAILURE, Source.DEMONSTRATION)
    judge(replay, 1, [4])
    judge(replay, 2)
    assert set(replay.episode[replay.guided_rows()]) == {1}
    batch = replay.sample(256, np.random.default_rng(0))
    assert set(replay.episode[batch.rows[:128]]) == {1}
    assert set(replay.episode[batch.rows[128:]]) == {1, 2}
    assert not batch.guided[replay.episode[batch.rows] == 2].any()


def test_critics_judge_every_action_that_a_limit_makes_the_same_and_the_actor_imitates_the_executed_one() -> None:
    replay = Replay(CONTRACT, 100)
    proposed, executed = np.full(ACTIONS, -0.8, np.float32), np.zeros(ACTIONS, np.float32)
    for seq in range(4):
        step = make_step(1, seq, source=Source.TAKEOVER)
        replay.append(dataclasses.replace(step, proposed=proposed, executed=executed))
    replay.append(make_step(1, 4, end=EndReason.SUCCESS))
    judge(replay, 1)
    batch = replay.sample(64, np.random.default_rng(0))
    assert (batch.executed == 0.0).all()
    assert (batch.action <= 0.0).all() and (batch.action >= -0.8).all()
    assert np.ptp(batch.action, axis=1).max() < 1e-6  # one point of the line between them, not a mixture of axes
    assert batch.action.min() < -0.6 and batch.action.max() > -0.2


def test_a_proposal_that_is_no_action_is_refused() -> None:
    replay = Replay(CONTRACT, 100)
    with pytest.raises(ValueError, match="proposed action"):
        replay.append(dataclasses.replace(make_step(1, 0), proposed=np.full(ACTIONS, np.nan, np.float32)))


def three_ahead(replay: Replay, seed: int = 0) -> tuple[Batch, dict[int, int]]:
    """A batch over three steps, and where in it each row stands."""
    batch = replay.sample(400, np.random.default_rng(seed), n_step=3, discount=0.5)
    return batch, {int(row): i for i, row in enumerate(batch.rows)}


def test_three_steps_ahead_rewards_are_discounted_and_a_terminal_ends_the_way() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 6, EndReason.SUCCESS)
    judge(replay, 1, [6])
    batch, at = three_ahead(replay)
    got = [(float(batch.reward[at[r]]), float(batch.discount[at[r]]), int(batch.next_rows[at[r]])) for r in range(6)]
    assert got == [(0, 0.125, 3), (0, 0.125, 4), (0, 0.125, 5), (0.25, 0, 6), (0.5, 0, 6), (1, 0, 6)]


def test_three_steps_ahead_a_timeout_is_bootstrapped_from_its_last_frame() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 4, EndReason.TIMEOUT)
    judge(replay, 1)
    batch, at = three_ahead(replay)
    got = [(float(batch.discount[at[r]]), int(batch.next_rows[at[r]])) for r in range(4)]
    assert got == [(0.125, 3), (0.125, 4), (0.25, 4), (0.5, 4)]


def test_several_steps_never_lead_into_another_episode_or_across_a_gap() -> None:
    replay = Replay(CONTRACT, 64)
    for seq in (0, 1, 2, 4, 5):
        replay.append(make_step(1, seq))
        replay.append(make_step(2, seq))
    for episode in (1, 2):
        judge(replay, episode)
    batch, _ = three_ahead(replay)
    assert (replay.episode[batch.rows] == replay.episode[batch.next_rows]).all()
    steps = replay.seq[batch.next_rows] - replay.seq[batch.rows]
    assert np.allclose(batch.discount, 0.5**steps)
    assert not ((replay.seq[batch.rows] < 3) & (replay.seq[batch.next_rows] > 3)).any()


def test_several_steps_stop_where_no_outcome_is_known_yet() -> None:
    replay = Replay(CONTRACT, 64)
    for seq in range(3):
        replay.append(make_step(1, seq))
    judge(replay, 1)
    replay.append(make_step(1, 3))
    batch, _ = three_ahead(replay)
    assert batch.next_rows.max() == 2


def test_one_step_ahead_draws_the_same_as_before_whatever_the_discount() -> None:
    replay = Replay(CONTRACT, 64)
    fill(replay, 1, 6, EndReason.SUCCESS)
    judge(replay, 1, [6])
    one, two = (replay.sample(32, np.random.default_rng(0), 1, discount) for discount in (1.0, 0.5))
    assert np.array_equal(one.rows, two.rows) and np.array_equal(one.next_rows, replay.next_row[one.rows])
    assert np.allclose(two.discount, 0.5 * one.discount)


@pytest.mark.parametrize(
    ("action", "reason"),
    [(np.zeros(ACTIONS), Refusal.ZERO), (np.array([0.1, 0.0, 0.0, 2.0]), Refusal.OUT_OF_RANGE)],
)
def test_an_action_of_a_person_that_cannot_be_right_is_counted_and_not_learned_from(
    action: np.ndarray, reason: Refusal
) -> None:
    replay = Replay(CONTRACT, 64)
    given = action.astype(np.float32)
    for seq in range(4):
        step = make_step(1, seq, Source.TAKEOVER)
        replay.append(dataclasses.replace(step, proposed=given, executed=given) if seq == 2 else step)
    replay.append(make_step(1, 4, end=EndReason.SUCCESS))
    judge(replay, 1, [4])
    assert replay.refused == {reason: 1}
    assert replay.guided_rows().tolist() == [0, 1, 3]
    assert replay.frames[2].min() == 9  # the frame is still evidence of what the scene looked like


def test_a_policy_may_ask_for_nothing_and_a_limit_may_turn_a_persons_action_into_none() -> None:
    replay = Replay(CONTRACT, 64)
    nothing = np.zeros(ACTIONS, np.float32)
    replay.append(dataclasses.replace(make_step(1, 0), proposed=nothing, executed=nothing))
    replay.append(dataclasses.replace(make_step(1, 1, Source.TAKEOVER), executed=nothing))
    assert not replay.refused and replay.has_action[:2].all()


def test_a_persons_action_that_is_not_finite_is_refused_with_its_step_and_counted() -> None:
    replay = Replay(CONTRACT, 64)
    broken = np.full(ACTIONS, np.inf, np.float32)
    with pytest.raises(ValueError, match="executed action"):
        replay.append(dataclasses.replace(make_step(1, 0, Source.TAKEOVER), executed=broken))
    assert replay.refused == {Refusal.NOT_FINITE: 1} and replay.size == 0


def test_memory_is_that_of_each_frame_once() -> None:
    replay = Replay(CONTRACT, 4000)
    fill(replay, 1, 9, EndReason.TIMEOUT)
    report = replay.memory_report()
    frames = int(np.prod(CONTRACT.frames_shape))
    assert frames < replay.bytes_per_step < frames + 300
    assert (report.steps, report.bytes_used) == (10, 10 * replay.bytes_per_step)
    assert report.bytes_reserved == sum(getattr(replay, name).nbytes for name in ARRAYS)
    assert SOURCES[replay.source[0]] is Source.POLICY
