"""Virtual STS3215 servos, byte for byte: `feed(bytes, now_ns) -> replies`, with wire time, EPROM semantics and faults.

Behaviour follows the Feetech manual and memory table v220328 and what was reported of real servos: a goal write turns
the torque on, present = (raw - homing offset) mod 4096, alarms ride on every reply without refusing anything, an EPROM
write under lock works until power-off. Speed and acceleration registers are stored; the motion is the plant's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from steadyhand_firmware.calibration import MID_TICKS, RAD_PER_TICK, TICKS_PER_TURN
from steadyhand_firmware.control_table import Access, ControlTable, sts3215
from steadyhand_runtime.bus.protocol import (
    BITS_PER_BYTE,
    BROADCAST,
    HEADER,
    Alarm,
    Frame,
    Instruction,
    decode_sign_magnitude,
    encode_sign_magnitude,
    split_frames,
)

F64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

REPLY_GAP_NS = 50_000  # the real gap is unknown; results are reported against this
MEMORY_BYTES = 128
STALL_CURRENT_COUNTS = 415  # 2.7 A at 6.5 mA a count
VELOCITY_PER_RAD_S = 1.0 / RAD_PER_TICK
OVERLOAD = int(Alarm.OVERLOAD)
VOLTAGE = int(Alarm.VOLTAGE)  # plain integers: enum arithmetic costs a microsecond each
FEEDBACK = struct.Struct("<HHHBBBBBHH")  # registers 56..70 of the memory table


class PlantState(NamedTuple):
    """Joints 1..J: angle from mid-travel, speed, and effort in -1..1 of stall torque."""

    position_rad: F64
    velocity_rad_s: F64
    effort: F64


class Plant(Protocol):
    """The mechanics behind the servos. Arrays are (J,) in bus order."""

    def read(self) -> PlantState: ...

    def drive(self, goal_rad: F64, enabled: Flags, torque_limit: F64) -> None: ...


class Reply(NamedTuple):
    """Bytes that have arrived at the host by `ready_ns`."""

    ready_ns: int
    data: bytes


class StillPlant:
    """Joints that follow their goals as a first-order lag, without mass or contact."""

    def __init__(self, joints: int = 6, time_constant_s: float = 0.05) -> None:
        self._position = np.zeros(joints)
        self._velocity = np.zeros(joints)
        self._goal = np.zeros(joints)
        self._stiff = np.zeros(joints, bool)
        self._time_constant_s = time_constant_s

    def read(self) -> PlantState:
        return PlantState(self._position.copy(), self._velocity.copy(), np.zeros_like(self._position))

    def drive(self, goal_rad: F64, enabled: Flags, torque_limit: F64) -> None:
        self._goal = np.array(goal_rad, float)
        self._stiff = np.asarray(enabled, bool) & (np.asarray(torque_limit) > 0.0)

    def advance(self, dt_s: float) -> None:
        share = -np.expm1(-dt_s / self._time_constant_s)
        step = np.where(self._stiff, share * (self._goal - self._position), 0.0)
        self._position = self._position + step
        self._velocity = step / dt_s

    def place(self, position_rad: Sequence[float] | F64) -> None:
        """Move the joints by hand."""
        self._position = np.array(position_rad, float)
        self._velocity = np.zeros_like(self._position)


class VirtualServo:
    """One servo's memory and faults.

    Faults are attributes: `silent` answers nothing, `corrupt_replies` damages that many next checksums,
    `late_ns` delays its replies, `voltage_v` and `temperature_c` are what it measures.
    """

    def __init__(self, servo_id: int, table: ControlTable) -> None:
        self.silent = False
        self.corrupt_replies = 0
        self.late_ns = 0
        self.voltage_v = 7.4
        self.temperature_c = 30
        self.mount_ticks = 0
        self.held: Frame | None = None
        self._table = table
        self._at = {r.name: r.address for r in table}
        self._eprom = [a for r in table if r.access is Access.EPROM for a in range(r.address, r.end)]
        self._writable = _writable_addresses(table)
        self._overloaded_since_ns: int | None = None
        self.memory = bytearray(MEMORY_BYTES)
        for register in table:
            raw = register.default
            if register.sign_bit is not None:
                raw = encode_sign_magnitude(raw, register.sign_bit)
            self.memory[register.address : register.end] = raw.to_bytes(register.size, "little")
        self.memory[self._at["id"]] = servo_id
        self._stored = bytes(self.memory)
        self.power_cycle()

    @property
    def id(self) -> int:
        return self.memory[self._at["id"]]

    @property
    def torque_on(self) -> bool:
        return self.memory[40] == 1

    @property
    def alarms(self) -> int:
        return self.memory[65]

    @property
    def answers_writes(self) -> bool:
        return self.memory[8] != 0

    def word(self, address: int) -> int:
        return self.memory[address] | self.memory[address + 1] << 8

    def goal_ticks(self) -> int:
        """The goal within the servo's own position limits; both limits 0 means none."""
        goal = decode_sign_magnitude(self.word(42), 15)
        low, high = self.word(9), self.word(11)
        return goal if low == high == 0 else min(max(goal, low), high)

    def offset_ticks(self) -> int:
        return decode_sign_magnitude(self.word(31), 11)

    def torque_share(self) -> float:
        """Live torque limit in 0..1; an overload trip leaves the protective torque."""
        share = min(self.word(48), 1000) / 1000.0
        return share * self.memory[34] / 100.0 if self.memory[65] & OVERLOAD else share

    def power_cycle(self) -> None:
        """Lose everything that is not in EPROM, and every EPROM write that was made under lock."""
        self.memory[:] = self._stored
        self.memory[48:50] = self.memory[16:18]
        self.held = None
        self._overloaded_since_ns = None

    def trip_overload(self) -> None:
        """Latch the overload alarm, as after `protection_time` at `overload_torque`."""
        self.memory[65] |= OVERLOAD

    def write(self, address: int, data: bytes, raw_ticks: int) -> None:
        """What a WRITE does; bytes that may not be written are ignored, and nothing is ever refused."""
        unlocked = self.memory[55] == 0
        for i, value in enumerate(data, address):
            if i in self._writable:
                self.memory[i] = value
        end = address + len(data)
        if address < 40 and unlocked:
            self._store(address, end)
        if address <= 43 and end > 42:
            self.memory[40] = 1
        if address <= 40 < end and not end > 42:
            self._torque_written(data[40 - address], raw_ticks)

    def watch_load(self, load: int, now_ns: int) -> None:
        """Latch an overload after `protection_time` at `overload_torque`; `load` is in 0.1 % of stall torque."""
        if not self.torque_on or abs(load) < self.memory[36] * 10:
            self._overloaded_since_ns = None
        elif self._overloaded_since_ns is None:
            self._overloaded_since_ns = now_ns
        elif now_ns - self._overloaded_since_ns >= self.memory[35] * 10_000_000:
            self.trip_overload()

    def factory_reset(self) -> None:
        """RESET: defaults with the id kept and the offset cleared."""
        fresh = VirtualServo(self.id, self._table)
        self.memory[:] = fresh.memory
        self._stored = fresh._stored

    def reply(self, data: bytes) -> bytes:
        """A status packet with the present alarms, damaged when told to."""
        memory = self.memory
        servo_id, length, alarms = memory[5], len(data) + 2, memory[65]
        check = ~(servo_id + length + alarms + sum(data)) & 0xFF
        if self.corrupt_replies:
            self.corrupt_replies -= 1
            check ^= 0x55
        return b"%b%c%c%c%b%c" % (HEADER, servo_id, length, alarms, data, check)

    def _store(self, address: int, end: int) -> None:
        stored = bytearray(self._stored)
        for i in self._eprom:
            if address <= i < end:
                stored[i] = self.memory[i]
        self._stored = bytes(stored)

    def _torque_written(self, value: int, raw_ticks: int) -> None:
        if value == 0:
            self.memory[65] &= ~OVERLOAD & 0xFF
            self._overloaded_since_ns = None
        elif value == 128:
            offset = raw_ticks % TICKS_PER_TURN - MID_TICKS
            self.memory[31:33] = encode_sign_magnitude(max(offset, -2047), 11).to_bytes(2, "little")
            self.memory[40] = 0


