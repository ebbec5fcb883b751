"""What the control loop leaves to a person: after its own restart, without space, and without its operator."""

from __future__ import annotations

from control_world import PERIOD_NS, Bench, FakeModel

from steadyhand_models.messages import Channel, EndReason, EventKind, Mode
from steadyhand_runtime import control
from steadyhand_runtime.config import ControlSettings
from steadyhand_runtime.control import Control

FULL = {"disk": "spool: the disk is full"}


def restarted() -> Bench:
    bench = Bench()
    bench.control = Control(bench.task, ControlSettings(), bench.models, "run", first_episode=4, restarted=True)
    return bench


def with_policy() -> Bench:
    bench = Bench()
    bench.stage(FakeModel(Channel.POLICY, 1, 0.1))
    return bench


def test_a_restarted_loop_moves_nothing_before_a_person_resumes() -> None:
    bench = restarted()
    for _ in range(30):
        outputs = bench.tick(armed=True)
        assert bench.mode is Mode.FAULT and outputs.goal is None
    assert "press scene ready" in outputs.status.message
    bench.tick(EventKind.SCENE_READY)
    assert bench.mode is Mode.RESET


def test_a_restarted_loop_whose_arm_is_not_armed_waits_for_that_alone() -> None:
    bench = restarted()
    bench.tick(armed=False)
    assert bench.mode is Mode.IDLE
    bench.tick(armed=True)
    assert bench.mode is Mode.RESET


def test_a_restarted_loop_says_why_it_waits_also_after_it_was_blind() -> None:
    bench = restarted()
    assert bench.tick(inputs={"bus": None}).status.message == "no_bus"
    assert bench.tick().status.message == control.STARTED_AGAIN


def test_without_space_no_episode_begins_and_the_operator_is_told() -> None:
    bench = with_policy()
    bench.until(Mode.HOLD)
    for _ in range(40):
        outputs = bench.tick(EventKind.SCENE_READY, inputs=FULL)
        assert bench.mode is Mode.HOLD
    assert outputs.status.message == "no new episode: spool: the disk is full"
    outputs = bench.tick()
    assert bench.mode is Mode.POLICY


def test_an_episode_that_runs_is_not_cut_by_a_full_disk() -> None:
    bench = with_policy()
    bench.until(Mode.POLICY)
    for _ in range(10):
        outputs = bench.tick(inputs=FULL)
        assert bench.mode is Mode.POLICY and outputs.goal is not None
    assert bench.tick().status.message == "everything is recorded again"
    assert [s.seq for s in bench.steps] == list(range(len(bench.steps)))


def test_a_takeover_without_its_operator_ends_as_a_fault_that_waits_for_a_person() -> None:
    bench = with_policy()
    bench.until(Mode.POLICY)
    drive = [0.3, 0.0, 0.0, 0.0]
    bench.tick(EventKind.TAKEOVER_BEGIN, drive=drive)
    gone_ns = bench.now_ns
    ticks = 0
    while bench.mode is Mode.TAKEOVER:
        bench.tick(inputs={"heartbeat_ns": gone_ns})
        ticks += 1
        assert ticks < 100
    assert ticks * PERIOD_NS / 1e9 > control.OPERATOR_LIMIT_S
    assert bench.mode is Mode.FAULT and bench.steps[-1].end is EndReason.FAULT
    for _ in range(20):
        assert bench.tick(inputs={"heartbeat_ns": gone_ns}).goal is None
    assert bench.mode is Mode.FAULT
    bench.tick(EventKind.SCENE_READY)
    assert bench.mode is Mode.RESET
