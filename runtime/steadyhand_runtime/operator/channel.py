"""The operator's sockets: events that are resent until acknowledged, drive, heartbeat and commands to the bus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
COMMAND_LIFETIME_S = 2.0
MAX_REPLY_BYTES = 64 << 10

Context = zmq.Context[zmq.Socket[bytes]]
R = TypeVar("R")


@dataclass
class _Unanswered:
    """One message on its way."""

    data: bytes
    first_sent_ns: int
    sent_ns: int


class _Acknowledged:
    """A DEALER whose messages are sent again, in order of first sending, until their reply has come."""

    def __init__(self, context: Context, folder: Path, topic: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, TOPICS[topic].bound)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
        # Nothing may queue up for a process that is not there: an old ARM must not wake an arm that comes back.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(endpoint(folder, topic))
        self.waiting: dict[str | int, _Unanswered] = {}
        self.rejected = 0

    def send(self, key: str | int, message: object, now_ns: int) -> None:
        data = wire.encode(message)
        self.waiting[key] = _Unanswered(data, now_ns, now_ns)
        self._send(data)

    def resend_due(self, now_ns: int) -> None:
        for entry in self.waiting.values():
            if now_ns - entry.sent_ns >= RESEND_S * NS_PER_S:
                entry.sent_ns = now_ns
                self._send(entry.data)

    def expire(self, now_ns: int, lifetime_s: float) -> list[str | int]:
        """Give up on what was first sent longer ago than that; returns its keys."""
        late = [k for k, e in self.waiting.items() if now_ns - e.first_sent_ns >= lifetime_s * NS_PER_S]
        for key in late:
            del self.waiting[key]
        return late

    def settle(self, cls: type[R], key: Callable[[R], str | int]) -> list[R]:
        """First replies since the last call; a resent message is answered twice and only the first answer is news."""
        found: list[R] = []
        while True:
            try:
                reply = wire.decode(self.socket.recv(zmq.DONTWAIT), cls)
            except zmq.Again:
                return found
            except wire.WireError:
                self.rejected += 1
                continue
            if self.waiting.pop(key(reply), None) is not None:
                found.append(reply)

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send(data, zmq.DONTWAIT)
        except zmq.Again:
            pass  # nobody listens yet; it stays in `waiting` and goes out again


class OperatorClient:
    """One operator's way to control and bus. No thread: call `pump` at least ten times a second.

    Events are acknowledged and idempotent by `event_id`, so resending is safe; drive and heartbeat may be dropped.
    """

    def __init__(self, folder: Path, who: str, context: Context | None = None) -> None:
        self._context = context or zmq.Context.instance()
        self._who = who
        self._events = _Acknowledged(self._context, folder, "operator.event")
        self._commands = _Acknowledged(self._context, folder, "bus.command")
        self._drive = self._publisher(endpoint(folder, "operator.drive"))
        self._heartbeat = self._publisher(endpoint(folder, "operator.heartbeat"))
        rate_hz = TOPICS["operator.heartbeat"].rate_hz or 10.0
        self._beat_every_ns = round(NS_PER_S / rate_hz)
        self._beat_due_ns = 0
        self._command_ids = 0

    def send(self, event: OperatorEvent) -> None:
        """Send an event; it is sent again until its reply comes."""
        self._events.send(event.event_id, event, event.stamp_ns)

    def drive(self, drive: Drive) -> None:
        """Publish where the arm should go; only the newest counts."""
        self._drive.send(wire.encode(drive), zmq.DONTWAIT)

    def command(self, action: BusAction, now_ns: int) -> int:
        """Ask the bus for something; returns the id that its reply will carry."""
        # With the stamp in it, the ids of two lives of this process differ.
        self._command_ids += 1
        command_id = now_ns + self._command_ids
        if action is BusAction.ESTOP:
            # An ARM of before must not be sent again behind it.
            self._commands.waiting.clear()
        self._commands.send(command_id, BusCommand(command_id, action), now_ns)
        return command_id

    def pump(self, now_ns: int) -> list[EventReply | CommandReply]:
        """Beat, resend what is unanswered, and return the replies that came since the last call.

        A command that the bus does not answer within COMMAND_LIFETIME_S is given up with a refusal.
        """
        if now_ns >= self._beat_due_ns:
            self._beat_due_ns = now_ns + self._beat_every_ns
            self._heartbeat.send(wire.encode(Heartbeat(now_ns, self._who)), zmq.DONTWAIT)
        answered = self._events.settle(EventReply, _event_id)
        obeyed = self._commands.settle(CommandReply, _command_id)
        replies: list[EventReply | CommandReply] = [*answered, *obeyed]
        for command_id in self._commands.expire(now_ns, COMMAND_LIFETIME_S):
            replies.append(CommandReply(int(command_id), False, "the bus did not answer: is the runtime running?"))
        self._events.resend_due(now_ns)
        self._commands.resend_due(now_ns)
        return replies

    @property
    def unanswered(self) -> int:
        """Events and commands that nobody has acknowledged yet."""
        return len(self._events.waiting) + len(self._commands.waiting)

    @property
    def rejected(self) -> int:
        """Replies that were no valid messages."""
        return self._events.rejected + self._commands.rejected

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
        socket.setsockopt(zmq.SNDHWM, 8)
        socket.connect(address)
        return socket


def _event_id(reply: EventReply) -> str:
    return reply.event_id


def _command_id(reply: CommandReply) -> int:
    return reply.command_id


def subscribe(context: Context, folder: Path, topic: str, instance: str = "") -> zmq.Socket[bytes]:
    """A SUB that keeps only the newest message of a topic."""
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.CONFLATE, 1)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint(folder, topic, instance))
    return socket
