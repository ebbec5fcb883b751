"""The bus loop: arming, goals through the guard, faults, one state per tick. No sockets, no threads, no sleeping."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models.messages import BusAction, BusCommand, BusState, CommandReply, Goal
from steadyhand_runtime.bus.driver import Driver, Reading, Trouble
from steadyhand_runtime.bus.faults import (
    Fault,
    FaultReason,
    Foldback,
    FoldReason,
    Health,
    find_fault,
    fold,
    newly_folded,
)
from steadyhand_runtime.bus.guard import Allowed, Limits, Refusal, Target, check, rest
from steadyhand_runtime.bus.reading import never
from steadyhand_runtime.bus.transport import PortLost
from steadyhand_runtime.clock import NS_PER_S, LatenessHistogram
from steadyhand_runtime.telemetry import Log

F64 = npt.NDArray[np.float64]

GOAL_PERIODS = 2.5  # a goal is valid for this many of its sender's periods
ARRIVE_PERIODS = 1.0  # when the next one is due: later would only add lag to what a policy must learn around
MAX_GOAL_AGE_S = 1.0
GOAL_WIRE_NS = 300_000  # an exchange begins with its goals: 26 bytes at 1 Mbaud, and what leads to them
RAMP_STEPS = 10
PERCENTILE_TICKS = 100
WAIT_PERIODS = 0.6  # for late replies, beyond their time on the wire
REMEMBERED_COMMANDS = 256


class Phase(str, enum.Enum):
    """What the bus does with goals; only ARMED follows them."""

    DISARMED = "disarmed"
    ARMING = "arming"
    ARMED = "armed"
    ESTOPPED = "estopped"
    FAULT = "fault"


@dataclass(frozen=True)
class MotionSettings:
    """How the arm may move and how it gives in. Torques are shares of each joint's own cap."""

    torque: Annotated[float, Field(gt=0, le=1)] = 1.0  # lowers every cap, for an arm that is not trusted yet
    v_max_rad_s: Annotated[float, Field(gt=0, le=5)] = 3.0
    a_max_rad_s2: Annotated[float, Field(gt=0, le=200)] = 40.0
    ramp_s: Annotated[float, Field(ge=0, le=5)] = 0.4
    arm_torque: Annotated[float, Field(ge=0, le=1)] = 0.1
    yield_torque: Annotated[float, Field(ge=0, le=1)] = 0.3
    yield_after_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    silence_s: Annotated[float, Field(gt=0, le=2)] = 0.5
    alarm_s: Annotated[float, Field(gt=0, le=10)] = 0.5
    max_temperature_c: Annotated[float, Field(gt=30, le=80)] = 65.0
    max_current_a: Annotated[float, Field(gt=0.1, le=3.3)] = 2.5  # lasting; stall is 2.7 A, the counter ends at 3.25 A


