"""A policy is published when it is due, not before, and its version rises across restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_steps import CONTRACT

from steadyhand_models import artifact, signing
from steadyhand_models.artifact import Artifact, ArtifactError, Golden, Manifest
from steadyhand_models.messages import Channel, Swap, SwapOutcome
from steadyhand_models.registry import Registry
from steadyhand_training.publish import Publisher, PublishSettings, Schedule


def made(version: int, channel: Channel = Channel.POLICY, size: int = 1000) -> Artifact:
    rng = np.random.default_rng(version)
    golden = Golden(
        frames=np.zeros((4, *CONTRACT.frames_shape), np.uint8),
        state=np.zeros((4, len(CONTRACT.state)), np.float32),
        noise=np.zeros((4, len(CONTRACT.action)), np.float32),
        output=np.zeros((4, len(CONTRACT.action)), np.float32),
    )
    model = rng.bytes(size)
    manifest = Manifest(
        channel, version, version - 1, CONTRACT.hash, artifact.digest(model, golden), 10 * version, 0.0, "tick", 1e-4
    )
    return Artifact(manifest, model, golden)


def swap(version: int, outcome: SwapOutcome = SwapOutcome.SWAPPED, channel: Channel = Channel.POLICY) -> Swap:
    return Swap(channel, version, version - 1, outcome, "", 1, 1, 0.01, 0, 0.0)


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(PublishSettings(policy_every_s=20.0, least_updates=100, in_flight_s=30.0))


def test_the_first_policy_waits_only_for_its_updates(schedule: Schedule) -> None:
    assert not schedule.due(0.0, 99)
    assert schedule.due(0.0, 100)


def test_the_next_one_waits_for_interval_updates_and_answer(schedule: Schedule) -> None:
    schedule.sent(1, 0.0, 100)
    assert not schedule.due(20.0, 200)  # not answered yet
    schedule.answered(swap(1))
    assert not schedule.due(19.9, 200)
    assert not schedule.due(20.0, 199)
    assert schedule.due(20.0, 200)


@pytest.mark.parametrize("outcome", list(SwapOutcome))
def test_any_answer_about_the_policy_in_flight_lets_the_next_follow(schedule: Schedule, outcome: SwapOutcome) -> None:
    schedule.sent(4, 0.0, 0)
    schedule.answered(swap(3, outcome))
    schedule.answered(swap(9, outcome, Channel.CLASSIFIER))
    assert not schedule.due(25.0, 500)
    schedule.answered(swap(4, outcome))
    assert schedule.due(25.0, 500)


def test_a_robot_that_never_answers_does_not_hold_back_for_ever(schedule: Schedule) -> None:
    schedule.sent(1, 0.0, 0)
    assert not schedule.due(29.9, 500)
    assert schedule.due(30.0, 500)


def test_a_policy_without_new_updates_is_never_due() -> None:
    schedule = Schedule(PublishSettings(policy_every_s=1.0, least_updates=0))
    schedule.sent(1, 0.0, 50)
    schedule.answered(swap(1))
    assert not schedule.due(100.0, 50)
    assert schedule.due(100.0, 51)


def test_a_policy_waits_for_critics_that_catch_up_but_not_for_ever(schedule: Schedule) -> None:
    limit_s = schedule.settings.most_held_s
    assert not schedule.waits(100.0, held=False)
    assert schedule.waits(101.0, held=True)
    assert schedule.waits(100.9 + limit_s, held=True)
    assert not schedule.waits(101.0 + limit_s, held=True)


def test_the_next_hold_may_last_as_long_as_the_first(schedule: Schedule) -> None:
    limit_s = schedule.settings.most_held_s
    schedule.waits(100.0, held=True)
    schedule.waits(101.0, held=False)
    assert schedule.waits(100.0 + limit_s, held=True)


def test_publishing_makes_it_durable_before_it_is_announced(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    seen: list[tuple[Channel, int, bool]] = []
    publisher = Publisher(registry, lambda c, v: seen.append((c, v, registry.newest(c) == v)))
    publisher.publish(made(1))
    publisher.publish(made(1, Channel.CLASSIFIER))
    assert seen == [(Channel.POLICY, 1, True), (Channel.CLASSIFIER, 1, True)]


def test_versions_go_on_after_a_restart_and_never_repeat(tmp_path: Path) -> None:
    Publisher(Registry(tmp_path), lambda c, v: None).publish(made(7))
    publisher = Publisher(Registry(tmp_path), lambda c, v: None)
    assert publisher.newest(Channel.POLICY) == 7
    assert publisher.newest(Channel.CLASSIFIER) == 0
    with pytest.raises(ArtifactError, match="not newer"):
        publisher.publish(made(7))


def test_with_a_key_everything_goes_out_signed_and_without_one_nothing_does(tmp_path):
    private = signing.new_private()
    registry = Registry(tmp_path / "signed")
    Publisher(registry, lambda c, v: None, private).publish(made(1))
    signing.check(registry.load(Channel.POLICY, 1), [signing.public_of(private)])
    registry = Registry(tmp_path / "plain")
    Publisher(registry, lambda c, v: None).publish(made(1))
    with pytest.raises(ArtifactError):
        signing.check(registry.load(Channel.POLICY, 1), [signing.public_of(private)])
