"""Virtual STS3215 servos on one wire, byte for byte: `feed(bytes, now_ns) -> replies`, with wire time and faults.

Behaviour follows the Feetech manual and memory table v220328 and what was reported of real servos: a goal write turns
the torque on, present = (raw - homing offset) mod 4096, alarms ride on every reply without refusing anything, an EPROM
write under lock works until power-off. Ramps are followed by plants that can (`HandPlant`).
"""

from __future__ import annotations

import enum
import operator
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steadyhand_firmware.calibration import MID_TICKS, RAD_PER_TICK
from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus.protocol import BITS_PER_BYTE, BROADCAST, Frame, Instruction, split_frames
from steadyhand_runtime.sim.plant import HandPlant, Plant, PlantState, StillPlant
from steadyhand_runtime.sim.virtual_servo import BAUDS, VirtualServo

__all__ = ["BAUDS", "AfterSilent", "Plant", "PlantState", "Reply", "StillPlant", "VirtualChain", "VirtualServo"]

REPLY_GAP_NS = 50_000  # the real gap is unknown; results are reported against this
VELOCITY_PER_RAD_S = 1.0 / RAD_PER_TICK
BAUD_TOLERANCE = 0.025  # of an asynchronous receiver that samples in the middle of ten bits
COLLISION_LAG_SHARE = 0.4  # of reads where duplicate ids answered with corrupt or extra bytes, measured on real servos


class AfterSilent(enum.Enum):
    """What the later servos of a sync read do when one before them gave no answer."""

    ANSWER = "answer"
    MUTE = "mute"


class Reply(NamedTuple):
    """Bytes that have arrived at the host by `ready_ns`."""

    ready_ns: int
    data: bytes


_NOBODY: list[VirtualServo] = []
_readiness = operator.attrgetter("ready_ns")


