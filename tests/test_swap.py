"""Hot swap: staging off the control thread, boundaries, rollback within the tick, quarantine."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx_models
import pytest
from control_world import FakeModel

from steadyhand_models.artifact import Artifact
from steadyhand_models.messages import Channel, Swap, SwapOutcome
from steadyhand_models.registry import Registry
from steadyhand_runtime.swap import Models, Pace, Quarantine, Staged, Standby

CONTRACT = onnx_models.lift().contract()
FRAMES = np.zeros(CONTRACT.frames_shape, np.uint8)
STATE, NO_NOISE = np.full(18, onnx_models.POISON, np.float32), np.zeros(4, np.float32)


class Desk:
    """A registry with a standby and the models that control sees; `turn` is the start of a control tick."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(folder)
        self.quarantine = Quarantine(folder / "quarantine.txt")
        self.missed = 0
        self.standby = Standby(self.registry, CONTRACT, self.quarantine, missed=lambda: self.missed)
        self.models = Models(self.standby, self.quarantine)
        self.tick = 0

    def publish(self, *artifacts: Artifact) -> None:
        for one in artifacts:
            self.registry.publish(one)

    def turn(self, policy_free: bool = True, episode_free: bool = True, lateness_s: float = 0.0) -> list[Swap]:
        self.tick += 1
        pace = Pace(missed=self.missed, lateness_s=lateness_s)
        self.models.turn(self.tick, self.tick * 100, pace, policy_free, episode_free)
        return self.models.records()

    def act(self) -> np.ndarray | None:
        return self.models.act(FRAMES, STATE, NO_NOISE)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_without_a_model_there_is_no_action_and_no_probability(desk: Desk) -> None:
    assert desk.turn() == []
    assert desk.act() is None and desk.models.judge(FRAMES) is None
    assert desk.models.policy.version == 0


def test_the_newest_version_is_staged_and_used_from_the_next_tick_on(desk: Desk) -> None:
    desk.publish(onnx_models.policy(CONTRACT, 1, bias=0.1), onnx_models.policy(CONTRACT, 2, bias=0.2))
    desk.standby.look()
    desk.turn()
    action = desk.act()
    assert action is not None
    np.testing.assert_allclose(action, np.tanh([0.2] * 4), atol=1e-6)


def test_a_swap_s_record_waits_for_its_first_tick_and_tells_what_that_cost(desk: Desk) -> None:
    desk.publish(onnx_models.policy(CONTRACT, 1))
    desk.missed = 3
    desk.standby.look()
    desk.missed = 4
    assert desk.turn(lateness_s=0.002) == []
    desk.missed = 5
    (swap,) = desk.turn(lateness_s=0.5)
    assert (swap.outcome, swap.version, swap.previous, swap.tick) == (SwapOutcome.SWAPPED, 1, 0, 1)
    assert swap.missed_ticks == 2
    assert swap.lateness_s == 0.002
    assert swap.build_s > 0


def test_a_policy_waits_for_the_end_of_a_takeover_and_a_classifier_for_the_end_of_the_episode(desk: Desk) -> None:
    desk.publish(onnx_models.policy(CONTRACT, 1), onnx_models.classifier(CONTRACT, 1))
    desk.standby.look()
    desk.turn(policy_free=False, episode_free=False)
    assert (desk.models.policy.version, desk.models.classifier.version) == (0, 0)
    desk.turn(policy_free=True, episode_free=False)
    assert (desk.models.policy.version, desk.models.classifier.version) == (1, 0)
    desk.turn(policy_free=False, episode_free=True)
    assert desk.models.classifier.version == 1


def test_a_policy_that_fails_is_rolled_back_within_the_same_call(desk: Desk) -> None:
    desk.publish(onnx_models.policy(CONTRACT, 1, bias=0.1))
    desk.standby.look()
    desk.turn()
    desk.publish(onnx_models.policy(CONTRACT, 2, poison=True))
    desk.standby.look()
    desk.turn()
    desk.turn()
    assert desk.models.policy.version == 2
    action = desk.act()
    assert action is not None
    np.testing.assert_allclose(action, np.tanh([0.1] * 4), atol=1e-6)
    (swap,) = desk.models.records()
    assert (swap.outcome, swap.version, swap.previous) == (SwapOutcome.ROLLED_BACK, 2, 1)
    assert "not finite" in swap.reason and swap.tick == desk.tick


