"""The scripted operator, against a toy arm and a control loop that knows only the rules of modes and keys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from steadyhand_models import task as tasks
from steadyhand_models.messages import BusAction, ControlStatus, EventKind, Mode, OperatorEvent, Truth
from steadyhand_runtime.sim.operator import OperatorSettings, OperatorTurn, ScriptedOperator

TICK_NS = 100_000_000
TASK = tasks.load("lift")
CAREFUL = OperatorSettings(demonstrations=2, wander=1, verdict_rate=0.0, wrong_key_rate=0.0, takeover_rate=1.0)


@dataclass
class ToyRobot:
    """Tip that goes where it is sent, cube that sticks to a closed jaw, and the control loop's mode rules."""

    operator: ScriptedOperator
    policy_version: int = 0
    fires_after: int | None = None  # the classifier ends every policy episode after that many steps
    veto_ticks: int = 0  # and waits for a veto for so long
    declared_at: int | None = None
    mode: Mode = Mode.IDLE
    now_ns: int = 0
    tick_count: int = 0
    episode: int = 0
    seq: int = 0
    last_end: str = ""
    reset_left: int = 0
    hold_left: int | None = None
    tip: np.ndarray = field(default_factory=lambda: np.array(TASK.reset.tip_m))
    cube: np.ndarray = field(default_factory=lambda: np.array([0.5, 0.5, 0.0125]))
    jaw_rad: float = 0.9
    grasped: bool = False
    lie_success: bool = False
    events: list[tuple[Mode, int, OperatorEvent]] = field(default_factory=list)
    ends: list[tuple[int, str, bool]] = field(default_factory=list)
    places: int = 0

    def truth(self) -> Truth:
        lifted = float(self.cube[2] - 0.0125)
        success = self.lie_success or (self.grasped and lifted >= TASK.scene.success_lift_m)
        return Truth(
            self.now_ns, self.cube.astype(np.float32), self.tip.astype(np.float32), self.jaw_rad, lifted,
            self.grasped, success,
        )  # fmt: skip

    def status(self) -> ControlStatus:
        return ControlStatus(
            self.tick_count, self.now_ns, self.mode, self.episode, self.seq, 0.0, self.policy_version,
            self.policy_version, 0.0, 0.5, 0, 0.0, 0.0, 0.0, 0.0, 0, self.last_end, "", veto_left_s=self.veto_left_s(),
        )  # fmt: skip

    def veto_left_s(self) -> float:
        return 0.0 if self.declared_at is None else 0.1 * (self.declared_at + self.veto_ticks - self.seq)

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            turn = self.operator.tick(self.now_ns, self.truth(), self.status())
            self.apply(turn)
            self.now_ns += TICK_NS
            self.tick_count += 1

    def apply(self, turn: OperatorTurn) -> None:
        if turn.place_cube:
            self.places += 1
            self.cube = np.array([0.22, 0.03, 0.0125])
            self.grasped = False
        if BusAction.ARM in turn.commands:
            self.mode, self.reset_left = Mode.RESET, 8
        for event in turn.events:
            self.events.append((self.mode, self.episode, event))
            self._press(event.kind)
        if self.mode is Mode.TAKEOVER and turn.drive is not None:
            self._move(np.asarray(turn.drive.action, np.float64))
        self._advance()

    def _press(self, kind: EventKind) -> None:
        driving = self.mode in (Mode.POLICY, Mode.TAKEOVER)
        if kind is EventKind.TAKEOVER_BEGIN and self.mode is Mode.HOLD:
            self._begin_episode(Mode.TAKEOVER)
        elif kind is EventKind.TAKEOVER_BEGIN and self.mode is Mode.POLICY:
            self.mode = Mode.TAKEOVER
        elif kind is EventKind.TAKEOVER_END and self.mode is Mode.TAKEOVER:
            self.mode = Mode.POLICY
        elif kind is EventKind.SUCCESS and driving and self.policy_version == 0:
            self.hold_left = 15
        elif kind in (EventKind.FALSE_POSITIVE, EventKind.FAILURE) and self.declared_at is not None:
            self.declared_at, self.fires_after = None, None
        elif kind in (EventKind.SUCCESS, EventKind.FAILURE) and driving:
            self._end(kind.value)

    def _move(self, action: np.ndarray) -> None:
        space = TASK.workspace
        self.tip = np.clip(self.tip + space.step_m * action[:3], space.lo_m, space.hi_m)
        want = TASK.gripper.open_rad + (action[3] + 1) / 2 * (TASK.gripper.closed_rad - TASK.gripper.open_rad)
        self.jaw_rad += float(np.clip(want - self.jaw_rad, -0.35, 0.35))
        close = np.linalg.norm(self.tip[:2] - self.cube[:2]) < 0.02 and abs(self.tip[2] - self.cube[2]) < 0.01
        self.grasped = self.jaw_rad < 0.45 and (self.grasped or bool(close))
        if self.grasped:
            self.jaw_rad = max(self.jaw_rad, 0.3)
            self.cube = self.tip - [0.0, 0.007, 0.0]
        else:
            self.cube[2] = 0.0125

    def _advance(self) -> None:
        if self.mode in (Mode.POLICY, Mode.TAKEOVER):
            self.seq += 1
            if self.hold_left is not None:
                self.hold_left -= 1
                if self.hold_left == 0:
                    self._end("success")
            elif self.mode is Mode.POLICY and self.fires_after is not None and self.seq >= self.fires_after:
                self.declared_at = self.declared_at or self.seq
                if self.seq >= self.declared_at + self.veto_ticks:
                    self._end("success")
            elif self.seq >= TASK.episode_steps:
                self._end("timeout")
        elif self.mode is Mode.RESET:
            self.tip, self.jaw_rad, self.grasped = np.array(TASK.reset.tip_m), 0.9, False
            self.reset_left -= 1
            if self.reset_left == 0:
                if self.policy_version:
                    self._begin_episode(Mode.POLICY)
                else:
                    self.mode = Mode.HOLD

    def _begin_episode(self, mode: Mode) -> None:
        self.mode, self.seq = mode, 0
        self.episode += 1

    def _end(self, reason: str) -> None:
        self.ends.append((self.episode, reason, self.truth().success))
        self.last_end, self.mode, self.reset_left, self.hold_left = reason, Mode.RESET, 18, None
        self.declared_at = None

    def pressed(self, kind: EventKind) -> list[tuple[Mode, int, OperatorEvent]]:
        return [e for e in self.events if e[2].kind is kind]


