"""The scripted operator: a person with a keyboard who sees the truth, reacts late and sometimes presses a wrong key."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from steadyhand_models.messages import (
    BusAction,
    ControlStatus,
    Drive,
    EventKind,
    Mode,
    OperatorEvent,
    Truth,
)
from steadyhand_models.task import Task
from steadyhand_runtime.config import RewardSource
from steadyhand_runtime.sim.expert import ExpertHand, HandSettings
from steadyhand_runtime.sim.fingers import ANY, DRIVING, NS, WAITING, Fingers, OperatorSettings, Press
from steadyhand_runtime.sim.world import TruthState

__all__ = ["OperatorSettings", "OperatorTurn", "ReachEstimate", "ScriptedOperator"]

F64 = npt.NDArray[np.float64]
DRIVE_TICKS = 3  # for so long control follows the last drive it heard


@dataclass
class OperatorTurn:
    """What the person did at one tick; `place_cube` asks for the scene to be set anew."""

    events: list[OperatorEvent] = field(default_factory=list)
    drive: Drive | None = None
    commands: list[BusAction] = field(default_factory=list)
    place_cube: bool = False


class Purpose(str, Enum):
    """Why the person drives, or would."""

    DEMONSTRATE = "demonstrate"
    WANDER = "wander"
    HELP = "help"


class ReachEstimate:
    """Where the actions so far have sent the tip, as the control loop counts it; leaks to where the tip really is."""

    LEAK = 0.12

    def __init__(self, task: Task) -> None:
        self._space = task.workspace
        self.xyz_m: F64 = np.zeros(3)

    def begin(self, tip_xyz_m: F64) -> None:
        self.xyz_m = tip_xyz_m.copy()

    def advance(self, action: F64, tip_xyz_m: F64) -> None:
        """Follow one executed action (4,)."""
        space = self._space
        reach = self.xyz_m + space.step_m * action[:3]
        reach = np.clip(reach, tip_xyz_m - space.leash_m, tip_xyz_m + space.leash_m)
        reach = np.clip(reach, space.lo_m, space.hi_m)
        self.xyz_m = reach + self.LEAK * (tip_xyz_m - reach)


class ScriptedOperator:
    """Call `tick` once per control tick. Pure of I/O and clocks; everything random draws from `seed`.

    `session` keeps event ids of two lives with one seed apart.
    """

    def __init__(self, task: Task, settings: OperatorSettings, seed: int, session: str = "") -> None:
        self.settings = settings
        self._task = task
        self._rng = np.random.default_rng(seed)
        self._fingers = Fingers(settings, self._rng, session or f"s{seed}")
        jaw = task.gripper
        hand = HandSettings(task.workspace.step_m, jaw_open_rad=jaw.open_rad, jaw_closed_rad=jaw.closed_rad)
        self._hand = ExpertHand(self._rng, hand)
        self._reach = ReachEstimate(task)
        self._action: F64 = np.zeros(4)
        self._action_tick = 0
        self._asked_ns: dict[str, int] = {}
        self.demonstrated = 0
        self.wandered = 0
        self._mode: Mode | None = None
        self._purpose = Purpose.DEMONSTRATE
        self._waypoint: F64 = np.zeros(3)
        self._waiting_since_ns = 0
        self._placed_ns: int | None = None
        self._last_success = False
        self._new_episode(None)

    def tick(self, now_ns: int, truth: Truth, status: ControlStatus | None) -> OperatorTurn:
        """What the person does now, given what they see. `truth` is theirs alone."""
        turn = OperatorTurn()
        if status is None:
            return turn
        seen = _seen(truth)
        self._follow(now_ns, seen, status)
        if status.mode is Mode.IDLE:
            self._ask("arm", now_ns, 2.0, turn, BusAction.ARM)
        elif status.mode in (Mode.FAULT, Mode.ESTOP):
            self._ask("clear", now_ns, 3.0, turn, BusAction.CLEAR, BusAction.ARM)
            if status.mode is Mode.FAULT and turn.commands:
                turn.events.append(self._fingers.event(now_ns, EventKind.SCENE_READY))
        elif status.mode in WAITING:
            self._prepare(now_ns, seen, status, turn)
        elif status.mode is Mode.POLICY:
            self._watch(now_ns, seen, status, turn)
        else:
            self._take_over(now_ns, seen, status, turn)
        self._consider_offer(now_ns, status, turn)
        self._press_due(now_ns, status, turn)
        self._last_success = seen.success
        return turn

    # What the screen tells

    def _follow(self, now_ns: int, seen: TruthState, status: ControlStatus) -> None:
        """Notice episodes that began and ended between two looks."""
        was_driving = self._mode in DRIVING
        changed = self._episode is not None and status.episode != self._episode
        if was_driving and (status.mode not in DRIVING or changed):
            self._episode_ended(now_ns, seen, status)
        if status.mode in DRIVING and (not was_driving or changed):
            self._new_episode(status.episode)
        if status.mode is Mode.TAKEOVER and self._mode is Mode.POLICY:
            self._takeovers += 1
        if status.mode in WAITING and self._mode not in WAITING:
            self._placed_ns = None
            self._waiting_since_ns = now_ns
        self._mode = status.mode

    def _new_episode(self, episode: int | None) -> None:
        settings = self.settings
        self._episode = episode
        self._turns = 0
        self._guided = 0
        self._takeovers = 0
        self._success_since: int | None = None
        self._hopeless_since: int | None = None
        self._pressed: EventKind | None = None
        self._vetoing = False
        self._helps = bool(self._rng.random() < settings.takeover_rate)
        self._patience = self._draw_steps(settings.patience_lo_steps, settings.patience_hi_steps)
        self._guide = self._draw_steps(settings.guide_lo_steps, settings.guide_hi_steps)

    def _episode_ended(self, now_ns: int, seen: TruthState, status: ControlStatus) -> None:
        """Count demonstrations, and have a word on what the robot did alone."""
        self._fingers.keep(lambda press: press.modes is ANY)
        succeeded = status.last_end.startswith("success")
        if self._purpose is not Purpose.HELP:
            self.demonstrated += self._purpose is Purpose.DEMONSTRATE and succeeded
            self.wandered += self._purpose is Purpose.WANDER
            return
        truly = seen.success or self._last_success
        if self._pressed is not None:
            return
        if succeeded and not truly:
            if self._vetoing:  # the key is on its way, and flags the success just the same
                return
            flag_ns = self._plan(now_ns, EventKind.FALSE_POSITIVE, ANY)
            if flag_ns is not None:
                self._fingers.add(Press(flag_ns + NS // 5, EventKind.FAILURE, WAITING, self._episode))
        elif status.last_end in _NEEDS_NO_WORD:
            self._consider_verdict(now_ns, succeeded, truly)

    def _consider_verdict(self, now_ns: int, succeeded: bool, truly: bool) -> None:
        """Confirm what ended without a key, or deny it by mistake. A rate of its own counts every such end once."""
        right, wrong = EventKind.SUCCESS, EventKind.FAILURE
        if not truly:
            right, wrong = wrong, right
        own = self.settings.own_rate(right)
        if (succeeded or own is not None) and self._rng.random() < self.settings.slip_rate(right):
            kind, modes = (EventKind.FALSE_POSITIVE, ANY) if succeeded else (wrong, WAITING)
            self._fingers.mistake(now_ns, kind, modes, self._episode)
        elif self._rng.random() >= self.settings.verdict_rate:
            return
        elif own is None:
            self._plan(now_ns, right, WAITING)
        else:
            self._fingers.surely(now_ns, right, WAITING, self._episode)

    # Between episodes

    def _prepare(self, now_ns: int, seen: TruthState, status: ControlStatus, turn: OperatorTurn) -> None:
        """Set the cube once the arm is out of the way; then start what the day's plan says."""
        if self._placed_ns is None:
            clear = seen.jaw_rad > 0.5 * self._task.gripper.open_rad and seen.tip_xyz_m[2] > 0.07
            if clear or status.mode is Mode.HOLD:
                turn.place_cube = True
                self._placed_ns = now_ns
            return
        if now_ns - self._placed_ns < NS // 2 or status.mode is not Mode.HOLD:
            return
        if status.policy_version > 0:
            if self._task.reset.scene_wait_s == 0 and self._due("scene", now_ns, 1.0):
                turn.events.append(self._fingers.event(now_ns, EventKind.SCENE_READY))
        elif self._next_collection(now_ns) and self._due("begin", now_ns, 1.0):
            self._begin_drive(now_ns, seen, status, turn)

    def _next_collection(self, now_ns: int) -> bool:
        """Choose what to show the robot; wandering is spread before the last demonstration."""
        s = self.settings
        overdue = now_ns - self._waiting_since_ns > s.demonstrate_again_s * NS
        if self.demonstrated >= s.demonstrations and not overdue:
            return False
        wander_due = self.wandered < s.wander and self.demonstrated * s.wander >= self.wandered * s.demonstrations
        self._purpose = Purpose.WANDER if wander_due else Purpose.DEMONSTRATE
        return True

    # While the policy drives

    def _watch(self, now_ns: int, seen: TruthState, status: ControlStatus, turn: OperatorTurn) -> None:
        self._purpose = Purpose.HELP
        self._turns += 1
        self._notice_success(now_ns, seen, status)
        if self._notice_hopeless(now_ns, seen) or seen.success:
            return
        if self._wants_to_help(seen) and self._due("begin", now_ns, 0.5):
            self._begin_drive(now_ns, seen, status, turn)

    def _wants_to_help(self, seen: TruthState) -> bool:
        if not self._helps or self._takeovers >= self.settings.takeovers_per_episode or seen.grasped:
            return False
        away_m = float(np.hypot(*(seen.tip_xyz_m - seen.cube_xyz_m)[:2]))
        strayed = self._turns > 10 and away_m > self.settings.stray_m
        return strayed or self._turns >= self._patience

    def _notice_success(self, now_ns: int, seen: TruthState, status: ControlStatus) -> None:
        """Press success a reaction time after it became true, if nobody ended the episode before."""
        declared = status.veto_left_s > 0
        self._notice_declared(now_ns, declared, seen.success)
        if not seen.success or declared:  # a true one that is declared already needs no word
            self._success_since = None
            self._fingers.keep(lambda press: press.kind is not EventKind.SUCCESS or press.mistaken)
        elif self._success_since is None and self._pressed is None:
            self._success_since = now_ns
            self._plan(now_ns, EventKind.SUCCESS, DRIVING)

    def _notice_declared(self, now_ns: int, declared: bool, truly: bool) -> None:
        """Deny a false success while it is pending."""
        if declared and not truly and not self._vetoing:
            self._vetoing = True
            self._plan(now_ns, EventKind.FALSE_POSITIVE, ANY)
        elif not declared:
            self._vetoing = False

    def _notice_hopeless(self, now_ns: int, seen: TruthState) -> bool:
        """The cube was pushed where the arm cannot go: press failure. True while that is so."""
        margin, space = 0.02, self._task.workspace
        out = any(not lo - margin < v < hi + margin for lo, v, hi in zip(space.lo_m, seen.cube_xyz_m[:2], space.hi_m))
        if out and self._hopeless_since is None:
            self._hopeless_since = now_ns
            if self.settings.false_success_rate is None:
                self._fingers.surely(now_ns, EventKind.FAILURE, DRIVING, self._episode)
            else:
                self._plan(now_ns, EventKind.FAILURE, DRIVING)
        return out

    # While the person drives

    def _begin_drive(self, now_ns: int, seen: TruthState, status: ControlStatus, turn: OperatorTurn) -> None:
        self._hand.begin()
        self._reach.begin(seen.tip_xyz_m)
        self._guided = 0
        self._guide = self._draw_steps(self.settings.guide_lo_steps, self.settings.guide_hi_steps)
        self._waypoint = self._draw_waypoint()
        turn.events.append(self._fingers.event(now_ns, EventKind.TAKEOVER_BEGIN))
        turn.drive = self._drive(now_ns, seen, status)

    def _take_over(self, now_ns: int, seen: TruthState, status: ControlStatus, turn: OperatorTurn) -> None:
        self._guided += 1
        # Control repeats the last drive at a tick for which this person was too slow.
        for _ in range(min(status.tick - self._action_tick, DRIVE_TICKS)):
            self._reach.advance(self._action, seen.tip_xyz_m)
        if self._purpose is Purpose.WANDER:
            if self._guided == self.settings.wander_steps:
                self._fingers.surely(now_ns, EventKind.FAILURE, DRIVING, self._episode)
        else:
            self._notice_success(now_ns, seen, status)
        if self._purpose is Purpose.HELP and self._may_release(seen) and self._due("release", now_ns, 0.5):
            self._turns = 0
            turn.events.append(self._fingers.event(now_ns, EventKind.TAKEOVER_END))
        turn.drive = self._drive(now_ns, seen, status)

    def _may_release(self, seen: TruthState) -> bool:
        held = seen.grasped and self._guided >= self.settings.guide_least_steps
        return held or self._guided >= self._guide

    def _drive(self, now_ns: int, seen: TruthState, status: ControlStatus) -> Drive:
        wanders = self._purpose is Purpose.WANDER
        self._action = self._wander_action() if wanders else self._hand.act(seen, self._reach.xyz_m)
        self._action_tick = status.tick
        return Drive(now_ns, self._action.astype(np.float32), neutral=False)

    def _wander_action(self) -> F64:
        """Open-handed drifting from one point in the air to the next."""
        way = self._waypoint - self._reach.xyz_m
        if np.linalg.norm(way) < 0.02:
            self._waypoint = self._draw_waypoint()
        action = np.full(4, -1.0)
        action[:3] = np.clip(way / self._task.workspace.step_m, -0.6, 0.6) + self._rng.normal(0.0, 0.05, 3)
        return np.clip(action, -1.0, 1.0)

    def _draw_waypoint(self) -> F64:
        lo, hi = np.array(self._task.workspace.lo_m), np.array(self._task.workspace.hi_m)
        point = self._rng.uniform(lo + 0.2 * (hi - lo), hi - 0.2 * (hi - lo))
        point[2] = self._rng.uniform(0.06, 0.1)
        return point

    # Keys and small things

    def _consider_offer(self, now_ns: int, status: ControlStatus, turn: OperatorTurn) -> None:
        offered = status.reward_source == RewardSource.MANUAL.value and status.classifier_version > 0
        if offered and self.settings.accepts_classifier and self._due("accept", now_ns, 1.0):
            turn.events.append(self._fingers.event(now_ns, EventKind.ACCEPT_CLASSIFIER))

    def _press_due(self, now_ns: int, status: ControlStatus, turn: OperatorTurn) -> None:
        for press, event in self._fingers.due(now_ns, status.mode, self._episode):
            turn.events.append(event)
            if status.mode in DRIVING and press.modes is not ANY:
                self._pressed = press.kind

    def _plan(self, now_ns: int, kind: EventKind, modes: frozenset[Mode]) -> int | None:
        """Press a key; whoever demonstrates is not in a hurry: mistakes happen at the robot's pace."""
        return self._fingers.plan(now_ns, kind, modes, self._episode, errs=self._purpose is Purpose.HELP)

    def _ask(self, what: str, now_ns: int, every_s: float, turn: OperatorTurn, *actions: BusAction) -> None:
        if self._due(what, now_ns, every_s):
            turn.commands.extend(actions)

    def _due(self, what: str, now_ns: int, every_s: float) -> bool:
        """True, at most once per `every_s`: keys are pressed again when nothing came of them."""
        last_ns = self._asked_ns.get(what)
        if last_ns is not None and now_ns - last_ns < every_s * NS:
            return False
        self._asked_ns[what] = now_ns
        return True

    def _draw_steps(self, lo: int, hi: int) -> int:
        return int(self._rng.integers(lo, max(lo, hi) + 1))


_NEEDS_NO_WORD = frozenset({"success", "timeout"})


def _seen(truth: Truth) -> TruthState:
    cube, tip = np.asarray(truth.cube_xyz_m, np.float64), np.asarray(truth.tip_xyz_m, np.float64)
    return TruthState(cube, 0.0, tip, truth.jaw_rad, truth.lifted_m, truth.grasped, truth.success)
