"""The stacks that `steadyhand bench bus` compares, each used as its own documentation does, behind one interface.

Every cycle writes six goals (register 42, 2 bytes) and reads position, velocity and load (registers 56..61) of six
servos: the same bytes on the wire for each. The peers are imported from their unmodified releases. The bare loop is no
stack: it writes ready bytes and reads as many as are due, so it shows what this host and its pty leave of the wire.
"""

from __future__ import annotations

import importlib.util
import os
import select
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import serial

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.transport import SerialTransport
from steadyhand_runtime.clock import MonotonicClock

OURS, FEETECH, RUSTYPOT, BARE = "steadyhand", "feetech-servo-sdk", "rustypot", "bare read loop"
STACKS = (OURS, FEETECH, RUSTYPOT)
IDS = [1, 2, 3, 4, 5, 6]
READ_BYTES = 6
GOAL_BYTES = 2
RUSTYPOT_TIMEOUT_S = 0.02  # it has no default; what a 50 Hz loop can afford

_TABLE = sts3215()
_READ_AT = _TABLE["present_position"].address
_GOAL_AT = _TABLE["goal_position"].address
_BLOCK = struct.Struct("<HHH")
_MODULES = {OURS: "steadyhand_runtime", BARE: "steadyhand_runtime", FEETECH: "scservo_sdk", RUSTYPOT: "rustypot"}

Ticks = tuple[
    int | None, ...
]  # positions reported as fresh, in the order of IDS; None where the stack says it has none


class Stack(Protocol):
    """One stack on an open port. `goal` makes its own form of a goal and `ticks` reads its own form of an answer."""

    def goal(self, ticks: Sequence[int]) -> Any: ...

    def cycle(self, goal: Any) -> Any:
        """Write the goal (None: no goal) and read all servos; what is measured."""
        ...

    def ticks(self, answer: Any) -> Ticks: ...

    def close(self) -> None: ...


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(_MODULES[name]) is not None


def open_stack(name: str, port: str, baud: int) -> Stack:
    """The stack on a port, ready to cycle. Raises BusError, or what the peer raises, when the servos do not answer."""
    makers: dict[str, Callable[[str, int], Stack]] = {
        OURS: Ours, FEETECH: FeetechSdk, RUSTYPOT: Rustypot, BARE: BareLoop,
    }  # fmt: skip
    return makers[name](port, baud)


class Ours:
    """This project's driver; without its slow block, so that it reads what the others read."""

    def __init__(self, port: str, baud: int) -> None:
        clock = MonotonicClock()
        self._calibration = Calibration.default(len(IDS))
        transport = SerialTransport(port, baud, clock)
        self._driver = Driver(transport, load_arm(), self._calibration, clock, baud, slow_every=0)
        self._driver.connect()

    def goal(self, ticks: Sequence[int]) -> Any:
        return self._calibration.to_rad(list(ticks))

    def cycle(self, goal: Any) -> Any:
        return self._driver.cycle(goal)

    def ticks(self, answer: Any) -> Ticks:
        positions = self._calibration.to_ticks(answer.position_rad)
        return tuple(p if valid else None for p, valid in zip(positions, answer.valid.tolist()))

    def close(self) -> None:
        self._driver.close()


class BareLoop:
    """The least that a cycle can be: one write of ready bytes, one wait, one read; nothing is checked while it runs."""

    def __init__(self, port: str, baud: int) -> None:
        self._serial = serial.Serial(port, baud, exclusive=True)
        self._fd: int = self._serial.fileno()
        self._request = protocol.sync_read(IDS, _READ_AT, READ_BYTES)
        self._reply_bytes = len(IDS) * (protocol.OVERHEAD_BYTES + READ_BYTES)
        attributes: list[Any] = termios.tcgetattr(self._fd)
        attributes[6][termios.VMIN], attributes[6][termios.VTIME] = self._reply_bytes, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        self._wait = select.poll()
        self._wait.register(self._fd, select.POLLIN)

    def goal(self, ticks: Sequence[int]) -> Any:
        goals = [(i, t.to_bytes(GOAL_BYTES, "little")) for i, t in zip(IDS, ticks)]
        return protocol.sync_write(_GOAL_AT, goals) + self._request

    def cycle(self, goal: Any) -> Any:
        os.write(self._fd, goal or self._request)
        if not self._wait.poll(RUSTYPOT_TIMEOUT_S * 1000):
            return b""
        first = os.read(self._fd, self._reply_bytes)
        # The kernel hands a terminal's input out in pieces of 64; the rest is there.
        return first + os.read(self._fd, self._reply_bytes - len(first)) if len(first) < self._reply_bytes else first

    def ticks(self, answer: Any) -> Ticks:
        frames = {f.id: f.params for f in protocol.split_frames(answer)[0]}
        return tuple(_BLOCK.unpack(frames[i])[0] if i in frames else None for i in IDS)

    def close(self) -> None:
        self._serial.close()


class FeetechSdk:
    """feetech-servo-sdk, module scservo_sdk: GroupSyncWrite and GroupSyncRead; one result code covers all servos."""

    def __init__(self, port: str, baud: int) -> None:
        import scservo_sdk as sdk

        self._port = sdk.PortHandler(port)
        if not (self._port.openPort() and self._port.setBaudRate(baud)):
            raise OSError(f"{port}: scservo_sdk cannot open it")
        handler = sdk.PacketHandler(0)
        self._success = sdk.COMM_SUCCESS
        self._low, self._high = sdk.SCS_LOBYTE, sdk.SCS_HIBYTE
        self._write = sdk.GroupSyncWrite(self._port, handler, _GOAL_AT, GOAL_BYTES)
        self._read = sdk.GroupSyncRead(self._port, handler, _READ_AT, READ_BYTES)
        for servo_id in IDS:
            self._write.addParam(servo_id, [0, 0])
            self._read.addParam(servo_id)

    def goal(self, ticks: Sequence[int]) -> Any:
        return list(ticks)

    def cycle(self, goal: Any) -> Any:
        if goal is not None:
            for servo_id, ticks in zip(IDS, goal):
                self._write.changeParam(servo_id, [self._low(ticks), self._high(ticks)])
            self._write.txPacket()
        if self._read.txRxPacket() != self._success:
            return None
        get = self._read.getData
        return [(get(i, _READ_AT, 2), get(i, _READ_AT + 2, 2), get(i, _READ_AT + 4, 2)) for i in IDS]

    def ticks(self, answer: Any) -> Ticks:
        return (None,) * len(IDS) if answer is None else tuple(position for position, _, _ in answer)

    def close(self) -> None:
        self._port.closePort()


class Rustypot:
    """rustypot's Sts3215PyController; an exception covers all servos."""

    def __init__(self, port: str, baud: int) -> None:
        from rustypot import Sts3215PyController

        self._bus = Sts3215PyController(port, baud, RUSTYPOT_TIMEOUT_S)

    def goal(self, ticks: Sequence[int]) -> Any:
        return list(ticks)

    def cycle(self, goal: Any) -> Any:
        try:
            if goal is not None:
                self._bus.sync_write_raw_goal_position(IDS, goal)
            blocks = self._bus.sync_read_raw_data(IDS, _READ_AT, READ_BYTES)
        except (OSError, RuntimeError, ValueError):
            return None
        return [_BLOCK.unpack(bytes(block)) for block in blocks]

    def ticks(self, answer: Any) -> Ticks:
        return (None,) * len(IDS) if answer is None else tuple(position for position, _, _ in answer)

    def close(self) -> None:
        del self._bus