def robot(settings: OperatorSettings = CAREFUL, seed: int = 0, **state: object) -> ToyRobot:
    return ToyRobot(ScriptedOperator(TASK, settings, seed), **state)  # type: ignore[arg-type]


def test_arms_the_bus_once_and_places_the_cube_once_per_episode() -> None:
    toy = robot()
    toy.run(400)
    assert toy.mode is Mode.HOLD
    assert toy.places == len(toy.ends) + 1


def test_a_fault_is_cleared_and_armed_by_the_person() -> None:
    toy = robot()
    toy.mode = Mode.FAULT
    turn = toy.operator.tick(0, toy.truth(), toy.status())
    assert turn.commands == [BusAction.CLEAR, BusAction.ARM]
    assert toy.operator.tick(TICK_NS, toy.truth(), toy.status()).commands == []


def test_gives_as_many_demonstrations_as_wanted_and_the_easy_negatives_before_the_last() -> None:
    toy = robot()
    toy.run(700)
    reasons = [reason for _, reason, _ in toy.ends]
    assert sorted(reasons) == ["failure", "success", "success"]
    assert reasons[-1] == "success"
    assert all(truly for _, reason, truly in toy.ends if reason == "success")
    assert not any(truly for _, reason, truly in toy.ends if reason == "failure")
    assert toy.mode is Mode.HOLD


def test_waiting_long_for_a_policy_earns_another_demonstration() -> None:
    settings = replace(CAREFUL, wander=0, demonstrations=1, demonstrate_again_s=30.0)
    toy = robot(settings)
    toy.run(900)
    assert len(toy.ends) >= 2


def test_success_is_pressed_a_reaction_time_after_it_became_true() -> None:
    toy = robot()
    true_since: dict[int, int] = {}
    for _ in range(400):
        if toy.mode is Mode.TAKEOVER and toy.truth().success:
            true_since.setdefault(toy.episode, toy.now_ns)
        toy.run(1)
    presses = toy.pressed(EventKind.SUCCESS)
    assert presses
    for _, episode, event in presses:
        late_s = (event.stamp_ns - true_since[episode]) / 1e9
        assert 0.3 <= late_s <= 0.91
        assert event.reaction_s == pytest.approx(0.55)


def test_helps_a_stuck_policy_to_a_grasp_and_releases() -> None:
    toy = robot(policy_version=1)
    toy.run(130)
    begins, ends = toy.pressed(EventKind.TAKEOVER_BEGIN), toy.pressed(EventKind.TAKEOVER_END)
    assert begins and ends
    assert all(mode is Mode.POLICY for mode, _, _ in begins)
    guided_ticks = (ends[0][2].stamp_ns - begins[0][2].stamp_ns) // TICK_NS
    assert 8 <= guided_ticks <= 25
    first_policy_tick = 9
    assert begins[0][2].stamp_ns // TICK_NS - first_policy_tick >= 19


def test_a_person_who_does_not_help_lets_the_episode_time_out() -> None:
    toy = robot(replace(CAREFUL, takeover_rate=0.0), policy_version=1)
    toy.run(300)
    assert not toy.pressed(EventKind.TAKEOVER_BEGIN)
    assert {reason for _, reason, _ in toy.ends} == {"timeout"}