class BusLoop:
    """One arm at a fixed rate. `start`, then `tick` every period; `submit` and `command` come between ticks."""

    def __init__(
        self,
        driver: Driver,
        rate_hz: float = 100.0,
        motion: MotionSettings | None = None,
        allowed: Allowed | None = None,
        log: Log | None = None,
    ) -> None:
        self.driver = driver
        self.motion = motion or MotionSettings()
        self.dt_s = 1.0 / rate_hz
        self._margin_ns = round(WAIT_PERIODS / rate_hz * NS_PER_S)
        self.phase = Phase.DISARMED
        self.fault = ""
        self.refusals: Counter[Refusal] = Counter()
        self.faults: Counter[FaultReason] = Counter()
        self.foldbacks: Counter[FoldReason] = Counter()
        self.port_lost = False
        self.ticks = 0
        arm = driver.arm
        n = len(arm.joints)
        self._allowed = allowed
        self.log = log or Log()
        self._answered: dict[int, CommandReply] = {}
        self._limits = Limits(
            arm.low_rad, arm.high_rad, np.full(n, self.motion.v_max_rad_s), np.full(n, self.motion.a_max_rad_s2)
        )
        self._health = Health(self.motion.silence_s, self.motion.alarm_s, self.motion.max_temperature_c)
        self._caps = arm.torque_limit * self.motion.torque
        self._share = 0.0
        self._goal_stamp_ns = self._goal_written_ns = 0
        self._folded = self._applied_fold = Foldback.none(n)
        self._last: Reading | None = None
        self._fold_ticks = max(1, driver.slow_every)
        self._energised = False
        self._yielded = False
        self._target: Target | None = None
        self._fresh_ns = 0
        self._command = rest(np.zeros(n))
        self._alarm_from_ns = [0] * n
        self._refused_unarmed = False
        self._late_s = (0.0, 0.0)

    def start(self) -> None:
        """Meet the servos. An arm that is already energised is held where it is, yielding, until it is armed.

        Raises BusError when a servo is missing or wrong.
        """
        self.driver.connect()
        for finding in self.driver.findings:
            self.log.warn("bus.finding", problem=finding.problem, text=finding.text)
        self._energised = any(self.driver.energised())
        if self._energised:
            self._yield_torque()
            self.driver.hold_here()
            self.log.warn("bus.adopted", phase=self.phase)

    def recover(self) -> None:
        """Meet the servos again after the port was lost and reopened. The fault stays until a person clears it.

        Raises BusError when a servo is missing or wrong, or the port is lost again; the loop then stays blind.
        """
        self.start()
        self.port_lost = False
        self.log.warn("bus.port_back", energised=self._energised)

    def submit(self, goal: Goal, now_ns: int) -> bool:
        """Take a goal; False when the arm is not armed, which is counted as a refusal."""
        if self.phase is not Phase.ARMED:
            self._refused_unarmed = True
            return False
        validity_ns = min(goal.expires_ns - goal.stamp_ns, round(MAX_GOAL_AGE_S * NS_PER_S))
        arrive_ns = now_ns + round(max(validity_ns, 0) / GOAL_PERIODS * ARRIVE_PERIODS)
        expires_ns = min(goal.expires_ns, now_ns + validity_ns)
        self._target = Target(np.array(goal.position_rad, float), arrive_ns, expires_ns)
        self._goal_stamp_ns, self._goal_written_ns = goal.stamp_ns, 0
        return True

    def command(self, command: BusCommand, now_ns: int) -> CommandReply:
        """Carry out an operator's command and say what became of it; one sent again is answered, not repeated."""
        earlier = self._answered.get(command.command_id)
        if earlier is not None:
            return earlier
        act = {
            BusAction.ARM: self._arm,
            BusAction.DISARM: self._disarm,
            BusAction.ESTOP: self._estop,
            BusAction.CLEAR: self._clear,
        }[command.action]
        reason = self._carry_out(act, now_ns)
        self.log.info("bus.command", action=command.action, ok=not reason, phase=self.phase, reason=reason or "none")
        reply = CommandReply(command.command_id, not reason, reason)
        self._answered[command.command_id] = reply
        if len(self._answered) > REMEMBERED_COMMANDS:
            del self._answered[next(iter(self._answered))]
        return reply

    def tick(
        self, now_ns: int, missed_ticks: int = 0, lateness_s: float = 0.0, lateness: LatenessHistogram | None = None
    ) -> BusState:
        """One period: guard, goal out, servos in. The timing arguments are only reported.

        A lost port never raises: the state then says so, with no joint valid.
        """
        self.ticks += 1
        reasons: tuple[Refusal, ...] = ()
        reading = None
        if not self.port_lost:
            try:
                reasons = self._next_command(now_ns)
                reading = self._exchange(now_ns)
                self._goal_written_ns = self._goal_written_ns or now_ns + GOAL_WIRE_NS
            except PortLost as error:
                self._lose_port(error)
        if reading is None:
            reading = self._blind(now_ns)
        if lateness is not None and self.ticks % PERCENTILE_TICKS == 0:
            self._late_s = (lateness.percentile_ns(50) / NS_PER_S, lateness.percentile_ns(99) / NS_PER_S)
        return self._state(now_ns, reading, reasons, missed_ticks, lateness_s)

    @property
    def energised(self) -> bool:
        """Whether any servo may hold torque."""
        return self._energised

    def relax(self) -> None:
        """Refuse goals and hold the pose with lowered torque, the first half of a shutdown."""
        self.phase = Phase.DISARMED
        self._target = None
        if self._energised:
            self._yield_torque()

    def release(self) -> list[Trouble]:
        """Torque off everywhere, the second half; returns the joints that did not confirm."""
        self.phase = Phase.DISARMED
        trouble = self.driver.disarm()
        self._energised = bool(trouble)
        return trouble

    def _exchange(self, now_ns: int) -> Reading:
        """Torque and goal out, servos in, and what they say about themselves."""
        self._ramp_torque()
        following = self._energised and self.phase in (Phase.ARMING, Phase.ARMED)
        reading = self.driver.cycle(self._command.q_rad if following else None, margin_ns=self._margin_ns)
        self._last = reading
        if not following:
            self._command = rest(reading.position_rad)
        self._watch(reading, now_ns)
        if self.ticks % self._fold_ticks == 0:
            self._fold_back(reading)
        return reading

    def _blind(self, now_ns: int) -> Reading:
        """The last reading, older and not valid any more."""
        last = self._last
        return never(len(self.driver.arm.joints), now_ns) if last is None else last.aged(now_ns)

    def _lose_port(self, error: PortLost) -> None:
        self.port_lost = True
        self._target = None
        self._raise_fault(Fault(FaultReason.PORT_LOST, f"port lost: {error}"))
        if self.phase is not Phase.ESTOPPED:
            self.phase = Phase.FAULT

    def _carry_out(self, act: Callable[[int], str], now_ns: int) -> str:
        """What prevented a command, or nothing."""
        if self.port_lost:
            return self.fault
        try:
            return act(now_ns)
        except PortLost as error:
            self._lose_port(error)
            return self.fault

    def _arm(self, now_ns: int) -> str:
        if self.phase in (Phase.ESTOPPED, Phase.FAULT):
            return f"{self.phase.value}{': ' + self.fault if self.fault else ''}; clear it first"
        if self.phase in (Phase.ARMED, Phase.ARMING):
            return ""
        self._share = self.motion.arm_torque
        trouble = self.driver.arm_torque(self._shares())
        if trouble:
            self._energised = any(self.driver.energised())
            return "; ".join(map(str, trouble))
        self._energised = True
        self._yielded = False
        present = self.driver.fresh_position()
        self._command = rest(self._command.q_rad if present is None else present)
        self._target = None
        self._fresh_ns = now_ns
        self._alarm_from_ns = [0] * len(self._alarm_from_ns)
        self.phase = Phase.ARMING
        return ""

    def _disarm(self, now_ns: int) -> str:
        latched = self.phase in (Phase.ESTOPPED, Phase.FAULT)
        phase = self.phase
        trouble = self.release()
        if latched:
            self.phase = phase
        return "; ".join(map(str, trouble))

    def _estop(self, now_ns: int) -> str:
        self._stop(Phase.ESTOPPED)
        return ""

    def _clear(self, now_ns: int) -> str:
        trouble = self.driver.clear_overloads()
        if trouble:
            return "; ".join(map(str, trouble))
        if self.phase in (Phase.ESTOPPED, Phase.FAULT):
            self.phase = Phase.DISARMED
        self.fault = ""
        return ""

    def _stop(self, phase: Phase) -> None:
        """Give in at once without dropping: torque limit first, then stay where the arm is."""
        self.phase = phase
        self._target = None
        self._yield_torque()
        if self._energised:
            self.driver.hold_here()

    def _yield_torque(self) -> None:
        self._share = self.motion.yield_torque
        self.driver.limit_torque(self._shares())

    def _shares(self) -> F64:
        """Torque limit (J,) of each joint now: its cap, the ramp's share of it, and what heat or current take back."""
        self._applied_fold = self._folded
        return self._caps * self._share * self._folded.share

    def _fold_back(self, reading: Reading) -> None:
        """Take torque from joints that run hot or draw too much, and give it back later."""
        motion, before = self.motion, self._folded
        dt_s = self._fold_ticks * self.dt_s
        self._folded = fold(
            before, reading.temperature_c, reading.current_a, dt_s, motion.max_temperature_c, motion.max_current_a
        )
        for j, reason in newly_folded(before, self._folded):
            self.foldbacks[reason] += 1
            self.log.warn("bus.foldback", joint=self.driver.arm.names[j], reason=reason)
        if self._energised and not np.array_equal(self._folded.share, self._applied_fold.share):
            self.driver.limit_torque(self._shares())

    def _next_command(self, now_ns: int) -> tuple[Refusal, ...]:
        """Advance the commanded pose by a period; returns this tick's refusals."""
        reasons: tuple[Refusal, ...] = (Refusal.NOT_ARMED,) if self._refused_unarmed else ()
        self._refused_unarmed = False
        if self.phase in (Phase.ARMING, Phase.ARMED):
            self._command = check(self._target, now_ns, self.dt_s, self._command, self._limits, self._allowed)
            reasons += self._command.reasons
        if self.phase is Phase.ARMED:
            self._mind_staleness(now_ns)
        self.refusals.update(reasons)
        return reasons

    def _mind_staleness(self, now_ns: int) -> None:
        """Lower the torque in place when goals stay away; ramp it again from the present pose when they return."""
        if self._target is not None and now_ns <= self._target.expires_ns:
            self._fresh_ns = now_ns
            if self._yielded:
                self._yielded = False
                present = self.driver.fresh_position()
                self._command = rest(self._command.q_rad if present is None else present)
                self.log.warn("bus.resumed")
        elif not self._yielded and now_ns - self._fresh_ns > self.motion.yield_after_s * NS_PER_S:
            self._yielded = True
            self._yield_torque()
            self.log.warn("bus.yielded", stale_s=(now_ns - self._fresh_ns) / NS_PER_S)

    def _ramp_torque(self) -> None:
        if self.phase not in (Phase.ARMING, Phase.ARMED) or self._yielded:
            return
        if self._share < 1.0:
            ramp_ticks = max(1, round(self.motion.ramp_s / self.dt_s))
            every = max(1, ramp_ticks // RAMP_STEPS)
            if self.ticks % every == 0:
                self._share = min(1.0, self._share + every / ramp_ticks)
                self.driver.limit_torque(self._shares())
        elif self.phase is Phase.ARMING:
            self.phase = Phase.ARMED
            self.log.info("bus.armed", tick=self.ticks)

    def _watch(self, reading: Reading, now_ns: int) -> None:
        since = self._alarm_from_ns
        for j, alarms in enumerate(reading.alarms.tolist()):
            since[j] = (since[j] or now_ns) if alarms else 0
        for lost in self.driver.take_power_losses():
            self.log.error("bus.power_lost", what=lost)
            if self._energised:
                self._raise_fault(Fault(FaultReason.POWER_LOST, str(lost)))
                self._stop(Phase.FAULT)
        if self.phase not in (Phase.ARMING, Phase.ARMED):
            return
        lasting_s = np.array([(now_ns - s) / NS_PER_S if s else 0.0 for s in since])
        names = self.driver.arm.names
        fault = find_fault(names, reading.age_s, lasting_s, reading.alarms, reading.temperature_c, self._health)
        if fault is not None:
            self._raise_fault(fault)
            self._stop(Phase.FAULT)

    def _raise_fault(self, fault: Fault) -> None:
        self.fault = fault.text
        self.faults[fault.reason] += 1
        self.log.error("bus.fault", reason=fault.text, tick=self.ticks)

    def _state(
        self, now_ns: int, reading: Reading, reasons: tuple[Refusal, ...], missed_ticks: int, lateness_s: float
    ) -> BusState:
        return BusState(
            tick=self.ticks,
            stamp_ns=reading.stamp_ns,
            position_rad=reading.position_rad,
            velocity_rad_s=reading.velocity_rad_s,
            load=reading.load,
            valid=reading.valid,
            age_s=reading.age_s,
            alarms=reading.alarms,
            goal_rad=self._command.q_rad,
            armed=self.phase is Phase.ARMED,
            estopped=self.phase is Phase.ESTOPPED,
            fault=self.fault,
            refusals=tuple(r.value for r in reasons),
            missed_ticks=missed_ticks,
            lateness_s=lateness_s,
            late_p50_s=self._late_s[0],
            late_p99_s=self._late_s[1],
            temperature_c=reading.temperature_c,
            voltage_v=reading.voltage_v,
            current_a=reading.current_a,
            goal_stamp_ns=self._goal_stamp_ns,
            goal_written_ns=self._goal_written_ns if self._goal_stamp_ns else 0,
        )