class VirtualChain:
    """Servos on one wire. `feed` is the whole behaviour: bytes and time in, replies with their arrival time out.

    Ids may repeat: then all that have the id answer at once and their bytes collide. `baud` is what every servo is set
    to. Bytes that come at another speed, told by `listen_at`, are noise to a servo; without it all hear everything.
    """

    def __init__(
        self,
        plant: Plant,
        ids: Sequence[int] = (1, 2, 3, 4, 5, 6),
        baud: int = 1_000_000,
        reply_gap_ns: int = REPLY_GAP_NS,
        after_silent: AfterSilent = AfterSilent.ANSWER,
    ) -> None:
        """Raises ValueError for a baud rate that the servos do not have."""
        if baud not in BAUDS:
            raise ValueError(f"{baud} baud: the servos know {', '.join(map(str, BAUDS))}")
        table = sts3215()
        self.servos = [VirtualServo(i, table) for i in ids]
        for servo in self.servos:
            servo.eprom.burn("baud_rate", BAUDS.index(baud))
        self.after_silent = after_silent
        self.baud = baud
        self._plant = plant
        self._line_code: int | None = None
        self._byte_ns = BITS_PER_BYTE * 1_000_000_000 // baud
        self._gap_ns = reply_gap_ns
        self._pending = b""
        self._free_ns = 0
        self._heard: dict[int, list[VirtualServo]] = {}
        self._random = random.Random(0)

    def listen_at(self, baud: int) -> None:
        """The host's speed from now on, above 0: only servos that are set to it hear and answer."""
        near = [code for code, known in enumerate(BAUDS) if abs(known - baud) <= BAUD_TOLERANCE * known]
        self._line_code = near[0] if near else len(BAUDS)
        self._byte_ns = BITS_PER_BYTE * 1_000_000_000 // baud
        self._pending = b""
        self._free_ns = 0

    def feed(self, data: bytes | bytearray, now_ns: int) -> list[Reply]:
        """Take bytes that the host starts to send at `now_ns`; returns every reply they cause, in order of arrival."""
        self._free_ns = max(self._free_ns, now_ns) + len(data) * self._byte_ns
        frames, self._pending = split_frames(self._pending + data)
        replies: list[Reply] = []
        driven = fresh = False
        self._heard.clear()  # faults may have come since
        for frame in frames:
            if not fresh and frame.code != Instruction.SYNC_WRITE:
                driven |= self._measure(now_ns)
                fresh = True
            driven |= self._execute(frame, replies)
        if driven:
            self._drive()
        replies.sort(key=_readiness)
        return replies

    def refresh(self, now_ns: int) -> None:
        """Let every servo measure now, as it does before it answers, and act on what it measured."""
        self._measure(now_ns)
        self._drive()

    def power_cycle(self) -> None:
        """Every servo loses its volatile memory and with it the torque."""
        self._measure(self._free_ns)
        for servo in self.servos:
            servo.power_cycle()
        self._pending = b""
        self._drive()

    def place(self, index: int, raw_ticks: int) -> None:
        """Turn one joint by hand to where its encoder counts `raw_ticks`. Raises ValueError when that cannot be."""
        servo = self.servos[index]
        if not isinstance(self._plant, HandPlant):
            raise ValueError("these joints have mechanics of their own: no hand can place them")
        if servo.torque_on:
            raise ValueError(f"servo {index + 1} holds its position: switch its torque off first")
        self._plant.place_joint(index, (raw_ticks - MID_TICKS - servo.mount_ticks) * RAD_PER_TICK)

    def block(self, index: int, blocked: bool) -> None:
        """Hold one joint fast or let it go. Raises ValueError where the plant has no hand."""
        if not isinstance(self._plant, HandPlant):
            raise ValueError("these joints have mechanics of their own: no hand can hold them")
        self._plant.block(index, blocked)

    def _execute(self, frame: Frame, replies: list[Reply]) -> bool:
        """Carry out one instruction; True when goals, torque or limits may have changed."""
        code, params = frame.code, frame.params
        if code == Instruction.SYNC_READ and len(params) > 2:
            self._sync_read(params, replies)
            return False
        if code == Instruction.SYNC_WRITE and len(params) > 2:
            self._sync_write(params)
            return True
        changed = False
        answers: list[tuple[VirtualServo, bytes]] = []
        for servo in self._listeners(frame.id):
            answer, wrote = self._single(servo, frame)
            changed |= wrote
            if answer is not None and (frame.id != BROADCAST or code == Instruction.PING):
                answers.append((servo, answer))
        self._answer(answers, replies)
        self._heard.clear()  # an id or a speed may have been written
        return changed

    def _single(self, servo: VirtualServo, frame: Frame) -> tuple[bytes | None, bool]:
        """One servo's answer (None: silence) to an instruction for it, and whether it wrote."""
        code, params = frame.code, frame.params
        wrote_answer = b"" if servo.answers_writes else None
        if code == Instruction.PING:
            return b"", False
        if code == Instruction.READ and len(params) == 2:
            return servo.eprom.read(params[0], params[1], self._free_ns), False
        if code == Instruction.WRITE and len(params) > 1:
            servo.write(params[0], params[1:], self._free_ns)
            return wrote_answer, True
        if code == Instruction.REG_WRITE and len(params) > 1:
            servo.held = frame
            servo.memory[64] = 1
            return wrote_answer, False
        if code == Instruction.ACTION and servo.held is not None:
            servo.write(servo.held.params[0], servo.held.params[1:], self._free_ns)
            servo.held = None
            servo.memory[64] = 0
            return wrote_answer, True
        if code == Instruction.RESET:
            servo.factory_reset()
            return wrote_answer, True
        return None, False

    def _sync_read(self, params: bytes, replies: list[Reply]) -> None:
        address, size = params[0], params[1]
        for servo_id in params[2:]:
            servos = self._listeners(servo_id)
            if len(servos) == 1 and not servos[0].late_ns:
                self._send(servos[0].reply(servos[0].eprom.read(address, size, self._free_ns)), replies)
            elif servos:
                self._answer([(s, s.eprom.read(address, size, self._free_ns)) for s in servos], replies)
            elif self.after_silent is AfterSilent.MUTE:
                return

    def _sync_write(self, params: bytes) -> None:
        address, size = params[0], params[1]
        for at in range(2, len(params) - size, size + 1):
            for servo in self._listeners(params[at]):
                servo.write(address, params[at + 1 : at + 1 + size], self._free_ns)
        if address < 7:
            self._heard.clear()

    def _listeners(self, servo_id: int) -> list[VirtualServo]:
        """The servos that hear an instruction for this id and will obey it."""
        if not self._heard:
            line = self._line_code
            self._heard[BROADCAST] = here = [
                s for s in self.servos if not s.silent and (line is None or s.memory[6] == line)
            ]
            for servo in here:
                self._heard.setdefault(servo.memory[5], []).append(servo)
        return self._heard.get(servo_id, _NOBODY)

    def _answer(self, answers: Sequence[tuple[VirtualServo, bytes]], replies: list[Reply]) -> None:
        """Put answers on the wire: those that come on time at once, which more than one garbles, late ones alone."""
        packets: list[bytes] = []
        for servo, data in answers:
            packet = servo.reply(data)
            if servo.late_ns and servo.late_replies:
                wire_ns = self._gap_ns + len(packet) * self._byte_ns
                replies.append(Reply(self._free_ns + wire_ns + servo.take_lateness(), packet))
            else:
                packets.append(packet)
        if packets:
            self._send(packets[0] if len(packets) == 1 else self._collide(packets), replies)

    def _send(self, packet: bytes, replies: list[Reply]) -> None:
        self._free_ns += self._gap_ns + len(packet) * self._byte_ns
        replies.append(Reply(self._free_ns, packet))

    def _collide(self, packets: Sequence[bytes]) -> bytes:
        """What the line carries when several answer at once: each can only pull it low, and not all begin together."""
        lags = [0, *(int(self._random.random() < COLLISION_LAG_SHARE) for _ in packets[1:])]
        line = bytearray(b"\xff" * max(len(p) + lag for p, lag in zip(packets, lags)))
        for packet, lag in zip(packets, lags):
            for i, value in enumerate(packet, lag):
                line[i] &= value
        return bytes(line)

    def _measure(self, now_ns: int) -> bool:
        """Let every servo measure; True when the torque of one has changed by what it measured."""
        state = self._plant.read()
        positions: list[float] = state.position_rad.tolist()
        velocities: list[float] = state.velocity_rad_s.tolist()
        efforts: list[float] = state.effort.tolist()
        changed = False
        for servo, position, velocity, effort in zip(self.servos, positions, velocities, efforts):
            ticks = round(position / RAD_PER_TICK) + MID_TICKS
            load = int(1000 * min(max(effort, -1.0), 1.0)) if effort else 0
            changed |= servo.sense(ticks, int(velocity * VELOCITY_PER_RAD_S), load, now_ns)
        return changed

    def _drive(self) -> None:
        plant = self._plant
        for index, servo in enumerate(self.servos):
            if servo.ramp_written:
                servo.ramp_written = False
                if isinstance(plant, HandPlant):
                    plant.shape(index, *servo.ramp())
        goals = np.array([s.goal_rad() for s in self.servos])
        enabled = np.array([s.torque_on for s in self.servos])
        plant.drive(goals, enabled, np.array([s.torque_share() for s in self.servos]))
