"""Hot swap: staging off the control thread, boundaries, rollback within the tick, quarantine."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
from control_world import FakeModel

from steadyhand_models import durable, faulty, models_command, signing
from steadyhand_models.artifact import Artifact
from steadyhand_models.contract import Contract
from steadyhand_models.faulty import Fault
from steadyhand_models.messages import Channel, Swap, SwapOutcome
from steadyhand_models.registry import Registry
from steadyhand_models.standing import Pins, Standing, Standings
from steadyhand_runtime import inference
from steadyhand_runtime.cutoff import Cutoff
from steadyhand_runtime.model_host import MAX_TRIES
from steadyhand_runtime.standby import Rules
from steadyhand_runtime.swap import Loaded, Models, Pace, Quarantine, Staged, Standby

CONTRACT = onnx_models.lift().contract()
FRAMES = np.zeros(CONTRACT.frames_shape, np.uint8)
STATE, NO_NOISE = np.full(18, onnx_models.POISON, np.float32), np.zeros(4, np.float32)


class Desk:
    """A registry with a standby and the models that control sees; `turn` is the start of a control tick."""

    def __init__(self, folder: Path, **standby: Any) -> None:
        self.registry = Registry(folder)
        self.quarantine = Quarantine(folder / "quarantine.txt")
        self.missed = 0
        self.standby = Standby(self.registry, CONTRACT, self.quarantine, missed=lambda: self.missed, **standby)
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


# -- what a restart, a person and a bad model do -----------------------------------------------------------------------


def in_use(desk: Desk, *artifacts: Artifact) -> None:
    """Publish one after the other, each swapped in and used."""
    for one in artifacts:
        desk.publish(one)
        desk.standby.look()
        desk.turn()
        desk.act()


def standing(folder: Path) -> Standing:
    return Standings(folder).read()[Channel.POLICY]


def prove(desk: Desk) -> None:
    """Use the policy until its probation is over."""
    for _ in range(desk.standby.rules.probation_calls):
        desk.act()


def test_what_was_current_is_the_first_after_a_restart_and_what_came_since_is_tried_beside_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    in_use(desk, onnx_models.policy(CONTRACT, 1), onnx_models.policy(CONTRACT, 2))
    prove(desk)
    desk.standby.stop()
    desk.publish(onnx_models.policy(CONTRACT, 3))
    assert standing(tmp_path).version == 2
    again = Desk(tmp_path)
    again.standby.look()
    again.turn()
    assert again.models.policy.version == 2
    again.standby.look()
    again.turn()
    assert again.models.policy.version == 3


def test_a_damaged_record_of_what_was_current_does_not_stop_the_robot(tmp_path: Path) -> None:
    in_use(desk := Desk(tmp_path), onnx_models.policy(CONTRACT, 1))
    desk.standby.stop()
    (tmp_path / "standing.json").write_text('{"policy": {"ver')
    (tmp_path / "pins.json").write_text("nonsense")
    again = Desk(tmp_path)
    again.standby.look()
    again.turn()
    assert again.models.policy.version == 1


def test_an_artifact_that_ends_the_process_again_and_again_is_quarantined(tmp_path: Path) -> None:
    in_use(first := Desk(tmp_path), onnx_models.policy(CONTRACT, 1))
    prove(first)
    first.standby.stop()
    Registry(tmp_path).publish(onnx_models.policy(CONTRACT, 2))
    tried = []

    def build(artifact: Artifact, contract: Contract) -> Loaded:
        if artifact.manifest.version == 2:
            tried.append(2)
            raise KeyboardInterrupt  # nothing of ours catches this: it stands for a crash
        return inference.load(artifact, contract)

    for _ in range(MAX_TRIES):
        dying = Desk(tmp_path, build=build, rules=Rules(max_tries=MAX_TRIES))
        dying.standby.look()
        with pytest.raises(KeyboardInterrupt):
            dying.standby.look()
    last = Desk(tmp_path, build=build, rules=Rules(max_tries=MAX_TRIES))
    last.standby.look()
    last.standby.look()
    (refused,) = last.turn()
    assert tried == [2] * MAX_TRIES
    assert refused.outcome is SwapOutcome.REFUSED and "ended 3 times" in refused.reason
    assert last.models.policy.version == 1


def test_a_process_that_ends_in_order_on_probation_is_no_mark_against_the_model(tmp_path: Path) -> None:
    for _ in range(MAX_TRIES + 2):
        desk = Desk(tmp_path, rules=Rules(max_tries=MAX_TRIES))
        if not desk.registry.versions(Channel.POLICY):
            desk.publish(onnx_models.policy(CONTRACT, 1))
        desk.standby.look()
        desk.turn()
        desk.act()
        assert desk.models.policy.version == 1
        desk.standby.stop()
        assert standing(tmp_path).tries == 0


def test_a_pinned_version_replaces_the_newest_and_stays_whatever_arrives_until_it_is_unpinned(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    in_use(desk, *(onnx_models.policy(CONTRACT, v) for v in (1, 2)))
    Pins(tmp_path).put(Channel.POLICY, 1)
    in_use(desk, onnx_models.policy(CONTRACT, 3))
    assert desk.models.policy.version == 1
    again = Desk(tmp_path)
    again.standby.look()
    again.turn()
    assert again.models.policy.version == 1
    Pins(tmp_path).put(Channel.POLICY, None)
    again.standby.look()
    again.turn()
    assert again.models.policy.version == 3


def test_a_pin_that_cannot_be_followed_is_refused_once_and_something_usable_drives(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.publish(onnx_models.policy(CONTRACT, 1))
    Pins(tmp_path).put(Channel.POLICY, 9)
    for _ in range(3):
        desk.standby.look()
    (refused,) = desk.turn()
    assert (refused.outcome, refused.version) == (SwapOutcome.REFUSED, 9)
    assert desk.models.policy.version == 1


def test_a_person_s_rollback_takes_the_version_before_and_names_the_one_that_failed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    in_use(desk, onnx_models.policy(CONTRACT, 1), onnx_models.policy(CONTRACT, 2))
    desk.standby.look()
    assert models_command.roll_back(desk.registry, Channel.POLICY) == (2, 1)
    desk.standby.look()
    desk.turn()
    (swap,) = desk.turn()
    assert (swap.outcome, swap.version, swap.previous) == (SwapOutcome.ROLLED_BACK, 2, 1)
    assert "by hand" in swap.reason and "v2 was rolled back by hand; v1 is in force" in desk.models.alert
    desk.standby.look()
    assert desk.turn() == [] and desk.models.policy.version == 1
    assert desk.models.policy.previous is None  # and not the one that is in quarantine
    in_use(desk, onnx_models.policy(CONTRACT, 3))
    assert desk.models.policy.version == 3


@pytest.mark.parametrize("fault", [Fault.NAN, Fault.ERROR])
def test_a_model_that_breaks_once_it_is_used_is_rolled_back_within_its_call(tmp_path: Path, fault: Fault) -> None:
    desk = Desk(tmp_path)
    good = onnx_models.policy(CONTRACT, 1, bias=0.1)
    in_use(desk, good, faulty.make(good, fault, 2))
    assert desk.models.policy.version == 2
    action = desk.models.act(FRAMES, np.full(18, 1e7, np.float32), NO_NOISE)
    assert action is not None and np.isfinite(action).all()
    np.testing.assert_allclose(action, np.tanh([0.1] * 4), atol=1e-6)
    assert desk.models.policy.version == 1 and "policy v2 was rolled back" in desk.models.alert
    assert standing_after(desk, tmp_path) == Standing(1, good.manifest.sha256, 0)


def test_after_a_restart_the_version_before_is_built_when_the_only_one_that_is_hot_fails(tmp_path: Path) -> None:
    first = Desk(tmp_path)
    good = onnx_models.policy(CONTRACT, 1)
    in_use(first, good, faulty.make(good, Fault.NAN, 2))
    prove(first)
    first.standby.stop()
    desk = Desk(tmp_path)
    desk.standby.look()
    desk.turn()
    assert desk.models.policy.version == 2
    assert desk.models.act(FRAMES, np.full(18, 1e7, np.float32), NO_NOISE) is None
    desk.standby.look()
    desk.turn()
    assert desk.models.policy.version == 1


def test_a_rollback_that_cannot_be_built_is_tried_once_and_the_next_older_one_is_used(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    in_use(desk, *(onnx_models.policy(CONTRACT, v) for v in (1, 2, 3)))
    desk.standby.look()
    damaged = tmp_path / "policy" / "v000002" / "model.onnx"
    damaged.write_bytes(b"")
    models_command.roll_back(desk.registry, Channel.POLICY)
    desk.turn()
    for _ in range(3):
        desk.standby.look()
    records = desk.turn() + desk.turn()
    outcomes = [(r.outcome, r.version, r.previous) for r in records]
    # 2 was on probation when 3 came, so that 1 is what was before it.
    assert outcomes == [(SwapOutcome.ROLLED_BACK, 3, 1)]
    damaged.with_name("manifest.json").write_text("nonsense")
    (tmp_path / "policy" / "v000001" / "model.onnx").write_bytes(b"")
    in_use(desk, onnx_models.policy(CONTRACT, 4))
    desk.standby.look()
    quarantine = Quarantine(tmp_path / "quarantine.txt")
    quarantine.add(desk.registry.manifest(Channel.POLICY, 4).sha256)
    quarantine.save()
    desk.turn()
    for _ in range(3):
        desk.standby.look()
    records = desk.turn()
    assert [(r.outcome, r.version) for r in records] == [(SwapOutcome.REFUSED, 1)]
    assert desk.models.policy.version == 4
    in_use(desk, onnx_models.policy(CONTRACT, 5))
    assert desk.models.policy.version == 5


def standing_after(desk: Desk, folder: Path) -> Standing:
    desk.standby.look()
    return standing(folder)


def test_a_call_that_does_not_end_is_cut_off_and_the_version_before_answers(tmp_path: Path) -> None:
    cutoff = Cutoff(period_s=0.02)
    cutoff.start()
    try:
        desk = Desk(tmp_path, build=lambda a, c: inference.load(a, c, cutoff=cutoff))
        good = onnx_models.policy(CONTRACT, 1, bias=0.1)
        in_use(desk, good, faulty.make(good, Fault.SLOW, 2, iterations=2_000_000_000))
        assert desk.models.policy.version == 2
        action = desk.models.act(FRAMES, np.full(18, 1e7, np.float32), NO_NOISE)
    finally:
        cutoff.stop()
    assert action is not None and desk.models.policy.version == 1
    assert "cut off" in desk.models.records()[-1].reason


def slow(model: FakeModel, call_s: float) -> FakeModel:
    model.last_s = call_s
    return model


def test_a_model_that_becomes_slow_on_probation_goes_after_two_calls(desk: Desk) -> None:
    bad = FakeModel(Channel.POLICY, 2, 0.2)
    in_use(desk, onnx_models.policy(CONTRACT, 1))
    desk.standby._staged[Channel.POLICY] = Staged(bad, 0.0, 0)
    desk.turn()
    desk.act()
    slow(bad, 0.08)
    desk.act()
    assert desk.models.policy.version == 2
    assert bad.limit_s == desk.standby.budget_s < desk.standby.limit_s
    assert desk.act() is not None
    assert desk.models.policy.version == 1 and bad.manifest.sha256 in desk.quarantine


def test_slowness_after_probation_or_with_nothing_to_go_back_to_changes_nothing(desk: Desk) -> None:
    only = FakeModel(Channel.POLICY, 1, 0.2)
    for model in (only, FakeModel(Channel.POLICY, 2, 0.2)):
        desk.standby._staged[Channel.POLICY] = Staged(model, 0.0, 0)
        desk.turn()
        slow(model, 0.08 if model is only else 0.001)
        prove(desk)
        slow(model, 0.08)
        prove(desk)
        assert desk.models.policy.version == model.version


def test_what_is_still_on_probation_is_not_what_the_next_one_falls_back_to(desk: Desk) -> None:
    in_use(desk, onnx_models.policy(CONTRACT, 1))
    prove(desk)
    in_use(desk, onnx_models.policy(CONTRACT, 2))
    desk.standby._staged[Channel.POLICY] = Staged(FakeModel(Channel.POLICY, 3, float("nan")), 0.0, 0)
    desk.turn()
    assert desk.act() is not None
    assert desk.models.policy.version == 1


def test_any_exception_of_a_model_is_a_rollback(desk: Desk) -> None:
    class Odd(FakeModel):
        def run(self, *_: object) -> np.ndarray:
            raise IndexError("out of range")

    in_use(desk, onnx_models.policy(CONTRACT, 1))
    desk.standby._staged[Channel.POLICY] = Staged(Odd(Channel.POLICY, 2, 0.2), 0.0, 0)
    desk.turn()
    assert desk.act() is not None
    assert desk.models.records()[-1].reason == "IndexError: out of range"


def test_a_policy_that_asks_for_an_episode_s_end_gets_it(desk: Desk) -> None:
    made = onnx_models.policy(CONTRACT, 1)
    desk.publish(replace(made, manifest=replace(made.manifest, boundary="episode")))
    desk.standby.look()
    desk.turn(episode_free=False)
    assert desk.models.policy.version == 0
    desk.turn(episode_free=True)
    assert desk.models.policy.version == 1


def test_an_absurd_candidate_is_refused_after_the_shadow_run_and_the_champion_stays(desk: Desk) -> None:
    in_use(desk, onnx_models.policy(CONTRACT, 1, bias=2.0))
    prove(desk)
    desk.publish(onnx_models.policy(CONTRACT, 2, bias=-2.0))
    desk.standby.look()
    refused = desk.turn()[-1]
    assert refused.outcome is SwapOutcome.REFUSED and "shadow run" in refused.reason
    assert desk.models.policy.version == 1


def test_with_trusted_keys_only_what_they_signed_is_used(tmp_path: Path) -> None:
    mine, other = bytes(32), bytes([1] * 32)
    desk = Desk(tmp_path, rules=Rules(trusted_keys=(signing.public_of(mine),)))
    desk.publish(signing.sign(onnx_models.policy(CONTRACT, 1), mine))
    desk.publish(onnx_models.policy(CONTRACT, 2), signing.sign(onnx_models.policy(CONTRACT, 3), other))
    desk.standby.look()
    records = desk.turn()
    assert [(r.outcome, r.version) for r in records] == [(SwapOutcome.REFUSED, 3), (SwapOutcome.REFUSED, 2)]
    assert desk.models.policy.version == 1


def test_a_disk_that_refuses_does_not_keep_a_model_from_being_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    desk.publish(onnx_models.policy(CONTRACT, 1))
    monkeypatch.setattr(durable, "replace", full)
    desk.standby.look()
    desk.turn()
    assert desk.models.policy.version == 1


def test_a_build_waits_for_the_pause_after_a_tick(tmp_path: Path) -> None:
    registry, quarantine, built = Registry(tmp_path), Quarantine(), threading.Event()
    paused: list[bool] = []

    class Watched(Standby):
        def slack(self) -> None:
            paused.append(True)
            super().slack()

    def build(artifact: Artifact, contract: object) -> FakeModel:
        paused.append(False)
        built.set()
        return FakeModel(Channel.POLICY, artifact.manifest.version, 0.0)

    standby = Watched(registry, CONTRACT, quarantine, build=build)
    standby.start()
    try:
        registry.publish(onnx_models.policy(CONTRACT, 1))
        while not built.wait(0.02):
            standby.slack()
    finally:
        standby.stop()
    assert paused.index(False) > 0 and standby.build_hold_s is not None


def test_a_classifier_that_calls_everything_a_success_is_refused_and_the_present_one_stays(desk: Desk) -> None:
    desk.publish(onnx_models.classifier(CONTRACT, 1))
    desk.standby.look()
    desk.turn()
    for value in range(50):
        desk.models.judge(np.full(CONTRACT.frames_shape, value % 5, np.uint8))
    flood = onnx_models.classifier(CONTRACT, 2, offset=0.95)
    desk.publish(flood)
    desk.standby.look()
    refused = desk.turn()[-1]
    assert refused.outcome is SwapOutcome.REFUSED and "success on all 10 frames" in refused.reason
    assert desk.models.classifier.version == 1


def test_a_swap_says_when_its_model_was_found_and_when_it_was_ready(desk: Desk) -> None:
    before_ns = time.monotonic_ns()
    desk.publish(onnx_models.classifier(CONTRACT, 1))
    desk.standby.look()
    desk.turn()
    (swap,) = desk.turn()
    assert before_ns < swap.found_ns < swap.staged_ns < time.monotonic_ns()
