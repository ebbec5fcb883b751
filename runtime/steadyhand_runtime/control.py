"""The control loop's tick: observe, close the last step, hear the operator, choose an action, project it, send a goal.

`Control.tick` does no I/O and reads no clock: the real-time process and the lockstep simulation call the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from steadyhand_models.messages import (
    BusState,
    ControlStatus,
    Drive,
    EndReason,
    EventReply,
    Frame,
    Goal,
    Label,
    Mode,
    OperatorEvent,
    Source,
    Step,
    Swap,
)
from steadyhand_models.reward import Rule
from steadyhand_models.task import Task
from steadyhand_models.topics import TOPICS
from steadyhand_runtime.clock import NS_PER_S
from steadyhand_runtime.config import ControlSettings, RewardSource
from steadyhand_runtime.episode import Choice, EndedBy, Ending, Episode, Look, Signals, ending
from steadyhand_runtime.events import EpisodeRef, EventBook, Situation, Wishes
from steadyhand_runtime.mode import Facts, next_mode
from steadyhand_runtime.observe import Blind, Observation, Observer
from steadyhand_runtime.projection import Projection
from steadyhand_runtime.reset import ResetMotion, ResetTurn
from steadyhand_runtime.swap import Models, Pace

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

STARTED_AGAIN = "the control process was started again: press scene ready to go on"
OFFER = "a classifier has come: press h to let it end episodes too (hybrid)"
BLIND_LIMIT_S = 1.0  # shorter gaps only skip ticks: the goal expires and the bus holds
OPERATOR_LIMIT_S = 3.0  # a takeover without its operator for so long is over, and waits for a person
DRIVING = (Mode.POLICY, Mode.TAKEOVER)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one tick is given: newest state, frame per camera and drive, every new event, the operator's last sign."""

    bus: BusState | None = None
    frames: Mapping[str, Frame] = field(default_factory=dict)
    events: Sequence[OperatorEvent] = ()
    drive: Drive | None = None
    heartbeat_ns: int | None = None
    pace: Pace = field(default_factory=Pace)
    disk: str = ""  # why records cannot be kept at present


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one tick gives: a goal or None to let the bus hold, records for the spool, event replies, telemetry."""

    goal: Goal | None
    records: list[Step | Label | Swap]
    replies: list[EventReply]
    status: ControlStatus


class Control:
    """The control loop of one robot and task. `first_episode` continues the numbering of a run that was interrupted.

    One that was `restarted` may find the arm armed: nothing moves before a person resumes.
    """

    def __init__(
        self,
        task: Task,
        settings: ControlSettings,
        models: Models,
        run: str,
        first_episode: int = 1,
        restarted: bool = False,
    ) -> None:
        contract = task.contract()
        self._task, self._settings, self._models, self._run = task, settings, models, run
        self._contract_hash, self._action_dims = contract.hash, len(contract.action)
        self._observer, self._projection = Observer(contract), Projection(task)
        self._reset, self._reset_turn = ResetMotion(task), ResetTurn(np.zeros(6), False, False)
        self._events = EventBook(run)
        self._rng = np.random.default_rng(settings.seed)
        self._goal_ttl_ns = round(TOPICS["bus.goal"].stale_periods / task.rate_hz * NS_PER_S)
        self.mode = Mode.FAULT if restarted else Mode.IDLE
        self._episode: Episode | None = None
        self._last: EpisodeRef | None = None
        self._last_end = ""
        self._source = settings.reward_source
        self._next_episode = first_episode
        self._scene_ready = self._want_takeover = False
        self._tick = self._goals = self._written = 0
        self._blind_since_ns = self._held_since_ns = self._mode_since_ns = 0
        self._restarted = restarted
        self._message = STARTED_AGAIN if restarted else "waiting to be armed"
        self._fault_told = self._disk_told = ""

    def tick(self, now_ns: int, inputs: Inputs) -> Outputs:
        """One turn of the loop at now_ns."""
        self._tick += 1
        records: list[Step | Label | Swap] = []
        episode = self._episode
        driven = self.mode is Mode.TAKEOVER
        self._models.turn(self._tick, now_ns, inputs.pace, policy_free=not driven, episode_free=episode is None)
        seen = self._observer.see(now_ns, inputs.bus, inputs.frames, episode.target_m if episode else None)
        if episode is not None and isinstance(seen, Observation) and inputs.bus is not None:
            records += self._look(episode, seen, inputs.bus.refusals)
            if self._obeys_classifier(episode):
                episode.declare(now_ns)
        wishes, replies = self._hear(inputs.events, records)
        fault = self._fault(now_ns, inputs.bus, seen, inputs.heartbeat_ns)
        over = self._end(now_ns, inputs.bus, fault, wishes, records)
        self._change_mode(now_ns, inputs.bus, seen, self._facts(now_ns, inputs, seen, fault, over, wishes))
        goal_rad = self._move(now_ns, inputs, seen)
        records += self._models.records()
        self._written += len(records)
        return Outputs(self._goal(now_ns, goal_rad), records, replies, self._status(now_ns, inputs.pace))

    def stop(self) -> list[Step | Label | Swap]:
        """End the episode that runs, because the loop ends; its last records."""
        episode, self._episode = self._episode, None
        if episode is None:
            return []
        return list(episode.finish(Ending(EndReason.OPERATOR, EndedBy.OPERATOR)))

    # -- seeing and hearing ----------------------------------------------------------------------------------------

    def _look(self, episode: Episode, seen: Observation, refusals: tuple[str, ...] = ()) -> list[Step]:
        """Show an episode its newest frame, with the classifier's word on it; the step that this completes."""
        probability = self._models.judge(seen.frames)
        classifier = self._models.classifier.current
        rule = None
        if classifier is not None:
            manifest = classifier.manifest
            rule = Rule(manifest.threshold, manifest.debounce_frames, manifest.pessimism)
        look = Look(self._tick, seen, probability, self._models.policy.version, self._models.classifier.version)
        step = episode.look(look, rule, refusals)
        return [] if step is None else [step]

    def _hear(
        self, events: Sequence[OperatorEvent], records: list[Step | Label | Swap]
    ) -> tuple[Wishes, list[EventReply]]:
        wishes, replies = Wishes(), []
        for event in events:
            situation = Situation(self.mode, self._reference(), self._last, self._offers)
            reply, label = self._events.hear(event, situation, wishes)
            replies.append(reply)
            if label is not None:
                records.append(label)
            self._obey(wishes)
        return wishes, replies

    def _obey(self, wishes: Wishes) -> None:
        """Do at once what changes the meaning of the next press."""
        if wishes.veto and self._episode is not None:
            self._episode.declaration.veto()
            self._message = f"episode {self._episode.number}: its success was denied, it goes on"
        if wishes.accept:
            self._source = RewardSource.HYBRID
        wishes.veto = wishes.accept = False

    def _reference(self, ended: Ending | None = None) -> EpisodeRef | None:
        episode = self._episode
        if episode is None:
            return None
        return EpisodeRef(
            episode.number,
            episode.started_ns,
            episode.classifier_version,
            episode.collected,
            ended.by if ended else None,
            episode.declaration.last,
            episode.declaration.pending,
        )

    def _obeys_classifier(self, episode: Episode) -> bool:
        heeds = self._source is not RewardSource.MANUAL and self._settings.terminate_on_success
        return heeds and not episode.collected

    @property
    def _offers(self) -> bool:
        """Whether there is a classifier that ends no episodes, because nobody has asked it to."""
        return self._source is RewardSource.MANUAL and self._models.classifier.current is not None

    def _fault(self, now_ns: int, bus: BusState | None, seen: Observation | Blind, heartbeat_ns: int | None) -> str:
        """Why the arm must not go on, or nothing."""
        if isinstance(seen, Observation):
            self._blind_since_ns = now_ns
        if bus is not None and bus.fault:
            return bus.fault
        if isinstance(seen, Blind) and self.mode is not Mode.IDLE:
            blind_s = (now_ns - self._blind_since_ns) / NS_PER_S
            if blind_s > BLIND_LIMIT_S:
                return seen.reason
        if self.mode is Mode.TAKEOVER:
            heard_ns = max(self._mode_since_ns, heartbeat_ns or 0)
            if (now_ns - heard_ns) / NS_PER_S > OPERATOR_LIMIT_S:
                return "operator_lost"
        if self.mode is Mode.RESET and self._reset_turn.failed:
            return "reset_timeout"
        return ""

    # -- deciding --------------------------------------------------------------------------------------------------

    def _end(
        self, now_ns: int, bus: BusState | None, fault: str, wishes: Wishes, records: list[Step | Label | Swap]
    ) -> bool:
        """End the episode if anything says so; whether it ended."""
        episode = self._episode
        if episode is None:
            return False
        if episode.hold_left is not None:
            episode.hold_left -= 1
        if wishes.success and episode.collected and episode.hold_left is None:
            episode.hold_left = self._settings.collect_hold_steps
        pressed = EndReason.SUCCESS if wishes.success and not episode.collected else None
        unmanned = self.mode is Mode.POLICY and self._models.policy.current is None
        stopped = bus is not None and bus.estopped
        end = ending(
            Signals(
                faulted=bool(fault) or unmanned or not (stopped or (bus is not None and bus.armed)),
                stopped=stopped,
                pressed=wishes.end or pressed,
                hold_left=episode.hold_left,
                committed=episode.declaration.due(now_ns),
                declared=episode.declaration.stands,
                steps_left=self._task.episode_steps - episode.actions,
            )
        )
        if end is None:
            return False
        records += episode.finish(end)
        self._last, self._episode = self._reference(end), None
        self._last_end = end.reason.value
        self._message = f"episode {episode.number}: {end.reason.value} by {end.by.value}"
        return True

    def _facts(
        self, now_ns: int, inputs: Inputs, seen: Observation | Blind, fault: str, over: bool, wishes: Wishes
    ) -> Facts:
        """What decides the next mode. From HOLD an episode begins only on a frame, and a takeover only on a drive to
        follow; until then the wish is kept."""
        bus, in_hold = inputs.bus, self.mode is Mode.HOLD
        self._scene_ready |= wishes.scene_ready
        self._want_takeover |= wishes.takeover
        wait_s = self._task.reset.scene_wait_s
        waited = wait_s > 0 and now_ns - self._held_since_ns >= wait_s * NS_PER_S
        can_begin = (isinstance(seen, Observation) and not inputs.disk) or not in_hold
        self._tell_trouble(fault, inputs.disk)
        return Facts(
            armed=bus is not None and bus.armed,
            estopped=bus is not None and bus.estopped,
            faulted=bool(fault),
            reset_done=self._reset_turn.arrived,
            scene_ready=can_begin and (waited or self._scene_ready),
            policy_ready=self._models.policy.current is not None,
            takeover=can_begin and self._want_takeover and not (in_hold and self._drive_trouble(now_ns, inputs)),
            release=wishes.release,
            resume=wishes.scene_ready,
            episode_over=over,
        )

    def _tell_trouble(self, fault: str, disk: str) -> None:
        """Keep the operator's message true: a fault before a disk that refuses, and word when either is over."""
        if fault or disk:
            self._message = fault or f"no new episode: {disk}"
        elif self._disk_told:
            self._message = "everything is recorded again"
        elif self._fault_told and self._restarted and self.mode is Mode.FAULT:
            self._message = STARTED_AGAIN
        self._fault_told, self._disk_told = fault, disk

    def _change_mode(self, now_ns: int, bus: BusState | None, seen: Observation | Blind, facts: Facts) -> None:
        before, self.mode = self.mode, next_mode(self.mode, facts)
        if self.mode is before:
            return
        self._want_takeover = self._restarted = False
        self._mode_since_ns = now_ns
        if self.mode is Mode.RESET and bus is not None:
            self._scene_ready = False
            self._reset.begin(now_ns, bus.position_rad)
        elif self.mode is Mode.HOLD:
            self._held_since_ns = now_ns
        elif self.mode in DRIVING and self._episode is None and isinstance(seen, Observation):
            self._begin_episode(seen)

    def _begin_episode(self, first: Observation) -> None:
        gripper = self._projection.gripper(first.joints_rad[5])
        collected = self._models.policy.current is None
        window_s = self._settings.veto_window_s
        self._episode = Episode(self._run, self._next_episode, self._contract_hash, first, gripper, collected, window_s)
        self._next_episode += 1
        self._message = ""
        self._look(self._episode, first)

    # -- moving ----------------------------------------------------------------------------------------------------

    def _move(self, now_ns: int, inputs: Inputs, seen: Observation | Blind) -> F64 | None:
        """Joint goal (6,) rad of this tick, or None."""
        if self.mode is Mode.RESET and inputs.bus is not None:
            self._reset_turn = self._reset.tick(now_ns, inputs.bus.position_rad, inputs.bus.velocity_rad_s)
            return self._reset_turn.goal_rad
        self._reset_turn = ResetTurn(self._reset_turn.goal_rad, False, False)
        if self.mode is Mode.HOLD:
            return self._reset_turn.goal_rad
        if self._episode is None or isinstance(seen, Blind):
            return None
        action, source, trouble = self._choose(now_ns, inputs, seen, self._episode)
        held = action is None
        wanted = np.array([0.0, 0.0, 0.0, self._episode.gripper], np.float32) if action is None else action
        made = self._projection.project(wanted, self._episode.target_m, seen.tip_m)
        self._episode.target_m, self._episode.gripper = made.target_m, float(made.executed[3])
        reasons = (trouble, *made.reasons) if held else made.reasons
        self._episode.act(Choice(wanted, made.executed, source, reasons))
        return made.joints_rad

    def _choose(
        self, now_ns: int, inputs: Inputs, seen: Observation, episode: Episode
    ) -> tuple[F32 | None, Source, str]:
        """The action (A,) and whose it is; without one the arm holds still, which is nobody's choice, and why."""
        if self.mode is Mode.TAKEOVER:
            trouble = self._drive_trouble(now_ns, inputs)
            if trouble or inputs.drive is None:
                return None, Source.NONE, trouble
            return inputs.drive.action, Source.DEMONSTRATION if episode.collected else Source.TAKEOVER, ""
        noise = self._rng.standard_normal(self._action_dims).astype(np.float32)
        action = self._models.act(seen.frames, seen.state, noise * np.float32(self._settings.exploration))
        return (action, Source.POLICY, "") if action is not None else (None, Source.NONE, "no_policy")

    def _drive_trouble(self, now_ns: int, inputs: Inputs) -> str:
        """Why the operator's drive must not be followed, or nothing."""
        drive, heartbeat_ns = inputs.drive, inputs.heartbeat_ns
        if drive is None or (now_ns - drive.stamp_ns) / NS_PER_S > TOPICS["operator.drive"].stale_after_s:
            return "stale_drive"
        if heartbeat_ns is None or (now_ns - heartbeat_ns) / NS_PER_S > TOPICS["operator.heartbeat"].stale_after_s:
            return "operator_lost"
        if drive.action.shape != (self._action_dims,) or not np.isfinite(drive.action).all():
            return "bad_drive"
        return "zero_takeover" if not drive.neutral and not drive.action.any() else ""

    def _goal(self, now_ns: int, goal_rad: F64 | None) -> Goal | None:
        if goal_rad is None:
            return None
        self._goals += 1
        return Goal(self._goals, now_ns, now_ns + self._goal_ttl_ns, goal_rad)

    def _status(self, now_ns: int, pace: Pace) -> ControlStatus:
        episode, policy, classifier = self._episode, self._models.policy, self._models.classifier
        latest = episode.number if episode else self._last.number if self._last else 0
        threshold = classifier.current.manifest.threshold if classifier.current is not None else 0.0
        return ControlStatus(
            tick=self._tick,
            stamp_ns=now_ns,
            mode=self.mode,
            episode=latest,
            seq=episode.seq if episode else 0,
            probability=episode.lower if episode else 0.0,
            policy_version=policy.version,
            classifier_version=classifier.version,
            policy_age_s=(now_ns - policy.since_ns) / NS_PER_S if policy.current is not None else 0.0,
            classifier_threshold=threshold,
            missed_ticks=pace.missed,
            late_p50_s=pace.late_p50_s,
            late_p99_s=pace.late_p99_s,
            late_max_s=pace.late_max_s,
            inference_s=self._models.spent_s,
            records=self._written,
            last_end=self._last_end,
            message="; ".join(filter(None, (self._models.alert or self._message, OFFER if self._offers else ""))),
            engine=self._models.engine,
            veto_left_s=episode.declaration.left_s(now_ns) if episode else 0.0,
            reward_source=self._source.value,
        )
