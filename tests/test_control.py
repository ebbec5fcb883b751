"""The control tick: episodes, steps, operator, classifier, faults; on an arm that obeys at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from control_world import PERIOD_NS, Bench, FakeModel

from steadyhand_models import reward, wire
from steadyhand_models.messages import (
    Channel,
    Drive,
    EndReason,
    EventKind,
    LabelKind,
    Mode,
    Source,
    Step,
    SwapOutcome,
)
from steadyhand_runtime.config import ControlSettings, RewardSource
from steadyhand_runtime.episode import EndedBy, Ending, Signals, ending
from steadyhand_runtime.kinematics import solve, tip_pose
from steadyhand_runtime.reset import ResetMotion

UP = (0.0, 0.0, 0.5, -1.0)
E = EventKind


def bench_with_policy(settings: ControlSettings | None = None, action: float = 0.1) -> Bench:
    bench = Bench(settings)
    bench.stage(FakeModel(Channel.POLICY, 3, action))
    bench.until(Mode.POLICY)
    return bench


def bench_with_classifier(settings: ControlSettings | None = None, k: int = 2) -> Bench:
    """The classifier says the light: over 0.5 of full brightness for k frames is a success."""
    bench = Bench(settings)
    model = FakeModel(Channel.CLASSIFIER, 5, 0.0, threshold=0.5, debounce_frames=k)
    model.run = lambda frames, *_: np.full(3, frames.mean() / 255, np.float32)  # type: ignore[method-assign]
    bench.stage(model)
    bench.stage(FakeModel(Channel.POLICY, 3, 0.1))
    bench.until(Mode.POLICY)
    return bench


def demonstrating(settings: ControlSettings | None = None) -> Bench:
    bench = Bench(settings)
    bench.until(Mode.HOLD)
    bench.tick(E.TAKEOVER_BEGIN, drive=UP)
    return bench


def check_episode(steps: list[Step]) -> None:
    """N actions have N + 1 observations; only the last step ends, and it has no action."""
    assert [s.seq for s in steps] == list(range(len(steps)))
    assert len({s.episode for s in steps}) == 1
    assert all(s.executed is not None and s.end is None for s in steps[:-1])
    assert steps[-1].executed is None and steps[-1].proposed is None and steps[-1].end is not None
    assert steps[-1].source is Source.NONE
    for step in steps:
        wire.decode(wire.encode(step), Step)


# -- modes and episodes ------------------------------------------------------------------------------------------------


def test_an_armed_robot_without_a_policy_resets_and_then_waits_for_a_person() -> None:
    bench = Bench()
    assert bench.tick(armed=False).goal is None and bench.mode is Mode.IDLE
    bench.until(Mode.HOLD)
    for _ in range(20):
        bench.tick()
    assert bench.mode is Mode.HOLD and not bench.steps
    assert bench.last is not None and bench.last.goal is not None


def test_a_demonstration_records_the_operator_s_actions_and_goes_on_after_success_for_the_classifier() -> None:
    bench = demonstrating(ControlSettings(collect_hold_steps=15))
    for _ in range(9):
        bench.tick(drive=UP)
    bench.tick(E.SUCCESS, drive=UP)
    label_at = bench.now_ns
    while bench.mode is Mode.TAKEOVER:
        bench.tick(drive=UP)
    check_episode(bench.steps)
    last = bench.steps[-1]
    assert last.end is EndReason.SUCCESS
    assert sum(s.stamp_ns > label_at for s in bench.steps) == 15
    assert {s.source for s in bench.steps[:-1]} == {Source.DEMONSTRATION}
    np.testing.assert_allclose(bench.steps[0].proposed, UP)
    (label,) = bench.labels
    assert (label.kind, label.episode, label.stamp_ns) == (LabelKind.SUCCESS, 1, label_at)


def test_a_demonstration_begins_only_when_there_is_a_drive_to_follow() -> None:
    bench = Bench()
    bench.until(Mode.HOLD)
    bench.tick(E.TAKEOVER_BEGIN)
    assert bench.mode is Mode.HOLD
    bench.tick(drive=UP)
    bench.tick(drive=UP)
    assert bench.mode is Mode.TAKEOVER
    assert bench.steps[0].source is Source.DEMONSTRATION


def test_failure_ends_a_demonstration_at_once_even_while_success_is_held() -> None:
    bench = demonstrating()
    bench.tick(E.SUCCESS, drive=UP)
    bench.tick(drive=UP)
    bench.tick(E.FAILURE, drive=UP)
    assert bench.mode is Mode.RESET
    assert bench.steps[-1].end is EndReason.FAILURE
    assert [x.kind for x in bench.labels] == [LabelKind.SUCCESS, LabelKind.FAILURE]


def test_a_policy_starts_when_the_scene_wait_is_over_and_is_stopped_by_the_step_limit() -> None:
    bench = bench_with_policy()
    while bench.mode is Mode.POLICY:
        bench.tick()
    check_episode(bench.steps)
    assert bench.steps[-1].end is EndReason.TIMEOUT
    assert len(bench.steps) == bench.task.episode_steps + 1
    assert {s.source for s in bench.steps[:-1]} == {Source.POLICY}
    assert {s.policy_version for s in bench.steps} == {3}
    assert bench.last is not None and bench.last.status.last_end == "timeout"


def test_without_a_timer_the_policy_waits_for_the_scene_ready_key() -> None:
    bench = Bench(task=replace(Bench().task, reset=replace(Bench().task.reset, scene_wait_s=0.0)))
    bench.stage(FakeModel(Channel.POLICY, 1, 0.0))
    bench.until(Mode.HOLD)
    for _ in range(30):
        bench.tick()
    assert bench.mode is Mode.HOLD
    bench.tick(E.SCENE_READY)
    assert bench.mode is Mode.POLICY


def test_the_first_state_of_an_episode_has_no_target_ahead_and_those_of_an_arm_that_lags_have() -> None:
    bench = bench_with_policy(ControlSettings(exploration=0.0), action=0.5)
    bench.tick(obey=False)
    bench.tick(obey=False)
    bench.tick(obey=False)
    bench.tick(obey=False)
    first, third = bench.steps[0], bench.steps[2]
    assert not first.state[15:].any()
    np.testing.assert_allclose(third.state[15:], 0.5 * bench.task.workspace.step_m, atol=1e-5)


def test_a_takeover_and_its_end_switch_the_source_within_one_episode() -> None:
    bench = bench_with_policy()
    bench.tick()
    bench.tick(E.TAKEOVER_BEGIN, drive=UP)
    bench.tick(drive=UP)
    bench.tick(E.TAKEOVER_END, drive=UP)
    bench.tick(E.ABORT)
    check_episode(bench.steps)
    sources = [s.source for s in bench.steps]
    assert sources == [Source.POLICY] * 2 + [Source.TAKEOVER] * 2 + [Source.POLICY, Source.NONE]
    assert bench.steps[-1].end is EndReason.OPERATOR


def test_episode_numbers_rise_and_go_on_from_where_a_restarted_run_was() -> None:
    bench = Bench(first_episode=41)
    bench.stage(FakeModel(Channel.POLICY, 1, 0.0))
    for _ in range(3):
        bench.until(Mode.POLICY)
        bench.tick(E.FAILURE)
    assert sorted({s.episode for s in bench.steps}) == [41, 42, 43]


def test_stopping_the_loop_ends_the_episode_that_runs() -> None:
    bench = bench_with_policy()
    bench.tick()
    bench.records += bench.control.stop()
    check_episode(bench.steps)
    assert bench.steps[-1].end is EndReason.OPERATOR
    assert bench.control.stop() == []


def test_exploration_scales_the_noise_and_equal_seeds_draw_it_alike() -> None:
    def noises(exploration: float, seed: int) -> list[np.ndarray]:
        bench = Bench(ControlSettings(exploration=exploration, seed=seed))
        model = FakeModel(Channel.POLICY, 1, 0.0)
        bench.stage(model)
        bench.until(Mode.POLICY)
        for _ in range(5):
            bench.tick()
        return model.noises

    assert not np.any(noises(0.0, 1))
    np.testing.assert_array_equal(noises(1.0, 1), noises(1.0, 1))
    np.testing.assert_allclose(noises(0.5, 1), 0.5 * np.array(noises(1.0, 1)))
    assert not np.array_equal(noises(1.0, 1), noises(1.0, 2))


# -- the operator's drive ----------------------------------------------------------------------------------------------


def driven(bench: Bench, **tick: object) -> Step:
    """The step of one takeover tick with these inputs."""
    bench.tick(E.TAKEOVER_BEGIN, drive=UP)
    bench.tick(**tick)  # type: ignore[arg-type]
    bench.tick(E.ABORT)
    return bench.steps[-2]


@pytest.mark.parametrize(("reason", "age_ticks", "heartbeat_ticks"), [("stale_drive", 4, 0), ("operator_lost", 0, 6)])
def test_an_operator_who_is_gone_stops_the_arm_and_the_step_is_nobody_s(
    reason: str, age_ticks: int, heartbeat_ticks: int
) -> None:
    bench = bench_with_policy()
    now_ns = bench.now_ns + 2 * PERIOD_NS
    drive = Drive(now_ns - age_ticks * PERIOD_NS, np.array(UP, np.float32), False)
    step = driven(bench, drive=drive, inputs={"heartbeat_ns": now_ns - heartbeat_ticks * PERIOD_NS})
    assert step.source is Source.NONE and reason in step.reasons
    assert step.executed is not None and not step.executed[:3].any()


def test_a_takeover_that_moves_the_stick_and_sends_zeros_is_refused_as_the_bug_it_is() -> None:
    step = driven(bench_with_policy(), drive=(0.0, 0.0, 0.0, 0.0))
    assert step.source is Source.NONE and "zero_takeover" in step.reasons


def test_a_stick_at_rest_is_the_operator_s_choice() -> None:
    bench = bench_with_policy()
    drive = Drive(bench.now_ns + 2 * PERIOD_NS, np.zeros(4, np.float32), True)
    assert driven(bench, drive=drive).source is Source.TAKEOVER


def test_a_drive_of_another_shape_or_with_nan_is_not_followed() -> None:
    for values in ((0.1, 0.1), (np.nan, 0.0, 0.0, 0.0)):
        step = driven(bench_with_policy(), drive=values)
        assert "bad_drive" in step.reasons and step.source is Source.NONE


def test_while_nobody_drives_the_jaw_keeps_its_grip() -> None:
    bench = bench_with_policy()
    bench.tick(E.TAKEOVER_BEGIN, drive=(0, 0, 0, 1.0))
    for _ in range(5):
        bench.tick()
    bench.tick(E.ABORT)
    held = [s for s in bench.steps if "stale_drive" in s.reasons]
    assert held and all(s.executed is not None and s.executed[3] == 1.0 for s in held)


def test_the_bus_s_refusals_are_added_to_the_step_that_met_them() -> None:
    bench = bench_with_policy()
    bench.tick(refusals=("speed",))
    assert bench.steps[0].reasons == ("speed",)


# -- endings -----------------------------------------------------------------------------------------------------------


def test_the_classifier_ends_an_episode_after_k_frames_exactly_as_the_shared_reward_says() -> None:
    bench = bench_with_classifier(k=2)
    for light in (0, 200, 0, 200, 200, 200):
        bench.light = light
        if bench.mode is Mode.POLICY:
            bench.tick()
    check_episode(bench.steps)
    assert bench.steps[-1].end is EndReason.SUCCESS
    assert bench.steps[-1].reasons == ("ended_by_classifier",)
    probabilities = np.array([s.classifier for s in bench.steps])
    fired = reward.fires(reward.lower_bound(probabilities, 1.0), reward.Rule(0.5, 2))
    assert np.flatnonzero(fired).tolist() == [len(bench.steps) - 1]
    assert {s.classifier_version for s in bench.steps} == {5}


def test_with_manual_reward_the_classifier_is_recorded_but_ends_nothing() -> None:
    bench = bench_with_classifier(ControlSettings(reward_source=RewardSource.MANUAL))
    bench.light = 255
    for _ in range(10):
        bench.tick()
    assert bench.mode is Mode.POLICY
    assert bench.steps[-1].classifier is not None and bench.steps[-1].classifier[0] > 0.9


def test_a_classifier_does_not_end_demonstrations() -> None:
    bench = Bench()
    bench.stage(FakeModel(Channel.CLASSIFIER, 1, 1.0))
    bench.until(Mode.HOLD)
    bench.tick(E.TAKEOVER_BEGIN, drive=UP)
    for _ in range(10):
        bench.tick(drive=UP)
    assert bench.mode is Mode.TAKEOVER


def test_heads_that_disagree_do_not_fire_because_the_lower_bound_counts() -> None:
    bench = Bench()
    bench.stage(FakeModel(Channel.CLASSIFIER, 1, (1.0, 1.0, 0.0), threshold=0.5))
    bench.stage(FakeModel(Channel.POLICY, 1, 0.0))
    bench.until(Mode.POLICY)
    for _ in range(5):
        bench.tick()
    assert bench.mode is Mode.POLICY
    assert bench.last is not None and bench.last.status.probability < 0.5


def test_the_gravest_reason_wins_and_the_human_s_word_comes_before_the_classifier_s() -> None:
    everything = Signals(True, True, EndReason.FAILURE, 0, True, True, 0)
    assert ending(everything) == Ending(EndReason.FAULT, EndedBy.FAULT)
    assert ending(replace(everything, faulted=False)) == Ending(EndReason.OPERATOR, EndedBy.OPERATOR)
    pressed = replace(everything, faulted=False, stopped=False)
    assert ending(pressed) == Ending(EndReason.FAILURE, EndedBy.OPERATOR)
    assert ending(replace(pressed, pressed=None)) == Ending(EndReason.SUCCESS, EndedBy.OPERATOR)
    assert ending(replace(pressed, pressed=None, hold_left=3)) is None
    alone = replace(pressed, pressed=None, hold_left=None)
    assert ending(alone) == Ending(EndReason.SUCCESS, EndedBy.CLASSIFIER)
    assert ending(replace(alone, committed=False, declared=False)) == Ending(EndReason.TIMEOUT, EndedBy.LIMIT)
    assert ending(Signals()) is None


# -- events and labels -------------------------------------------------------------------------------------------------


def test_success_and_failure_after_an_episode_are_verdicts_on_it() -> None:
    bench = bench_with_classifier()
    bench.light = 255
    while bench.mode is Mode.POLICY:
        bench.tick()
    bench.tick(E.FALSE_POSITIVE)
    bench.tick(E.FAILURE)
    kinds = [(x.kind, x.episode, x.contradicts) for x in bench.labels]
    assert kinds == [(LabelKind.FALSE_POSITIVE, 1, 5), (LabelKind.VERDICT_FAILURE, 1, 5)]
    assert bench.mode is Mode.RESET


def test_a_false_negative_ends_the_episode_as_the_success_it_is() -> None:
    bench = bench_with_classifier()
    bench.tick(E.FALSE_NEGATIVE)
    assert bench.steps[-1].end is EndReason.SUCCESS
    assert bench.labels[0].kind is LabelKind.FALSE_NEGATIVE


def test_a_press_whose_cause_lies_before_the_episode_is_about_the_one_before() -> None:
    bench = bench_with_policy()
    bench.tick(E.FAILURE)
    bench.until(Mode.POLICY)
    bench.tick(bench.event(E.FAILURE, reaction_s=0.8))
    assert bench.mode is Mode.POLICY
    assert [(x.kind, x.episode) for x in bench.labels[1:]] == [(LabelKind.VERDICT_FAILURE, 1)]


def test_an_event_that_is_sent_again_is_answered_again_and_labels_once() -> None:
    bench = bench_with_policy()
    press = bench.event(E.SUCCESS, "same")
    first = bench.tick(press).replies
    second = bench.tick(press).replies
    assert first == second and first[0].accepted
    assert len(bench.labels) == 1


def test_undo_names_what_it_undoes_and_without_a_name_takes_the_last() -> None:
    bench = bench_with_policy()
    bench.tick(bench.event(E.SUCCESS, "first"))
    bench.tick(bench.event(E.FAILURE, "second"))
    bench.tick(bench.event(E.UNDO, "u1"))
    bench.tick(bench.event(E.UNDO, "u2", undo_of="first"))
    undone = [(x.undo_of, x.episode) for x in bench.labels if x.kind is LabelKind.UNDO]
    assert undone == [("second", 1), ("first", 1)]
    (reply,) = bench.tick(bench.event(E.UNDO, "u3")).replies
    assert not reply.accepted and reply.reason == "nothing to undo"


def test_presses_that_mean_nothing_now_are_refused_with_the_reason() -> None:
    bench = Bench()
    cases = {
        E.SUCCESS: "no episode to judge yet",
        E.FALSE_POSITIVE: "no classifier has declared a success",
        E.ABORT: "no episode to abort",
        E.TAKEOVER_BEGIN: "no takeover in mode idle",
        E.TAKEOVER_END: "no takeover to end",
    }
    for kind, reason in cases.items():
        (reply,) = bench.tick(kind, armed=False).replies
        assert (reply.accepted, reply.reason) == (False, reason)
    demo = demonstrating()
    (reply,) = demo.tick(E.TAKEOVER_END, drive=UP).replies
    assert not reply.accepted and demo.mode is Mode.TAKEOVER


# -- veto before commit ------------------------------------------------------------------------------------------------

WINDOW = ControlSettings(veto_window_s=0.8, exploration=0.0)


def declared(settings: ControlSettings = WINDOW) -> Bench:
    """A success is declared on step 3 and pending."""
    bench = bench_with_classifier(settings, k=2)
    for light in (0, 200, 200):
        bench.light = light
        bench.tick()
    return bench


def test_a_declared_success_is_pending_while_the_arm_drives_on_and_silence_commits_it() -> None:
    bench = declared()
    assert bench.mode is Mode.POLICY and bench.last is not None
    left = [bench.last.status.veto_left_s]
    while bench.mode is Mode.POLICY and bench.last.goal is not None:
        left.append(bench.tick().status.veto_left_s)
    assert left == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    check_episode(bench.steps)
    assert bench.steps[-1].end is EndReason.SUCCESS and bench.steps[-1].reasons == ("ended_by_classifier",)
    assert all(s.source is Source.POLICY for s in bench.steps[:-1]) and not bench.labels
    success = reward.success_frames(
        reward.lower_bound(np.array([s.classifier for s in bench.steps]), 1.0),
        np.zeros(len(bench.steps), np.int8),
        reward.Rule(0.5, 2),
    )
    paid = reward.outcome(success, EndReason.SUCCESS)
    assert np.flatnonzero(paid.reward).tolist() == [2] and np.flatnonzero(~paid.usable)[0] == 3


@pytest.mark.parametrize("key", [E.FALSE_POSITIVE, E.FAILURE])
def test_a_veto_lets_the_episode_go_on_and_its_label_names_the_frames_that_fired(key: EventKind) -> None:
    bench = declared()
    bench.tick()
    out = bench.tick(bench.event(key, reaction_s=0.55))
    assert bench.mode is Mode.POLICY and out.status.veto_left_s == 0.0 and "denied" in out.status.message
    assert [(x.kind, x.episode, x.steps, x.contradicts) for x in bench.labels] == [
        (LabelKind.FALSE_POSITIVE, 1, (2, 3), 5)
    ]


def test_after_a_veto_the_classifier_must_go_below_its_threshold_before_it_may_declare_again() -> None:
    bench = declared()
    bench.tick(E.FALSE_POSITIVE)
    for _ in range(20):
        bench.tick()
    assert bench.mode is Mode.POLICY
    for light in (0, 200, 200):
        bench.light = light
        assert bench.last is not None and bench.last.status.veto_left_s == 0.0
        bench.tick()
    assert bench.last.status.veto_left_s > 0.0
    bench.tick(E.FALSE_POSITIVE)
    assert bench.labels[-1].steps == (26, 27)


def test_success_commits_a_pending_success_at_once_and_so_does_the_end_of_the_episode_s_time() -> None:
    bench = declared()
    bench.tick(E.SUCCESS)
    assert bench.steps[-1].reasons == ("ended_by_operator",) and bench.labels[0].kind is LabelKind.SUCCESS
    bench = bench_with_classifier(WINDOW)
    while bench.control._episode is not None and bench.control._episode.actions < bench.task.episode_steps - 3:
        bench.tick()
    bench.light = 200
    while bench.mode is Mode.POLICY:
        bench.tick()
    assert (bench.steps[-1].end, bench.steps[-1].reasons) == (EndReason.SUCCESS, ("ended_by_classifier",))


def test_a_flag_after_the_commit_is_about_the_frames_that_fired_and_not_about_the_last_ones() -> None:
    bench = declared()
    while bench.mode is Mode.POLICY:
        bench.tick()
    bench.tick(E.FALSE_POSITIVE)
    assert (bench.labels[0].kind, bench.labels[0].episode, bench.labels[0].steps) == (
        LabelKind.FALSE_POSITIVE,
        1,
        (2, 3),
    )


def test_a_press_that_came_before_the_success_was_declared_is_no_veto() -> None:
    bench = bench_with_classifier(WINDOW)
    early = bench.event(E.FAILURE)
    for light in (0, 200, 200):
        bench.light = light
        bench.tick()
    bench.tick(early)
    assert bench.steps[-1].end is EndReason.FAILURE and bench.labels[0].kind is LabelKind.FAILURE


def test_without_a_window_a_success_ends_the_episode_at_the_frame_that_fired() -> None:
    bench = declared(ControlSettings())
    assert bench.mode is Mode.RESET and bench.steps[-1].seq == 3


# -- from manual to hybrid ---------------------------------------------------------------------------------------------


def test_with_manual_reward_a_classifier_is_offered_and_ends_episodes_once_it_is_accepted() -> None:
    bench = bench_with_policy(ControlSettings(reward_source=RewardSource.MANUAL))
    (reply,) = bench.tick(E.ACCEPT_CLASSIFIER).replies
    assert not reply.accepted and reply.reason == "no classifier waits to be accepted"
    bench = bench_with_classifier(ControlSettings(reward_source=RewardSource.MANUAL))
    bench.light = 255
    out = bench.tick()
    assert out.status.reward_source == "manual" and "press h" in out.status.message
    out = bench.tick(E.ACCEPT_CLASSIFIER)
    assert out.replies[0].accepted and out.status.reward_source == "hybrid" and "press h" not in out.status.message
    bench.tick()
    assert bench.steps[-1].end is EndReason.SUCCESS and bench.steps[-1].reasons == ("ended_by_classifier",)
    assert not bench.labels


# -- swaps -------------------------------------------------------------------------------------------------------------


def test_a_policy_staged_in_a_takeover_takes_over_after_it_and_the_steps_say_so() -> None:
    bench = bench_with_policy()
    bench.tick(E.TAKEOVER_BEGIN, drive=UP)
    bench.stage(FakeModel(Channel.POLICY, 4, 0.2))
    bench.tick(drive=UP)
    bench.tick(E.TAKEOVER_END, drive=UP)
    bench.tick()
    bench.tick(E.ABORT)
    assert [s.policy_version for s in bench.steps] == [3, 3, 3, 3, 4, 4]
    swap = next(s for s in bench.swaps if s.version == 4)
    assert swap.outcome is SwapOutcome.SWAPPED and swap.tick == bench.steps[4].tick


def test_a_classifier_staged_in_an_episode_waits_for_the_next_one() -> None:
    bench = bench_with_classifier()
    bench.stage(FakeModel(Channel.CLASSIFIER, 6, 0.0))
    bench.tick()
    bench.tick(E.FAILURE)
    bench.until(Mode.POLICY)
    bench.tick(E.FAILURE)
    versions = {s.episode: s.classifier_version for s in bench.steps}
    assert versions == {1: 5, 2: 6}


def test_a_policy_that_fails_hands_over_to_the_one_before_without_losing_the_tick() -> None:
    bench = bench_with_policy(action=0.1)
    broken = FakeModel(Channel.POLICY, 4, float("nan"))
    bench.stage(broken)
    bench.tick()
    bench.tick()
    assert bench.steps[-1].proposed is not None and np.allclose(bench.steps[-1].proposed, 0.1)
    assert bench.mode is Mode.POLICY
    assert [(s.outcome, s.version) for s in bench.swaps][-2:] == [
        (SwapOutcome.ROLLED_BACK, 4),
        (SwapOutcome.SWAPPED, 4),
    ]


def test_when_the_only_policy_fails_the_episode_ends_and_the_robot_waits_for_a_person() -> None:
    bench = Bench()
    bench.stage(FakeModel(Channel.POLICY, 1, float("nan")))
    bench.until(Mode.POLICY)
    bench.tick()
    bench.tick()
    check_episode(bench.steps)
    assert bench.steps[-1].end is EndReason.FAULT and "no_policy" in bench.steps[0].reasons
    bench.until(Mode.HOLD)


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_bus_fault_ends_the_episode_and_nothing_moves_until_a_person_arms_again() -> None:
    bench = bench_with_policy()
    bench.tick()
    assert bench.tick(fault="elbow_flex: overload", armed=False).goal is None
    check_episode(bench.steps)
    assert bench.steps[-1].end is EndReason.FAULT and bench.mode is Mode.FAULT
    bench.tick(armed=False)
    assert bench.mode is Mode.IDLE
    bench.tick()
    assert bench.mode is Mode.RESET


def test_an_emergency_stop_ends_the_episode_as_the_operator_s_act() -> None:
    bench = bench_with_policy()
    bench.tick()
    assert bench.tick(estopped=True, armed=False).goal is None
    assert bench.mode is Mode.ESTOP and bench.steps[-1].end is EndReason.OPERATOR


def test_a_short_gap_in_the_pictures_skips_ticks_and_a_long_one_is_a_fault_a_person_must_clear() -> None:
    bench = bench_with_policy()
    bench.tick()
    before = len(bench.steps)
    for _ in range(5):
        assert bench.tick(inputs={"frames": {}}).goal is None
    assert bench.mode is Mode.POLICY and len(bench.steps) == before
    bench.tick()
    assert len(bench.steps) == before + 1
    for _ in range(12):
        bench.tick(inputs={"frames": {}})
    assert bench.mode is Mode.FAULT
    check_episode(bench.steps)
    assert bench.steps[-1].end is EndReason.FAULT
    for _ in range(5):
        bench.tick()
    assert bench.mode is Mode.FAULT
    bench.tick(E.SCENE_READY)
    assert bench.mode is Mode.RESET


def test_an_arm_that_does_not_reach_its_reset_pose_in_time_is_a_fault() -> None:
    bench = Bench()
    bench.q = bench.q + np.array([0.5, 0, 0, 0, 0, 0])
    for _ in range(round(bench.task.reset.timeout_s * bench.task.rate_hz) + 3):
        bench.tick(obey=False)
    assert bench.mode is Mode.FAULT
    assert bench.last is not None and bench.last.status.message == "reset_timeout"


def test_goals_expire_two_and_a_half_periods_after_they_were_made() -> None:
    bench = bench_with_policy()
    goal = bench.tick().goal
    assert goal is not None
    assert goal.expires_ns - goal.stamp_ns == 2.5 * PERIOD_NS


# -- the reset motion --------------------------------------------------------------------------------------------------


def test_the_reset_raises_the_tip_before_it_moves_anything_sideways() -> None:
    task = Bench().task
    motion = ResetMotion(task)
    low = motion.pose_rad.copy()
    low[:5] = solve((0.24, 0.08, 0.02)).q_rad
    motion.begin(0, low)
    q, tips = low, []
    for i in range(1, 40):
        turn = motion.tick(i * PERIOD_NS, q, np.zeros(6))
        q = turn.goal_rad
        tips.append(tip_pose(q).xyz_m)
        if turn.arrived:
            break
    below = [t for t in tips if t[2] < task.reset.tip_m[2] - 0.01]
    assert below and all(np.hypot(t[0] - 0.24, t[1] - 0.08) < 0.002 for t in below)
    np.testing.assert_allclose(tips[-1], task.reset.tip_m, atol=0.001)
    assert np.abs(np.diff([t[2] for t in tips])).max() < 0.05


def test_an_arm_that_still_swings_has_not_arrived() -> None:
    motion = ResetMotion(Bench().task)
    motion.begin(0, motion.pose_rad)
    assert not motion.tick(PERIOD_NS, motion.pose_rad, np.full(6, 1.0)).arrived
    assert motion.tick(2 * PERIOD_NS, motion.pose_rad, np.zeros(6)).arrived
