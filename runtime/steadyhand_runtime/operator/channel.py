"""The operator's sockets: events that are resent until acknowledged, drive, heartbeat and commands to the bus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
from steadyhand_models import wire
from steadyhand_models.messages import (
    BusAction,
    BusCommand,
    CommandReply,
    Drive,
    EventReply,
    Heartbeat,
    OperatorEvent,
)
from steadyhand_models.topics import TOPICS, endpoint

from steadyhand_runtime.clock import NS_PER_S

RESEND_S = 0.3
MAX_REPLY_BYTES = 64 << 10


@dataclass
class _Unanswered:
    """One message on its way; `sent_ns` is when it last left."""

    data: bytes
    sent_ns: int


class _Acknowledged:
    """A DEALER whose messages are sent again, in order of first sending, until their reply has come."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, bound: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, bound)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
        self.socket.connect(address)
        self.waiting: dict[str | int, _Unanswered] = {}

    def send(self, key: str | int, data: bytes, now_ns: int) -> None:
        self.waiting[key] = _Unanswered(data, now_ns)
        self._send(data)

    def resend_due(self, now_ns: int) -> None:
        for entry in self.waiting.values():
            if now_ns - entry.sent_ns >= RESEND_S * NS_PER_S:
                entry.sent_ns = now_ns
                self._send(entry.data)

    def receive(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(zmq.DONTWAIT))
            except zmq.Again:
                return found

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send(data, zmq.DONTWAIT)
        except zmq.Again:
            pass  # nobody listens yet; it stays in `waiting` and goes out again


class OperatorClient:
    """One operator's way to control and bus. No thread: call `pump` at least ten times a second.

    Events are acknowledged and idempotent by `event_id`, so resending is safe; drive and heartbeat may be dropped.
    """

    def __init__(self, folder: Path, who: str, context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        self._context = context or zmq.Context.instance()
        self._who = who
        self._events = _Acknowledged(
            self._context, endpoint(folder, "operator.event"), TOPICS["operator.event"].bound
        )
        self._commands = _Acknowledged(self._context, endpoint(folder, "bus.command"), TOPICS["bus.command"].bound)
        self._drive = self._publisher(endpoint(folder, "operator.drive"))
        self._heartbeat = self._publisher(endpoint(folder, "operator.heartbeat"))
        rate_hz = TOPICS["operator.heartbeat"].rate_hz or 10.0
        self._beat_every_ns = round(NS_PER_S / rate_hz)
        self._beat_due_ns = 0
        self._command_ids = 0
        self.rejected = 0

    def send(self, event: OperatorEvent) -> None:
        """Send an event; it is sent again until its reply comes."""
        self._events.send(event.event_id, wire.encode(event), event.stamp_ns)

    def drive(self, drive: Drive) -> None:
        """Publish where the arm should go; only the newest counts."""
        self._drive.send(wire.encode(drive), zmq.DONTWAIT)

    def command(self, action: BusAction, now_ns: int) -> int:
        """Ask the bus for something; returns the id that its reply will carry."""
        # The stamp makes ids of two lives of this process differ, and an emergency stop overtakes nothing of them.
        self._command_ids += 1
        command_id = now_ns + self._command_ids
        if action is BusAction.ESTOP:
            self._commands.waiting.clear()
        self._commands.send(command_id, wire.encode(BusCommand(command_id, action)), now_ns)
        return command_id

    def pump(self, now_ns: int) -> list[EventReply | CommandReply]:
        """Beat, resend what is unanswered, and return the replies that came since the last call."""
        if now_ns >= self._beat_due_ns:
            self._beat_due_ns = now_ns + self._beat_every_ns
            self._heartbeat.send(wire.encode(Heartbeat(now_ns, self._who)), zmq.DONTWAIT)
        replies: list[EventReply | CommandReply] = []
        for data in self._events.receive():
            self._settle(data, EventReply, self._events, lambda r: r.event_id, replies)
        for data in self._commands.receive():
            self._settle(data, CommandReply, self._commands, lambda r: r.command_id, replies)
        self._events.resend_due(now_ns)
        self._commands.resend_due(now_ns)
        return replies

    @property
    def unanswered(self) -> int:
        """Events and commands that nobody has acknowledged yet."""
        return len(self._events.waiting) + len(self._commands.waiting)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """Sockets that become readable when a reply has come, for a poller."""
        return [self._events.socket, self._commands.socket]

    def close(self) -> None:
        for socket in (*self.sockets, self._drive, self._heartbeat):
            socket.close()

    def _publisher(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 2)
        socket.connect(address)
        return socket

    def _settle(
        self,
        data: bytes,
        cls: type[EventReply] | type[CommandReply],
        channel: _Acknowledged,
        key: Callable[[EventReply | CommandReply], str | int],
        replies: list[EventReply | CommandReply],
    ) -> None:
        try:
            reply = wire.decode(data, cls)
        except wire.WireError:
            self.rejected += 1
            return
        # A resent message is answered twice; only the first answer is news.
        if channel.waiting.pop(key(reply), None) is not None:
            replies.append(reply)


def subscribe(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path, topic: str, instance: str = ""
) -> zmq.Socket[bytes]:
    """A SUB that keeps only the newest message of a topic."""
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.CONFLATE, 1)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint(folder, topic, instance))
    return socket