def test_what_failed_stays_in_quarantine_across_a_restart_and_the_version_before_takes_its_place(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    desk.publish(onnx_models.policy(CONTRACT, 1, bias=0.1), onnx_models.policy(CONTRACT, 2, poison=True))
    desk.standby.look()
    desk.turn()
    assert desk.act() is None
    desk.standby.look()
    again = Desk(tmp_path)
    again.standby.look()
    records = again.turn()
    assert [(r.outcome, r.version) for r in records] == [(SwapOutcome.REFUSED, 2)]
    assert "quarantine" in records[0].reason
    assert again.models.policy.version == 1


def test_a_first_policy_that_fails_leaves_none_instead_of_a_bad_action(desk: Desk) -> None:
    desk.publish(onnx_models.policy(CONTRACT, 1, poison=True))
    desk.standby.look()
    desk.turn()
    assert desk.act() is None
    assert desk.models.policy.current is None


def test_a_damaged_or_foreign_or_wrong_artifact_is_refused_and_the_current_one_stays(
    desk: Desk, tmp_path: Path
) -> None:
    desk.publish(onnx_models.policy(CONTRACT, 1))
    desk.standby.look()
    desk.turn()
    desk.turn()
    desk.publish(onnx_models.policy(CONTRACT, 2))
    model = tmp_path / "policy" / "v000002" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    desk.publish(onnx_models.policy(CONTRACT, 3, golden_off=1.0), onnx_models.policy(CONTRACT, 4, bias=float("nan")))
    desk.standby.look()
    records = desk.turn()
    assert [(r.outcome, r.version) for r in records] == [(SwapOutcome.REFUSED, v) for v in (4, 3, 2)]
    assert "sha256" in records[2].reason and "golden" in records[1].reason
    assert desk.models.policy.version == 1
    desk.standby.look()
    assert desk.turn() == []


def test_a_model_too_slow_for_the_loop_is_refused(tmp_path: Path) -> None:
    class Slow(FakeModel):
        def warm(self, runs: int) -> float:
            return 0.2

    registry = Registry(tmp_path)
    registry.publish(onnx_models.policy(CONTRACT, 1))
    quarantine = Quarantine()
    standby = Standby(registry, CONTRACT, quarantine, build=lambda a, c: Slow(Channel.POLICY, 1, 0.0))
    standby.look()
    (refusal,) = standby.refusals()
    assert "200 ms" in refusal.reason and standby.take(Channel.POLICY) is None


def test_a_newer_version_replaces_one_that_still_waits(desk: Desk) -> None:
    for version in (1, 2):
        desk.publish(onnx_models.policy(CONTRACT, version))
        desk.standby.look()
    desk.turn()
    assert desk.models.policy.version == 2
    assert desk.standby.take(Channel.POLICY) is None


def test_the_thread_stages_what_is_published_while_control_goes_on(tmp_path: Path) -> None:
    registry, quarantine, built = Registry(tmp_path), Quarantine(), threading.Event()

    def build(artifact: Artifact, contract: object) -> FakeModel:
        built.set()
        return FakeModel(Channel.POLICY, artifact.manifest.version, 0.0)

    standby = Standby(registry, CONTRACT, quarantine, build=build)
    standby.start()
    try:
        registry.publish(onnx_models.policy(CONTRACT, 1))
        assert built.wait(10)
    finally:
        standby.stop()
    staged = standby.take(Channel.POLICY)
    assert isinstance(staged, Staged) and staged.model.version == 1


def test_a_classifier_that_fails_in_an_episode_is_rolled_back_at_once(desk: Desk) -> None:
    bad = FakeModel(Channel.CLASSIFIER, 2, float("nan"))
    desk.models.classifier.put(FakeModel(Channel.CLASSIFIER, 1, 0.4), 0)
    desk.models.classifier.put(bad, 0)
    probability = desk.models.judge(FRAMES)
    assert probability is not None and np.allclose(probability, 0.4)
    assert bad.manifest.sha256 in desk.quarantine