class VirtualChain:
    """Servos on one wire. `feed` is the whole behaviour: bytes and time in, replies with their arrival time out."""

    def __init__(
        self,
        plant: Plant,
        ids: Sequence[int] = (1, 2, 3, 4, 5, 6),
        baud: int = 1_000_000,
        reply_gap_ns: int = REPLY_GAP_NS,
    ) -> None:
        table = sts3215()
        self.servos = [VirtualServo(i, table) for i in ids]
        self._plant = plant
        self._byte_ns = BITS_PER_BYTE * 1_000_000_000 // baud
        self._gap_ns = reply_gap_ns
        self._pending = b""
        self._free_ns = 0
        self._raw = [MID_TICKS] * len(ids)

    def feed(self, data: bytes | bytearray, now_ns: int) -> list[Reply]:
        """Take bytes that the host starts to send at `now_ns`; returns every reply they cause, in order."""
        self._free_ns = max(self._free_ns, now_ns) + len(data) * self._byte_ns
        frames, self._pending = split_frames(self._pending + data)
        replies: list[Reply] = []
        driven = False
        fresh = False
        for frame in frames:
            if not fresh and frame.code != Instruction.SYNC_WRITE:
                self._measure(now_ns)
                fresh = True
            driven |= self._execute(frame, replies)
        if driven:
            self._drive()
        return replies

    def power_cycle(self) -> None:
        """Every servo loses its volatile memory and with it the torque."""
        for servo in self.servos:
            servo.power_cycle()
        self._pending = b""
        self._drive()

    def _execute(self, frame: Frame, replies: list[Reply]) -> bool:
        """Carry out one instruction; True when goals, torque or limits may have changed."""
        code = frame.code
        if code == Instruction.SYNC_READ and len(frame.params) > 2:
            self._sync_read(frame.params, replies)
            return False
        if code == Instruction.SYNC_WRITE and len(frame.params) > 2:
            self._sync_write(frame.params)
            return True
        changed = False
        for index, servo in enumerate(self.servos):
            if frame.id not in (servo.id, BROADCAST) or servo.silent:
                continue
            answer, wrote = self._single(servo, index, frame)
            changed |= wrote
            if answer is not None and (frame.id != BROADCAST or code == Instruction.PING):
                self._send(servo, answer, replies)
        return changed

    def _single(self, servo: VirtualServo, index: int, frame: Frame) -> tuple[bytes | None, bool]:
        """One servo's answer (None: silence) to an instruction for it, and whether it wrote."""
        code, params = frame.code, frame.params
        wrote_answer = b"" if servo.answers_writes else None
        if code == Instruction.PING:
            return b"", False
        if code == Instruction.READ and len(params) == 2:
            return bytes(servo.memory[params[0] : params[0] + params[1]]), False
        if code == Instruction.WRITE and len(params) > 1:
            servo.write(params[0], params[1:], self._raw[index])
            return wrote_answer, True
        if code == Instruction.REG_WRITE and len(params) > 1:
            servo.held = frame
            servo.memory[64] = 1
            return wrote_answer, False
        if code == Instruction.ACTION and servo.held is not None:
            servo.write(servo.held.params[0], servo.held.params[1:], self._raw[index])
            servo.held = None
            servo.memory[64] = 0
            return wrote_answer, True
        if code == Instruction.RESET:
            servo.factory_reset()
            return wrote_answer, True
        return None, False

    def _sync_read(self, params: bytes, replies: list[Reply]) -> None:
        start, stop = params[0], params[0] + params[1]
        by_id = {s.id: s for s in self.servos}
        for servo_id in params[2:]:
            servo = by_id.get(servo_id)
            if servo is not None and not servo.silent:
                self._send(servo, bytes(servo.memory[start:stop]), replies)

    def _sync_write(self, params: bytes) -> None:
        address, size = params[0], params[1]
        by_id = {s.id: i for i, s in enumerate(self.servos)}
        for at in range(2, len(params) - size, size + 1):
            index = by_id.get(params[at])
            if index is not None and not self.servos[index].silent:
                self.servos[index].write(address, params[at + 1 : at + 1 + size], self._raw[index])

    def _send(self, servo: VirtualServo, data: bytes, replies: list[Reply]) -> None:
        packet = servo.reply(data)
        self._free_ns += self._gap_ns + len(packet) * self._byte_ns
        replies.append(Reply(self._free_ns + servo.late_ns, packet))

    def _measure(self, now_ns: int) -> None:
        """Bring registers 56..70 of every servo up to date."""
        state = self._plant.read()
        raw_ticks: list[float] = (np.rint(state.position_rad / RAD_PER_TICK) + MID_TICKS).tolist()
        velocities: list[float] = (state.velocity_rad_s * VELOCITY_PER_RAD_S).tolist()
        efforts: list[float] = state.effort.tolist()
        for i, servo in enumerate(self.servos):
            raw = int(raw_ticks[i]) + servo.mount_ticks
            self._raw[i] = raw % TICKS_PER_TURN
            load = int(1000 * min(max(efforts[i], -1.0), 1.0))
            speed = int(velocities[i])
            memory = servo.memory
            servo.watch_load(load, now_ns)
            alarms = memory[65] & ~VOLTAGE
            decivolts = int(servo.voltage_v * 10 + 0.5)
            if not memory[15] <= decivolts <= memory[14]:
                alarms |= VOLTAGE
            current = abs(load) * STALL_CURRENT_COUNTS // 1000
            FEEDBACK.pack_into(
                memory,
                56,
                (raw - servo.offset_ticks()) % TICKS_PER_TURN,
                speed if speed >= 0 else -speed | 0x8000,
                load if load >= 0 else -load | 0x400,
                decivolts,
                servo.temperature_c,
                memory[64],
                alarms,
                abs(speed) > memory[80],
                servo.word(42),
                current if load >= 0 else current | 0x8000,
            )

    def _drive(self) -> None:
        goals = [(s.goal_ticks() + s.offset_ticks() - s.mount_ticks - MID_TICKS) * RAD_PER_TICK for s in self.servos]
        enabled = np.array([s.torque_on for s in self.servos])
        limits = np.array([s.torque_share() for s in self.servos])
        self._plant.drive(np.array(goals), enabled, limits)


def _writable_addresses(table: ControlTable) -> frozenset[int]:
    return frozenset(a for r in table if r.access is not Access.READ for a in range(r.address, r.end))