def test_a_false_success_is_flagged_and_the_episode_called_a_failure_before_the_next_begins() -> None:
    toy = robot(policy_version=1, fires_after=10)
    toy.run(300)
    wrong = {episode for episode, _, truly in toy.ends if not truly}
    flagged = {episode for mode, episode, _ in toy.pressed(EventKind.FALSE_POSITIVE) if mode is Mode.RESET}
    failed = {episode for mode, episode, _ in toy.pressed(EventKind.FAILURE) if mode is Mode.RESET}
    assert len(wrong) >= 5
    assert wrong - {toy.ends[-1][0]} <= flagged & failed


def test_a_false_success_is_denied_a_reaction_time_after_it_is_declared() -> None:
    toy = robot(policy_version=1, fires_after=10, veto_ticks=10)
    toy.run(60)
    ((mode, _, veto),) = toy.pressed(EventKind.FALSE_POSITIVE)
    declared_ns = (9 + 10) * TICK_NS  # the episode begins after nine ticks
    assert mode is Mode.POLICY and 3 * TICK_NS <= veto.stamp_ns - declared_ns <= 9 * TICK_NS
    assert not toy.pressed(EventKind.FAILURE) and not toy.ends


def test_who_is_too_late_for_a_veto_flags_the_success_once() -> None:
    toy = robot(policy_version=1, fires_after=10, veto_ticks=2)
    toy.run(45)
    assert len(toy.ends) == 1
    assert [mode for mode, _, _ in toy.pressed(EventKind.FALSE_POSITIVE)] == [Mode.RESET]


def test_a_true_success_that_is_declared_needs_no_word() -> None:
    toy = robot(policy_version=1, fires_after=3, veto_ticks=10, lie_success=True)
    toy.run(300)
    assert len(toy.ends) >= 5
    assert not toy.pressed(EventKind.FALSE_POSITIVE) and not toy.pressed(EventKind.SUCCESS)


def test_a_true_success_ended_by_the_classifier_is_not_flagged() -> None:
    toy = robot(policy_version=1, fires_after=3, lie_success=True)
    toy.run(300)
    assert len(toy.ends) >= 5
    assert not toy.pressed(EventKind.FALSE_POSITIVE)


def test_a_missed_success_is_ended_by_the_person() -> None:
    toy = robot(policy_version=1, lie_success=True)
    toy.run(100)
    assert {reason for _, reason, _ in toy.ends} == {"success"}
    assert all(mode is Mode.POLICY for mode, _, _ in toy.pressed(EventKind.SUCCESS))


def test_a_lost_cube_ends_the_episode_as_a_failure() -> None:
    toy = robot(policy_version=1)
    toy.run(12)
    assert toy.mode is Mode.POLICY
    toy.cube = np.array([0.45, 0.0, 0.0125])
    toy.run(12)
    assert toy.ends[0][1] == "failure"


def test_confirming_verdicts_come_at_their_rate() -> None:
    toy = robot(replace(CAREFUL, verdict_rate=0.5), policy_version=1, fires_after=3, lie_success=True)
    toy.run(3000)
    share = len(toy.pressed(EventKind.SUCCESS)) / len(toy.ends)
    assert 0.35 < share < 0.65


def test_wrong_keys_are_pressed_and_sometimes_undone() -> None:
    settings = replace(CAREFUL, wrong_key_rate=0.5, undo_rate=0.5)
    toy = robot(settings, policy_version=1, fires_after=3, lie_success=True)
    toy.run(3000)
    wrong = {event.event_id for _, _, event in toy.pressed(EventKind.FALSE_POSITIVE)}
    undone = {event.undo_of for _, _, event in toy.pressed(EventKind.UNDO)}
    assert 0.3 < len(wrong) / len(toy.ends) < 0.7
    assert undone < wrong and len(undone) > 0.25 * len(wrong)


def test_the_same_seed_presses_the_same_keys() -> None:
    first, second = robot(seed=3, policy_version=1, fires_after=25), robot(seed=3, policy_version=1, fires_after=25)
    first.run(500)
    second.run(500)
    assert first.events == second.events
    assert len({event.event_id for _, _, event in first.events}) == len(first.events)


def test_an_offered_classifier_is_accepted_once_by_a_person_who_wants_it_and_else_never() -> None:
    toy = robot(policy_version=1)
    offer = replace(toy.status(), reward_source="manual")
    willing = ScriptedOperator(TASK, replace(CAREFUL, accepts_classifier=True), 0)
    wary = ScriptedOperator(TASK, CAREFUL, 0)

    def kinds(person: ScriptedOperator, status: ControlStatus) -> list[EventKind]:
        return [event.kind for event in person.tick(0, toy.truth(), status).events]

    assert kinds(willing, offer).count(EventKind.ACCEPT_CLASSIFIER) == 1
    assert EventKind.ACCEPT_CLASSIFIER not in kinds(willing, offer) + kinds(wary, offer)
    fresh = ScriptedOperator(TASK, replace(CAREFUL, accepts_classifier=True), 0)
    assert EventKind.ACCEPT_CLASSIFIER not in kinds(fresh, replace(offer, reward_source="hybrid"))
    assert EventKind.ACCEPT_CLASSIFIER not in kinds(fresh, replace(offer, classifier_version=0))
