"""The servos as joints: one combined write and one bounded read per cycle, arming, disarming and yielding.

All arrays are (J,) in the arm's joint order, in rad. Ticks stay in here. Replies carry no sequence number, so after
every failed read the bus is drained and the order of ids rotated: a late reply can then not pass for a fresh one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.transport import BusError, Transport
from steadyhand_runtime.clock import Clock

F64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

MARGIN_NS = 4_000_000  # beyond wire time: USB frames, the servos' unknown reply gap, the scheduler
PATIENT_MARGIN_NS = 60_000_000  # where an answer matters more than the next tick: arming, stopping, disarming
FULL_TORQUE = 1000  # register 48 counts 0.1 %
CURRENT_A = 0.0065  # a count of register 69, memory table v220328
TRIES = 3

_TABLE = sts3215()
_FAST_ADDRESS = _TABLE["present_position"].address
_FAST_BYTES = _TABLE["present_load"].end - _FAST_ADDRESS
_SLOW_BYTES = _TABLE["present_current"].end - _FAST_ADDRESS
_GOAL = _TABLE["goal_position"].address
_TORQUE = _TABLE["torque_enable"].address
_LIMIT = _TABLE["torque_limit"].address
_FAST = struct.Struct("<HHH")
_SLOW = struct.Struct("<HHHBBBBBHH")  # position velocity load voltage temperature async status moving goal current


@dataclass(frozen=True, slots=True)
class Reading:
    """What the servos said. A joint that is not `valid` this cycle keeps its last good values, `age_s` old.

    `load` is in -1..1 of full duty; `alarms` are the status bits of the last reply; `current_a`, `temperature_c` and
    `voltage_v` come from the slow block and are zero until its first.
    """

    stamp_ns: int
    position_rad: F64
    velocity_rad_s: F64
    load: F64
    valid: Flags
    age_s: F64
    alarms: Ints
    current_a: F64
    temperature_c: F64
    voltage_v: F64

    @property
    def all_valid(self) -> bool:
        return bool(self.valid.all())


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
        self._transport = transport
        self.arm = arm
        self._calibration = calibration
        self._clock = clock
        self._byte_ns = protocol.BITS_PER_BYTE * 1_000_000_000 // baud
        self._slow_every = slow_every
        self.cycles = 0
        self.failed_reads = 0
        self.drained_bytes = 0
        self._rotation = 0
        ids = arm.ids
        self._orders = [tuple(ids[(i + r) % len(ids)] for i in range(len(ids))) for r in range(len(ids))]
        self._fast = [_Request(order, _FAST_ADDRESS, _FAST_BYTES) for order in self._orders]
        self._slow = [_Request(order, _FAST_ADDRESS, _SLOW_BYTES) for order in self._orders]
        self._goal_frame = bytearray(protocol.sync_write(_GOAL, [(i, b"\0\0") for i in ids]))
        self._goal_sum = sum(self._goal_frame[2:-1])
        n = len(ids)
        self._index = {servo_id: j for j, servo_id in enumerate(ids)}
        self._ticks = [0] * n
        self._speed = [0] * n
        self._load = [0] * n
        self._alarms = [0] * n
        self._good_ns = [0] * n
        self._current_a = np.zeros(n)
        self._temperature_c = np.zeros(n)
        self._voltage_v = np.zeros(n)

    def connect(self) -> None:
        """Check that every servo is there and is an STS3215 at its rated voltage. Raises BusError naming the fix."""
        self._transport.drain()
        models = self._query("model_number", "model_number")
        missing = [j.name for j, data in zip(self.arm.joints, models) if data is None]
        if missing:
            raise BusError(
                f"no answer from {', '.join(missing)}: check the arm's power supply, the cables between the servos and "
                f"that their ids are {self.arm.ids}"
            )
        for joint, data in zip(self.arm.joints, models):
            model = int.from_bytes(data or b"", "little")
            if model != _TABLE.model_number:
                raise BusError(
                    f"{joint.name} (id {joint.id}) is model {model}, not an {_TABLE.model} ({_TABLE.model_number})"
                )
        self.cycle(None, slow=True)

    def voltage_trouble(self) -> list[Trouble]:
        """Servos whose supply lies outside their own limits; none may be energised like that."""
        limits = self._query("max_voltage", "min_voltage")
        volts = self._query("present_voltage", "present_voltage")
        found = []
        for joint, limit, volt in zip(self.arm.joints, limits, volts):
            if limit is None or volt is None:
                found.append(Trouble(joint.name, joint.id, "no answer"))
            elif not limit[1] <= volt[0] <= limit[0]:
                reason = f"{volt[0] / 10} V is outside {limit[1] / 10}..{limit[0] / 10} V: wrong power supply"
                found.append(Trouble(joint.name, joint.id, reason))
        return found

    def cycle(self, goal_rad: F64 | None, slow: bool = False, margin_ns: int = MARGIN_NS) -> Reading:
        """Send a finite goal (None: none) and read every servo. Never raises for servos, only for a lost port."""
        self.cycles += 1
        slow = slow or (self._slow_every > 0 and self.cycles % self._slow_every == 0)
        request = (self._slow if slow else self._fast)[self._rotation]
        out = request.out if goal_rad is None else self._goal_bytes(goal_rad) + request.out
        data = self._ask(out, request.reader, margin_ns)
        stamp_ns = self._clock.now_ns()
        if request.reader.is_sound(data):
            self._take_sound(request.reader, data, stamp_ns)
            return self._reading(stamp_ns, None)
        valid = self._take_damaged(request.reader, data, stamp_ns)
        self._resynchronise()
        return self._reading(stamp_ns, valid)

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
            return [self._trouble(j, "no fresh position") for j in range(len(self.arm.joints)) if not self._fresh(j)]
        self._transport.write(self._goal_bytes(present))
        self._write_all(_TORQUE, [b"\x01"] * len(self.arm.joints))
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
            self._transport.write(self._goal_bytes(present))
        return present is not None

    def limit_torque(self, share: F64) -> None:
        """Set every servo's live torque limit, (J,) in 0..1. Takes effect at once and moves nothing."""
        counts = np.rint(np.clip(share, 0.0, 1.0) * FULL_TORQUE).astype(int).tolist()
        self._write_all(_LIMIT, [c.to_bytes(2, "little") for c in counts])

    def disarm(self) -> list[Trouble]:
        """Torque off at every servo, each asked by itself, whatever the others answer. Returns those not confirmed."""
        self._write_all(_TORQUE, [b"\x00"] * len(self.arm.joints))
        self._transport.drain()
        trouble = []
        for j, joint in enumerate(self.arm.joints):
            if not any(self._torque_off(joint.id) for _ in range(TRIES)):
                trouble.append(self._trouble(j, "did not confirm torque off: switch the arm's power off"))
        return trouble

    def energised(self) -> list[bool | None]:
        """Whether each servo's torque is on; None where it does not answer."""
        states = self._query("torque_enable", "torque_enable")
        return [None if s is None else s != b"\x00" for s in states]

    def clear_overloads(self) -> list[Trouble]:
        """Release latched overloads: torque off at those joints only. Returns joints that still report one."""
        for joint, alarms in zip(self.arm.joints, self._alarms):
            if alarms & protocol.Alarm.OVERLOAD:
                self._torque_off(joint.id)
        self.cycle(None)
        return [self._trouble(j, "overload stays") for j, a in enumerate(self._alarms) if a & protocol.Alarm.OVERLOAD]

    def close(self) -> None:
        self._transport.close()

    def _goal_bytes(self, goal_rad: F64) -> bytearray:
        """The prebuilt sync write with these goals and its checksum."""
        frame = self._goal_frame
        total = self._goal_sum
        at = 8  # header, id, length, instruction, address, size, first id
        for ticks in self._calibration.to_ticks(goal_rad):
            low, high = ticks & 0xFF, ticks >> 8
            frame[at] = low
            frame[at + 1] = high
            total += low + high
            at += 3
        frame[-1] = ~total & 0xFF
        return frame

    def _take_sound(self, reader: protocol.BlockReader, data: bytes, stamp_ns: int) -> None:
        stride = reader.size + protocol.OVERHEAD_BYTES
        for i, servo_id in enumerate(reader.ids):
            at = i * stride
            self._store(self._index[servo_id], data, at + 5, data[at + 4], reader.size, stamp_ns)

    def _take_damaged(self, reader: protocol.BlockReader, data: bytes, stamp_ns: int) -> Flags:
        """Keep what is sound; returns which joints were."""
        self.failed_reads += 1
        valid = np.zeros(len(self.arm.joints), bool)
        for frame in reader.sound_blocks(data):
            if frame is not None:
                j = self._index[frame.id]
                self._store(j, frame.params, 0, frame.code, reader.size, stamp_ns)
                valid[j] = True
        return valid

    def _store(self, j: int, data: bytes, at: int, alarms: int, size: int, stamp_ns: int) -> None:
        if size == _FAST_BYTES:
            position, speed, load = _FAST.unpack_from(data, at)
        else:
            position, speed, load, volts, celsius, _, status, _, _, current = _SLOW.unpack_from(data, at)
            alarms |= status
            self._voltage_v[j] = volts / 10.0
            self._temperature_c[j] = celsius
            self._current_a[j] = protocol.decode_sign_magnitude(current, 15) * CURRENT_A
        self._ticks[j] = position if position < 0x8000 else 0x8000 - position
        self._speed[j] = speed if speed < 0x8000 else 0x8000 - speed
        self._load[j] = load & 0x3FF if load < 0x400 else -(load & 0x3FF)
        self._alarms[j] = alarms
        self._good_ns[j] = stamp_ns

    def _reading(self, stamp_ns: int, valid: Flags | None) -> Reading:
        """`valid` None means that every joint is fresh."""
        n = len(self._ticks)
        if valid is None:
            valid, age_s = np.ones(n, bool), np.zeros(n)
        else:
            age_s = (stamp_ns - np.array(self._good_ns)) / 1e9
        signs = self._calibration.drive_sign
        return Reading(
            stamp_ns=stamp_ns,
            position_rad=self._calibration.to_rad(self._ticks),
            velocity_rad_s=self._calibration.to_rad_s(self._speed),
            load=np.array([s * v / FULL_TORQUE for s, v in zip(signs, self._load)]),
            valid=valid,
            age_s=age_s,
            alarms=np.array(self._alarms),
            current_a=self._current_a.copy(),
            temperature_c=self._temperature_c.copy(),
            voltage_v=self._voltage_v.copy(),
        )

    def _query(self, first: str, last: str) -> list[bytes | None]:
        """Registers `first`..`last` of every joint, None where a servo gave no sound answer in three tries."""
        address = _TABLE[first].address
        size = _TABLE[last].end - address
        answers: list[bytes | None] = [None] * len(self.arm.joints)
        for _ in range(TRIES):
            request = _Request(self._orders[self._rotation], address, size)
            data = self._ask(request.out, request.reader, PATIENT_MARGIN_NS)
            for frame in request.reader.sound_blocks(data):
                if frame is not None:
                    answers[self._index[frame.id]] = frame.params
            if None not in answers:
                break
            self._resynchronise()
        return answers

    def _ask(self, out: bytes | bytearray, reader: protocol.BlockReader, margin_ns: int) -> bytes:
        """Send a request and read its answer, past whole answers to earlier requests that come in late."""
        wire_ns = (len(out) + reader.expected_bytes) * self._byte_ns
        deadline_ns = self._clock.now_ns() + wire_ns + margin_ns
        self._transport.write(out)
        data = self._transport.read(reader.expected_bytes, deadline_ns)
        while len(data) == reader.expected_bytes and not reader.is_sound(data) and not any(reader.sound_blocks(data)):
            data = self._transport.read(reader.expected_bytes, deadline_ns)
        return data

    def _write_all(self, address: int, values: list[bytes]) -> None:
        self._transport.write(protocol.sync_write(address, zip(self.arm.ids, values)))

    def _torque_off(self, servo_id: int) -> bool:
        """One acknowledged torque-off; alarms in the answer do not matter."""
        acknowledgement = protocol.BlockReader((servo_id,), 0)
        request = protocol.write(servo_id, _TORQUE, b"\x00")
        if acknowledgement.is_sound(self._ask(request, acknowledgement, PATIENT_MARGIN_NS)):
            return True
        self._resynchronise()
        return False

    def _resynchronise(self) -> None:
        self.drained_bytes += self._transport.drain()
        self._rotation = (self._rotation + 1) % len(self._orders)

    def _fresh(self, j: int) -> bool:
        return self._good_ns[j] == max(self._good_ns)

    def _trouble(self, j: int, reason: str) -> Trouble:
        joint = self.arm.joints[j]
        return Trouble(joint.name, joint.id, reason)


class _Request:
    """A prebuilt sync read and the reader of its answer."""

    __slots__ = ("out", "reader")

    def __init__(self, ids: tuple[int, ...], address: int, size: int) -> None:
        self.out = protocol.sync_read(ids, address, size)
        self.reader = protocol.BlockReader(ids, size)
