"""The servos as joints: one combined write and one bounded read per cycle, arming, disarming and yielding.

All arrays are (J,) in the arm's joint order, in rad. Ticks stay in here. What may count as fresh is the ledger's to
say, who is asked the roster's, what is read the schedule's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import counters, kernels, protocol, schedule, verify
from steadyhand_runtime.bus.conversation import Conversation, Request, Round
from steadyhand_runtime.bus.counters import ServoCounters
from steadyhand_runtime.bus.limits import TorqueLimits
from steadyhand_runtime.bus.reading import ALARMS, GOOD_NS, LIMIT, ROWS, VALID, Reading, snapshot
from steadyhand_runtime.bus.roster import Roster
from steadyhand_runtime.bus.schedule import Block
from steadyhand_runtime.bus.survey import Finding
from steadyhand_runtime.bus.transport import Transport
from steadyhand_runtime.bus.verify import PATIENT_MARGIN_NS, TRIES
from steadyhand_runtime.clock import Clock

F64 = npt.NDArray[np.float64]

MARGIN_NS = 4_000_000  # beyond wire time: USB frames, the servos' unknown reply gap, the scheduler
PROBE_MARGIN_NS = 2_000_000  # for a servo that is probably dead
CLEAR_TRIES = 5  # reads until an overload must have gone after torque off
MEASURED_CYCLES = 15

_TABLE = sts3215()
_GOAL = _TABLE["goal_position"].address
_TORQUE = _TABLE["torque_enable"].address
_LIMIT = _TABLE["torque_limit"].address
_FAST = Block.FAST

__all__ = ["MARGIN_NS", "PATIENT_MARGIN_NS", "Driver", "Reading", "Trouble"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """A joint that did not do what it was told, and why."""

    joint: str
    servo_id: int
    reason: str

    def __str__(self) -> str:
        return f"{self.joint} (id {self.servo_id}): {self.reason}"


class Driver:
    """Owns the conversation with one arm's servos. Not thread-safe: one owner."""

    def __init__(
        self,
        transport: Transport,
        arm: Arm,
        calibration: Calibration,
        clock: Clock,
        baud: int = 1_000_000,
        slow_every: int = 20,
    ) -> None:
        self.arm = arm
        self.cycles = 0
        self.failed_reads = 0
        self.findings: tuple[Finding, ...] = ()
        self._clock = clock
        self._baud = baud
        self.slow_every = slow_every
        ids = arm.ids
        self._joints = {servo_id: j for j, servo_id in enumerate(ids)}
        self._talk = Conversation(transport, self._joints, clock, baud)
        self._roster = Roster(ids)
        self._scale = kernels.make_scale(calibration)
        self._table = np.zeros((ROWS, len(ids)))
        self._goal = np.zeros(len(ids))
        self._goals_frame = protocol.sync_write(_GOAL, [(i, b"\0\0") for i in ids])
        self._request = lru_cache(maxsize=512)(self._make_request)
        self._plan: list[Request] = []
        self._planned_for: tuple[int, ...] = ()
        self._limits = TorqueLimits(len(ids))

    @property
    def drained_bytes(self) -> int:
        """Bytes that came and answered nothing."""
        return self._talk.discarded_bytes

    def counters(self) -> tuple[ServoCounters, ...]:
        """What went wrong so far, per servo in joint order."""
        return counters.snapshot(self.arm, self._talk.tallies)

    def attach(self, transport: Transport) -> None:
        """Go on over a port that was opened anew; `connect` must follow."""
        self._talk.attach(transport)

    def connect(self) -> None:
        """Check that every servo is there, alone with its id, and an STS3215; `findings` keeps what is only odd.

        Raises NobodyAnswers, or BusError naming who is wrong and the fix.
        """
        kernels.warm(self._scale)
        self._talk.transport.drain()
        self._roster = Roster(self.arm.ids)
        seen = verify.identify(self._talk, self.arm.ids, self._baud)
        self.findings = tuple(verify.problems(self.arm, seen, self._baud))
        self._remember_power_up_limits()
        self.cycle(None, slow=True)

    def measure_hz(self) -> float:
        """The highest rate that this wire carries, from a burst of read-only cycles of the longest block."""
        times_ns = []
        for _ in range(MEASURED_CYCLES):
            start_ns = self._clock.now_ns()
            self.cycle(None, slow=True)
            times_ns.append(self._clock.now_ns() - start_ns)
        return schedule.achievable_hz(times_ns, len(self.arm.ids), self._baud)

    def voltage_trouble(self) -> list[Trouble]:
        """Servos whose supply lies outside their own limits; none may be energised like that."""
        limits = self._query("max_voltage", "min_voltage")
        volts = self._query("present_voltage", "present_voltage")
        found = []
        for j, (limit, volt) in enumerate(zip(limits, volts)):
            if limit is None or volt is None:
                found.append(self._trouble(j, "no answer"))
            elif not limit[1] <= volt[0] <= limit[0]:
                reason = f"{volt[0] / 10} V is outside {limit[1] / 10}..{limit[0] / 10} V: wrong power supply"
                found.append(self._trouble(j, reason))
        return found

    def cycle(self, goal_rad: F64 | None, slow: bool = False, margin_ns: int = MARGIN_NS) -> Reading:
        """Send a finite goal (None: none) and read every servo. Never raises for servos, only for a lost port."""
        self.cycles += 1
        request = self._next_request(slow, margin_ns)
        if request is None:
            return self._without_answer(goal_rad, margin_ns)
        out: bytes | bytearray = request.out
        if goal_rad is not None:
            self._fill(request.goals, goal_rad)
            out = request.with_goals
        talk = self._talk
        wanted = request.expected_bytes
        deadline_ns = self._clock.now_ns() + (len(out) + wanted) * talk.byte_ns + margin_ns
        talk.transport.write(out)
        # An answer that began and broke off leaves time to ask again; one that has not begun is only late.
        half_ns = deadline_ns - margin_ns // 2
        data = talk.transport.read(wanted, half_ns) or talk.transport.read(wanted, deadline_ns)
        stamp_ns = self._clock.now_ns()
        found = kernels.UNSOUND
        if len(data) == wanted:
            found = kernels.take_blocks(
                np.frombuffer(data, np.uint8), request.layout, request.address, request.size, self._table, self._scale,
                stamp_ns,
            )  # fmt: skip
        if found == kernels.UNSOUND:
            stamp_ns = self._mend(request, data, half_ns, deadline_ns)
        elif found == kernels.SOUND_WITH_NEWS:
            self._see_alarms()
        if self._roster.troubled:
            self._tend(found != kernels.UNSOUND, request, margin_ns)
        if request.address == _LIMIT:
            self._audit()
        return snapshot(self._table, stamp_ns)

    def arm_torque(self, torque_limit: F64) -> list[Trouble]:
        """Energise without a jump: limit low, goal := fresh present, torque on. Returns what prevented it.

        `torque_limit` (J,) in 0..1 is the low limit to start with; the caller ramps it with `limit_torque`.
        """
        trouble = self.voltage_trouble()
        if trouble:
            return trouble
        self.limit_torque(torque_limit)
        present = self.fresh_position()
        if present is None:
            return [self._trouble(j, "no fresh position") for j in range(len(self._goal)) if not self._fresh(j)]
        self._limits.take_losses()
        self._write_goal(present)
        self._write_all(_TORQUE, [b"\x01"] * len(self._goal))
        states = self._query("torque_enable", "torque_enable")
        trouble = [self._trouble(j, "torque did not come on") for j, s in enumerate(states) if s != b"\x01"]
        if trouble:
            self.disarm()
        return trouble

    def fresh_position(self) -> F64 | None:
        """Angles (J,) that every servo reported just now, or None."""
        for _ in range(TRIES):
            reading = self.cycle(None, margin_ns=PATIENT_MARGIN_NS)
            if reading.all_valid:
                return reading.position_rad
        return None

    def hold_here(self) -> bool:
        """Make the present position the goal of every servo. It energises them; False when positions are not fresh."""
        present = self.fresh_position()
        if present is not None:
            self._write_goal(present)
        return present is not None

    def limit_torque(self, share: F64) -> None:
        """Set every servo's live torque limit, (J,) in 0..1. Takes effect at once and moves nothing."""
        self._write_all(_LIMIT, self._limits.write(share))

    def take_power_losses(self) -> list[Trouble]:
        """Servos found with their power-up settings since the last call; their limits have been set again."""
        reason = "lost its power and came back: check its cable"
        return [self._trouble(j, reason) for j in self._limits.take_losses()]

    def disarm(self) -> list[Trouble]:
        """Torque off at every servo, each asked by itself, whatever the others answer. Returns those not confirmed."""
        self._write_all(_TORQUE, [b"\x00"] * len(self._goal))
        trouble = []
        for j, servo_id in enumerate(self.arm.ids):
            if not self._torque_off(servo_id):
                trouble.append(self._trouble(j, "did not confirm torque off: switch the arm's power off"))
        return trouble

    def energised(self) -> list[bool | None]:
        """Whether each servo's torque is on; None where it does not answer."""
        states = self._query("torque_enable", "torque_enable")
        return [None if s is None else s != b"\x00" for s in states]

    def clear_overloads(self) -> list[Trouble]:
        """Release latched overloads: torque off at those joints only. Returns joints that still report one.

        The joint stays limp until the arm is armed again, which sets its goal to where it is and ramps the torque.
        """
        overload = protocol.Alarm.OVERLOAD
        for servo_id, alarms in zip(self.arm.ids, self._alarms()):
            if alarms & overload:
                self._torque_off(servo_id)
        for _ in range(CLEAR_TRIES):
            self.cycle(None)
            if not any(a & overload for a in self._alarms()):
                break
        return [self._trouble(j, "overload stays") for j, a in enumerate(self._alarms()) if a & overload]

    def close(self) -> None:
        self._talk.transport.close()

    def _next_request(self, slow: bool, margin_ns: int) -> Request | None:
        """What to read now: the block that is due, longer while its length could be mistaken; None: nothing."""
        plan = self._plan
        if not (slow or self._talk.ledger or self._roster.troubled) and self._planned_for is self._roster.listed:
            return plan[self.cycles % len(plan)]
        return self._careful_request(Block.SLOW if slow else schedule.block_of(self.cycles, self.slow_every), margin_ns)

    def _careful_request(self, block: Block, margin_ns: int) -> Request | None:
        """As above while replies are owed or servos are silent, when the question may also have to wait."""
        roster, talk, size = self._roster, self._talk, block.size
        if talk.ledger:
            roster.heard_late(talk.listen(), self._clock.now_ns())
            free = talk.ledger.free_size(roster.listed, size)
            if free is None:
                roster.leave_out(max(roster.listed, key=talk.ledger.owed_by), self._clock.now_ns())
                return None
            size = free
        if roster.troubled and margin_ns < PATIENT_MARGIN_NS and not roster.may_ask(self._clock.now_ns()):
            return None
        if not roster.listed:
            return None
        if self._planned_for is not roster.listed:
            self._replan()
        return self._request(roster.listed, block.address, size)

    def _replan(self) -> None:
        """The requests of `slow_every` cycles for those who are listed now."""
        blocks = [schedule.block_of(cycle, self.slow_every) for cycle in range(max(1, self.slow_every))]
        self._planned_for = self._roster.listed
        self._plan = [self._request(self._planned_for, b.address, b.size) for b in blocks]

    def _without_answer(self, goal_rad: F64 | None, margin_ns: int) -> Reading:
        """A cycle that asks nobody."""
        if goal_rad is not None:
            self._write_goal(goal_rad)
        stamp_ns = self._clock.now_ns()
        kernels.grow_older(self._table, stamp_ns)
        if self._roster.anyone_absent:
            self._probe(margin_ns // 2)
        return snapshot(self._table, stamp_ns)

    def _mend(self, request: Request, data: bytes, half_ns: int, deadline_ns: int) -> int:
        """Make the best of an answer that is late or damaged, with one more question if time is left; the stamp."""
        self.failed_reads += 1
        talk = self._talk
        answers = Round(talk)
        answers.take(request, data)
        answers.wait(request, half_ns)
        again = self._worth_asking(answers)
        size = talk.ledger.free_size(again, request.size + 1)
        if again and size is not None:
            answers.send(retry := self._request(again, request.address, size), retry.out, deadline_ns - half_ns)
        else:
            answers.wait(request, deadline_ns)
        answers.end()
        stamp_ns = self._clock.now_ns()
        kernels.grow_older(self._table, stamp_ns)
        answers.store(request.address, self._table, self._scale, stamp_ns)
        self._roster.note(answers.frames, stamp_ns)
        self._see_alarms()
        return stamp_ns

    def _worth_asking(self, answers: Round) -> tuple[int, ...]:
        """Whom to ask again in this cycle, behind the first one missing: it may have muted the others.

        Nobody while replies are only late, which more questions would make later.
        """
        if answers.strays or not (answers.frames or answers.has_rubbish):
            return ()
        missing = answers.missing
        return tuple(i for i in (*missing[1:], *missing[:1]) if self._roster.may_retry(i))

    def _tend(self, sound: bool, request: Request, margin_ns: int) -> None:
        """Keep the roster: everybody answered, or somebody who is left out may be asked."""
        if sound:
            self._roster.note(request.ids, self._clock.now_ns())
        if self._roster.anyone_absent:
            self._probe(margin_ns // 2)

    def _probe(self, margin_ns: int) -> None:
        """Ask one absent servo by itself, and list it again once it is known to be the right one."""
        now_ns = self._clock.now_ns()
        servo_id = self._roster.due(now_ns)
        if servo_id is None:
            return
        size = self._talk.ledger.free_size((servo_id,), _FAST.size)
        if size is not None:
            answers = Round(self._talk)
            request = self._request((servo_id,), _FAST.address, size)
            answers.send(request, request.out, margin_ns)
            answers.end()
            if servo_id in answers.frames and self._is_welcome(servo_id, now_ns):
                answers.store(_FAST.address, self._table, self._scale, self._clock.now_ns())
                self._see_alarms()
                self._roster.welcome(servo_id, now_ns)
                self._talk.tallies[self._joints[servo_id]].recoveries += 1
                return
        self._roster.postpone(servo_id, now_ns)

    def _is_welcome(self, servo_id: int, now_ns: int) -> bool:
        """Whether a servo that answers again is still the right one; its torque limit is set before it is listed."""
        if not self._roster.was_long_away(servo_id, now_ns):
            return True
        if verify.look_again(self._talk, servo_id):
            return False
        self._limit_again(self._joints[servo_id])
        return True

    def _audit(self) -> None:
        """Compare the limits just read with the ones written; a servo with its power-up limit had lost its power."""
        for j in self._limits.check(self._table[LIMIT].astype(int).tolist(), self._table[VALID].tolist()):
            self._limit_again(j)
            self._talk.tallies[j].power_losses += self._limits.lost_power(j)

    def _limit_again(self, joint: int) -> None:
        data = self._limits.bytes_of(joint)
        if data is not None:
            self._talk.tell_one(self.arm.ids[joint], _LIMIT, data, PROBE_MARGIN_NS)

    def _remember_power_up_limits(self) -> None:
        for j, data in enumerate(self._query("max_torque", "max_torque")):
            if data is not None:
                self._limits.power_up[j] = int.from_bytes(data, "little")

    def _see_alarms(self) -> None:
        for tally, bits in zip(self._talk.tallies, self._alarms()):
            if tally.alarm_bits != bits:
                tally.see_alarms(bits)

    def _alarms(self) -> list[int]:
        return [int(bits) for bits in self._table[ALARMS].tolist()]

    def _query(self, first: str, last: str) -> list[bytes | None]:
        """Registers `first`..`last` of every joint, None where a servo gave no sound answer in three tries."""
        address = _TABLE[first].address
        size = _TABLE[last].end - address
        found = verify.query(self._talk, self.arm.ids, address, size)
        return [found[i].params[:size] if i in found else None for i in self.arm.ids]

    def _fill(self, frame: kernels.U8, goal_rad: F64) -> None:
        self._goal[:] = goal_rad
        if not kernels.fill_goals(frame, self._goal, self._scale):
            raise ValueError("a goal must be finite")

    def _write_goal(self, goal_rad: F64) -> None:
        frame = bytearray(self._goals_frame)
        self._fill(np.frombuffer(frame, np.uint8), goal_rad)
        self._talk.tell(frame)

    def _write_all(self, address: int, values: Sequence[bytes]) -> None:
        self._talk.tell(protocol.sync_write(address, zip(self.arm.ids, values)))

    def _torque_off(self, servo_id: int) -> bool:
        """Torque off at one servo, confirmed by reading it back; alarms in its answers do not matter."""
        for _ in range(TRIES):
            self._talk.tell_one(servo_id, _TORQUE, b"\x00", MARGIN_NS)
            answer = self._talk.ask((servo_id,), _TORQUE, 1, PATIENT_MARGIN_NS).get(servo_id)
            if answer is not None and answer.params[0] == 0:
                return True
        return False

    def _make_request(self, ids: tuple[int, ...], address: int, size: int) -> Request:
        return self._talk.request(ids, address, size, self._goals_frame)

    def _fresh(self, j: int) -> bool:
        return bool(self._table[GOOD_NS, j] == self._table[GOOD_NS].max())

    def _trouble(self, j: int, reason: str) -> Trouble:
        joint = self.arm.joints[j]
        return Trouble(joint.name, joint.id, reason)
