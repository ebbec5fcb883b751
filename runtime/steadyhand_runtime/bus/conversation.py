"""Questions and answers on the wire: sends requests, sorts every packet that comes, and enters what does not come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from steadyhand_runtime.bus import kernels, protocol
from steadyhand_runtime.bus.counters import Tally
from steadyhand_runtime.bus.ledger import Ledger
from steadyhand_runtime.bus.protocol import OVERHEAD_BYTES, Frame
from steadyhand_runtime.bus.schedule import byte_ns
from steadyhand_runtime.bus.transport import Transport
from steadyhand_runtime.clock import Clock

LATE_BYTES = 4096


class Request:
    """A prebuilt read of the same registers of several servos; `with_goals` has room for a goal sync write before it.

    One servo is asked with a plain READ, which also the later ones of a muted chain answer.
    """

    __slots__ = ("address", "expected_bytes", "goals", "ids", "layout", "out", "size", "with_goals")

    def __init__(self, joints: Mapping[int, int], ids: Sequence[int], address: int, size: int, goals: bytes) -> None:
        self.ids = tuple(ids)
        self.address, self.size = address, size
        one = len(self.ids) == 1
        self.out = protocol.read(self.ids[0], address, size) if one else protocol.sync_read(self.ids, address, size)
        self.expected_bytes = len(self.ids) * (size + OVERHEAD_BYTES)
        self.layout = np.array([(joints[i], i) for i in self.ids], np.int64).reshape(-1, 2)
        self.with_goals = bytearray(goals + self.out)
        self.goals = np.frombuffer(self.with_goals, np.uint8)

    def damaged(self, data: bytes) -> tuple[int, ...] | None:
        """Ids whose packet has a bad checksum, when all packets came in their places; None when they did not."""
        stride = self.size + OVERHEAD_BYTES
        if len(data) != self.expected_bytes:
            return None
        bad = []
        for i, servo_id in enumerate(self.ids):
            packet = data[i * stride : (i + 1) * stride]
            if packet[:4] != protocol.HEADER + bytes((servo_id, self.size + 2)):
                return None
            if sum(packet[2:]) & 0xFF != 0xFF:
                bad.append(servo_id)
        return tuple(bad)


class Conversation:
    """Asks the servos of one arm. `joints` maps ids to joint numbers."""

    def __init__(self, transport: Transport, joints: Mapping[int, int], clock: Clock, baud: int) -> None:
        self.transport = transport
        self.clock = clock
        self.byte_ns = byte_ns(baud)
        self.ledger = Ledger()
        self.tallies = [Tally() for _ in joints]
        self.discarded_bytes = 0
        self.rest = b""  # the beginning of a packet whose end has not come yet
        self.joints = dict(joints)

    def attach(self, transport: Transport) -> None:
        """Go on over another port. Nothing that was asked over the old one can come over the new one."""
        self.transport = transport
        self.ledger = Ledger()
        self.rest = b""

    def request(self, ids: Sequence[int], address: int, size: int, goals: bytes = b"") -> Request:
        return Request(self.joints, ids, address, size, goals)

    def listen(self) -> set[int]:
        """Take in what came late since the last request; the ids that it came from."""
        now_ns = self.clock.now_ns()
        self.ledger.expire(now_ns)
        data = self.transport.read(LATE_BYTES, now_ns)
        if not data:
            return set()
        frames, self.rest = protocol.split_frames(self.rest + data)
        for frame in frames:
            self.stray(frame)
        return {frame.id for frame in frames}

    def ask(self, ids: Sequence[int], address: int, size: int, margin_ns: int) -> dict[int, Frame]:
        """One attempt to read at least `size` registers of servos; soundly answered ones by id.

        More is read where an answer of `size` bytes could be a late one.
        """
        if self.ledger:
            self.listen()
        free = self.ledger.free_size(ids, size)
        if free is None:
            return {}
        request = self.request(ids, address, free)
        answers = Round(self)
        answers.send(request, request.out, margin_ns)
        answers.end()
        return answers.frames

    def tell(self, data: bytes | bytearray) -> None:
        """Send what nobody answers."""
        if self.ledger:
            self.listen()
        self.transport.write(data)

    def tell_one(self, servo_id: int, address: int, data: bytes, margin_ns: int) -> None:
        """Write registers of one servo and let its acknowledgement, if it sends one, pass."""
        out = protocol.write(servo_id, address, data)
        self.tell(out)
        deadline_ns = self.clock.now_ns() + (len(out) + OVERHEAD_BYTES) * self.byte_ns + margin_ns
        if len(self.transport.read(OVERHEAD_BYTES, deadline_ns)) < OVERHEAD_BYTES:
            self.ledger.owe(servo_id, 0, deadline_ns)

    def stray(self, frame: Frame) -> None:
        """Count a packet that answers nothing that is asked now."""
        size = len(frame.params)
        self.discarded_bytes += size + OVERHEAD_BYTES
        joint = self.joints.get(frame.id)
        was_owed = self.ledger.settle(frame.id, size)
        if joint is None:
            return
        tally = self.tallies[joint]
        if was_owed:
            tally.late_replies += 1
            tally.late_bytes += size + OVERHEAD_BYTES
        else:
            tally.strangers += 1


class Round:
    """The requests of one cycle and what came back: sound packets by id, each an answer to one of these requests."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.frames: dict[int, Frame] = {}
        self._open: set[tuple[int, int]] = set()
        self._asked: dict[int, None] = {}
        self._heard = b""
        self.strays = 0

    @property
    def missing(self) -> tuple[int, ...]:
        """Ids that were asked and have not answered, in the order of asking."""
        return tuple(i for i in self._asked if i not in self.frames)

    @property
    def has_rubbish(self) -> bool:
        """Whether bytes came that are no sound answer to this round."""
        return len(self._heard) > sum(len(f.params) + OVERHEAD_BYTES for f in self.frames.values())

    def send(self, request: Request, out: bytes | bytearray, margin_ns: int) -> None:
        """Ask, and take in what comes until all have answered or the time on the wire and the margin are over."""
        talk = self._conversation
        wire_ns = (len(out) + request.expected_bytes) * talk.byte_ns
        deadline_ns = talk.clock.now_ns() + wire_ns + margin_ns
        talk.transport.write(out)
        self.take(request, talk.transport.read(request.expected_bytes, deadline_ns))
        self.wait(request, deadline_ns)

    def take(self, request: Request, data: bytes) -> None:
        """The first bytes that came after a request."""
        self._open.update((i, request.size) for i in request.ids)
        self._asked.update(dict.fromkeys(request.ids))
        damaged = request.damaged(data)
        for servo_id in damaged or ():
            self._open.discard((servo_id, request.size))  # it came, so nothing is owed
            self._conversation.tallies[self._conversation.joints[servo_id]].checksum_errors += 1
        self._sort(data)

    def wait(self, request: Request, deadline_ns: int) -> None:
        """Read on until nothing is open of this request's servos."""
        while wanted := self._wanted_bytes(request):
            data = self._conversation.transport.read(wanted, deadline_ns)
            self._sort(data)
            if len(data) < wanted:
                return

    def end(self) -> None:
        """Enter into the ledger what is still open; nothing of it can count as fresh later."""
        talk = self._conversation
        now_ns = talk.clock.now_ns()
        for servo_id, size in self._open:
            talk.ledger.owe(servo_id, size, now_ns)
            if servo_id in self.frames:
                continue
            tally = talk.tallies[talk.joints[servo_id]]
            if protocol.HEADER + bytes((servo_id, size + 2)) in self._heard:
                tally.checksum_errors += 1
            else:
                tally.timeouts += 1

    def store(self, address: int, table: kernels.F64, scale: kernels.F64, stamp_ns: int) -> None:
        """Put every answer into a table; all requests must have begun at `address`."""
        for servo_id, frame in self.frames.items():
            data = np.frombuffer(frame.params, np.uint8)
            joint = self._conversation.joints[servo_id]
            kernels.store_block(data, 0, frame.code, address, len(data), joint, table, scale, stamp_ns)

    def _wanted_bytes(self, request: Request) -> int:
        stride = request.size + OVERHEAD_BYTES
        return stride * sum((i, request.size) in self._open and i not in self.frames for i in request.ids)

    def _sort(self, data: bytes) -> None:
        self._heard += data
        talk = self._conversation
        frames, talk.rest = protocol.split_frames(talk.rest + data)
        for frame in frames:
            if (frame.id, len(frame.params)) in self._open:
                self._open.discard((frame.id, len(frame.params)))
                self.frames.setdefault(frame.id, frame)
            else:
                self.strays += 1
                talk.stray(frame)
