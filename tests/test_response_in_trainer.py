"""A promotion that changes rewards holds actor and policies in the trainer, and lets both go again."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_trainer import DEMONSTRATIONS, LOCKSTEP, Bench, versions
from training_steps import driven

from steadyhand_models.messages import Channel, Source
from steadyhand_models.reward import RewardForm, RewardSettings
from steadyhand_training.response import Response, ResponseSettings

HELD = 20
SETTINGS = dataclasses.replace(
    LOCKSTEP,
    learner=dataclasses.replace(
        LOCKSTEP.learner, response=ResponseSettings(least_updates=HELD, most_updates=HELD, recovered=1.0)
    ),
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Bench(tmp_path, SETTINGS)
    made.feed([*DEMONSTRATIONS, *driven(10, Source.POLICY, count=9)])
    yield made
    made.close()
    torch.set_num_threads(threads)


def promote(bench: Bench, flipped: int, actions: int = 1000) -> None:
    last = bench.trainer.correction.last_promotion
    assert last is not None
    bench.trainer._promoted(dataclasses.replace(last, flipped=flipped, actions=actions))


def actor(bench: Bench) -> list[torch.Tensor]:
    return [value for name, value in bench.weights().items() if name.startswith(("learned.actor", "average"))]


def test_policies_and_actor_wait_for_the_critics_and_then_go_on(bench: Bench) -> None:
    promote(bench, flipped=10)
    assert bench.trainer.learner.response.response is Response.HOLD
    before, sent = actor(bench), versions(bench, Channel.POLICY)
    bench.feed(driven(11, Source.POLICY, count=9))
    assert bench.trainer.learner.response.holds
    assert all(torch.equal(one, two) for one, two in zip(before, actor(bench)))
    assert versions(bench, Channel.POLICY) == sent
    bench.feed([*driven(12, Source.POLICY, count=14), *driven(13, Source.POLICY, count=9)])
    assert not bench.trainer.learner.response.holds
    assert not all(torch.equal(one, two) for one, two in zip(before, actor(bench)))
    assert len(versions(bench, Channel.POLICY)) > len(sent)


def test_a_promotion_that_changes_no_reward_holds_nothing(bench: Bench) -> None:
    promote(bench, flipped=0)
    sent = versions(bench, Channel.POLICY)
    bench.feed(driven(11, Source.POLICY, count=9))
    assert len(versions(bench, Channel.POLICY)) > len(sent)


def test_a_restart_in_the_middle_of_a_hold_goes_on_holding_for_as_long(bench: Bench) -> None:
    promote(bench, flipped=10)
    bench.feed(driven(11, Source.POLICY, count=9))
    bench.trainer._save()
    held = bench.trainer.learner.response.state
    bench.restart()
    assert bench.trainer.learner.response.state == held and held.held > 0


@pytest.mark.parametrize(
    ("paid", "bound"),
    [
        (RewardSettings(success_reward=2.0), 2.0),
        (RewardSettings(form=RewardForm.POTENTIAL), 1.0),
        (RewardSettings(form=RewardForm.PROBABILITY, terminate_on_success=False), 25.0),
    ],
    ids=lambda value: value.form.value if isinstance(value, RewardSettings) else "",
)
def test_every_form_of_reward_is_learned_from_within_its_bounds(
    paid: RewardSettings, bound: float, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, dataclasses.replace(SETTINGS, reward=paid, utd_ratio=4.0))
    try:
        bench.feed([*DEMONSTRATIONS, *driven(10, Source.POLICY, count=14), *driven(11, Source.POLICY, count=14)])
        assert bench.trainer._view().q_bound == pytest.approx(bound)
        assert bench.trainer.learner.restores == 0
        assert abs(bench.trainer.learner.metrics["target"]) <= bound
        rewards = bench.trainer.learner.replay.reward
        assert rewards.any() and abs(rewards).max() <= 2.0 * paid.success_reward
    finally:
        bench.close()
