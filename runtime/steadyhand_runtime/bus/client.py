"""Conversations with one servo at a time, for setting an arm up: ping, read, and write with acknowledgement.

Every exchange has a deadline from wire time and ends in a silent bus when it failed. Alarms ride on answers and never
mean a refusal. The cyclic traffic of a running arm is the driver's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from steadyhand_firmware.control_table import ControlTable, Register, sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.transport import BusError, Transport
from steadyhand_runtime.clock import NS_PER_S, Clock

QUICK_NS = 5_000_000  # beyond wire time where most ids are expected to be silent: a few USB frames
PATIENT_NS = 60_000_000  # beyond wire time where an answer is expected, on a machine that may be busy
TRIES = 3
BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)  # by value of register 6
FEEDBACK = ("present_position", "present_current")  # the block in which two servos of one id differ


class NoAnswer(BusError):
    """A servo that gave no sound answer."""

    def __init__(self, servo_id: int) -> None:
        super().__init__(
            f"no answer from servo {servo_id}: check the arm's power and cables, then look with `steadyhand bus scan`"
        )
        self.servo_id = servo_id


@dataclass(frozen=True, slots=True)
class Answer:
    """A sound answer: its data and the alarm bits that rode on it."""

    data: bytes
    alarms: int


@dataclass(frozen=True, slots=True)
class Quality:
    """How many of `rounds` equal reads of one id brought damaged or extra bytes."""

    rounds: int
    noisy: int

    @property
    def garbled(self) -> bool:
        """Whether bytes are damaged more often than a good cable ever does (two servos on one id: about 40 %)."""
        return self.noisy >= 2 and self.noisy * 10 >= self.rounds


class Client:
    """One owner's conversations over one port. `open_at` opens the port at a baud rate; tests give virtual servos.

    `stray_bytes` counts everything that came in and belonged to no answer.
    """

    def __init__(self, open_at: Callable[[int], Transport], clock: Clock, baud: int = BAUDS[0]) -> None:
        self._open_at = open_at
        self.clock = clock
        self.table: ControlTable = sts3215()
        self.stray_bytes = 0
        self._transport = open_at(baud)
        self._set_baud(baud)

    def use_baud(self, baud: int) -> None:
        """Reopen the port at another rate. Raises BusError when that cannot be."""
        if baud != self.baud:
            self._transport.close()
            self._transport = self._open_at(baud)
            self._set_baud(baud)

    def ping(self, servo_id: int, margin_ns: int = PATIENT_NS, tries: int = TRIES) -> Answer | None:
        """The answer to a ping, or None."""
        for _ in range(tries):
            answer = self._ask(servo_id, protocol.ping(servo_id), 0, margin_ns)
            if answer is not None:
                return answer
        return None

    def read_block(self, servo_id: int, address: int, size: int) -> Answer:
        """`size` bytes from `address`. Raises NoAnswer.

        Each retry asks for one byte more, so that a late answer to the try before has the wrong length.
        """
        for extra in range(TRIES):
            request = protocol.read(servo_id, address, size + extra)
            answer = self._ask(servo_id, request, size + extra, PATIENT_NS)
            if answer is not None:
                return Answer(answer.data[:size], answer.alarms)
        raise NoAnswer(servo_id)

    def read(self, servo_id: int, name: str) -> int:
        """One register's value. Raises NoAnswer."""
        register = self.table[name]
        data = self.read_block(servo_id, register.address, register.size).data
        return protocol.decode_register(register, data)

    def write(self, servo_id: int, name: str, value: int) -> None:
        """Write one register. A servo that does not acknowledge is read back before it counts as silent.

        Raises NoAnswer, and ValueError for a value that the register cannot hold.
        """
        register = self.table[name]
        request = protocol.write(servo_id, register.address, protocol.encode_register(register, value))
        for _ in range(TRIES):
            if self._ask(servo_id, request, 0, PATIENT_NS) is not None:
                return
            if self._holds(servo_id, register, value):
                return
        raise NoAnswer(servo_id)

    def tell(self, servo_id: int, name: str, value: int) -> None:
        """Write one register once without asking whether it arrived: the answer may come at another rate or id."""
        register = self.table[name]
        request = protocol.write(servo_id, register.address, protocol.encode_register(register, value))
        self._ask(servo_id, request, 0, PATIENT_NS)
        self._drain()

    def quality(self, servo_id: int, rounds: int = 12) -> Quality:
        """Read the same block many times over and count what is damaged. A late answer is none: each is waited for."""
        first, last = (self.table[name] for name in FEEDBACK)
        size = last.end - first.address
        noisy = 0
        for _ in range(rounds):
            before = self.stray_bytes
            self._ask(servo_id, protocol.read(servo_id, first.address, size), size, PATIENT_NS)
            self._drain()
            noisy += self.stray_bytes > before
        return Quality(rounds, noisy)

    def settle(self, seconds: float) -> None:
        self.clock.sleep_until_ns(self.clock.now_ns() + round(seconds * NS_PER_S))

    def close(self) -> None:
        self._transport.close()

    def _set_baud(self, baud: int) -> None:
        self.baud = baud
        self._byte_ns = protocol.BITS_PER_BYTE * NS_PER_S // baud
        self._drain()

    def _holds(self, servo_id: int, register: Register, value: int) -> bool:
        try:
            return self.read(servo_id, register.name) == value
        except NoAnswer:
            return False

    def _drain(self) -> None:
        self.stray_bytes += self._transport.drain()

    def _ask(self, servo_id: int, request: bytes, size: int, margin_ns: int) -> Answer | None:
        """The first sound packet of that servo and length by the deadline; without one, None and a silent bus."""
        expected = size + protocol.OVERHEAD_BYTES
        deadline_ns = self.clock.now_ns() + (len(request) + expected) * self._byte_ns + margin_ns
        self._transport.write(request)
        pending = b""
        received = 0
        while len(pending) < expected:
            missing = expected - len(pending)
            chunk = self._transport.read(missing, deadline_ns)
            received += len(chunk)
            frames, pending = protocol.split_frames(pending + chunk)
            for frame in frames:
                if frame.id == servo_id and len(frame.params) == size:
                    self.stray_bytes += received - expected
                    return Answer(frame.params, frame.code)
            if len(chunk) < missing:
                break
        self.stray_bytes += received
        self._drain()
        return None
