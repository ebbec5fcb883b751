"""The operator's sockets against small in-test peers: nothing acknowledged is lost, nothing stale is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from steadyhand_models import wire
from steadyhand_models.messages import (
    BusAction,
    BusCommand,
    CommandReply,
    Drive,
    EventKind,
    EventReply,
    Heartbeat,
    OperatorEvent,
)
from steadyhand_models.topics import endpoint
from steadyhand_runtime.operator.channel import COMMAND_LIFETIME_S, RESEND_S, OperatorClient

S = 1_000_000_000
WAIT_MS = 5_000


class Peer:
    """Control's and the bus's ends of the operator's sockets."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
        self.events = self._bind(context, zmq.ROUTER, endpoint(folder, "operator.event"))
        self.commands = self._bind(context, zmq.ROUTER, endpoint(folder, "bus.command"))
        self.drive = self._bind(context, zmq.SUB, endpoint(folder, "operator.drive"))
        self.heartbeat = self._bind(context, zmq.SUB, endpoint(folder, "operator.heartbeat"))

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.bind(address)
        return socket

    def close(self) -> None:
        for socket in (self.events, self.commands, self.drive, self.heartbeat):
            socket.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def event(name: str, stamp_ns: int = 0) -> OperatorEvent:
    return OperatorEvent(name, EventKind.SUCCESS, stamp_ns, "eve", "script", 0.5)


def connect(client: OperatorClient) -> None:
    """Wait until both acknowledged sockets have a peer."""
    for socket in client.sockets:
        assert socket.poll(WAIT_MS, zmq.POLLOUT), "no peer"


def replies_of(client: OperatorClient, now_ns: int) -> list[EventReply | CommandReply]:
    """Pump once more than one of the sockets has something."""
    poller = zmq.Poller()
    for socket in client.sockets:
        poller.register(socket, zmq.POLLIN)
    assert poller.poll(WAIT_MS), "no reply came"
    return client.pump(now_ns)


def test_an_event_is_acknowledged_once_however_often_it_is_answered(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:
    peer, client = Peer(context, folder), OperatorClient(folder, "eve", context)
    connect(client)
    client.send(event("a"))
    sender, data = peer.events.recv_multipart()
    assert wire.decode(data, OperatorEvent) == event("a")
    for _ in range(2):
        peer.events.send_multipart([sender, wire.encode(EventReply("a", True, ""))])
    found = replies_of(client, 0)
    if client.sockets[0].poll(200):
        found += client.pump(0)
    assert found == [EventReply("a", True, "")]
    assert client.unanswered == 0
    client.close()
    peer.close()


def test_an_unanswered_event_is_sent_again(context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
    peer, client = Peer(context, folder), OperatorClient(folder, "eve", context)
    connect(client)
    client.send(event("a"))
    peer.events.recv_multipart()
    client.pump(round((RESEND_S - 0.01) * S))
    assert not peer.events.poll(50)
    client.pump(round(RESEND_S * S))
    _, data = peer.events.recv_multipart()
    assert wire.decode(data, OperatorEvent).event_id == "a"
    client.close()
    peer.close()


def test_an_event_sent_before_control_is_there_arrives_when_it_is(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:
    client = OperatorClient(folder, "eve", context)
    client.send(event("early"))
    peer = Peer(context, folder)
    connect(client)
    client.pump(1 * S)
    _, data = peer.events.recv_multipart()
    assert wire.decode(data, OperatorEvent).event_id == "early"
    client.close()
    peer.close()


def test_a_command_for_a_bus_that_is_not_there_is_given_up_and_never_wakes_the_arm_later(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:
    client = OperatorClient(folder, "eve", context)
    command_id = client.command(BusAction.ARM, 0)
    refused = client.pump(round(COMMAND_LIFETIME_S * S))
    assert [(r.command_id, r.ok) for r in refused if isinstance(r, CommandReply)] == [(command_id, False)]
    peer = Peer(context, folder)
    connect(client)
    client.pump(10 * S)
    assert not peer.commands.poll(100)
    client.close()
    peer.close()


def test_an_emergency_stop_is_not_followed_by_an_older_command(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:
    client = OperatorClient(folder, "eve", context)
    client.command(BusAction.ARM, 0)
    client.command(BusAction.ESTOP, 1)
    peer = Peer(context, folder)
    connect(client)
    client.pump(1 * S)
    _, data = peer.commands.recv_multipart()
    assert wire.decode(data, BusCommand).action is BusAction.ESTOP
    assert not peer.commands.poll(100)
    client.close()
    peer.close()


def test_a_command_is_acknowledged(context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
    peer, client = Peer(context, folder), OperatorClient(folder, "eve", context)
    connect(client)
    command_id = client.command(BusAction.CLEAR, 5)
    sender, data = peer.commands.recv_multipart()
    assert wire.decode(data, BusCommand) == BusCommand(command_id, BusAction.CLEAR)
    peer.commands.send_multipart([sender, wire.encode(CommandReply(command_id, True, ""))])
    assert replies_of(client, 6) == [CommandReply(command_id, True, "")]
    client.close()
    peer.close()


def test_rubbish_replies_are_counted_and_survived(context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
    peer, client = Peer(context, folder), OperatorClient(folder, "eve", context)
    connect(client)
    client.send(event("a"))
    sender, _ = peer.events.recv_multipart()
    peer.events.send_multipart([sender, b"\x00rubbish"])
    assert replies_of(client, 0) == []
    assert client.rejected == 1 and client.unanswered == 1
    client.close()
    peer.close()


def test_heartbeats_come_at_ten_hertz_and_drives_arrive(context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
    peer, client = Peer(context, folder), OperatorClient(folder, "eve", context)
    now_ns = 0
    # A publisher's first messages are lost until the subscription has reached it.
    while not peer.heartbeat.poll(20):
        now_ns += S
        client.pump(now_ns)
        assert now_ns < 250 * S
    while peer.heartbeat.poll(50):
        peer.heartbeat.recv()
    beats = []
    for step in range(1, 11):
        client.pump(now_ns + step * S // 20)
        if step % 2 == 0:
            beats.append(wire.decode(peer.heartbeat.recv(), Heartbeat).stamp_ns)
    assert not peer.heartbeat.poll(50)
    assert np.diff(beats).tolist() == [S // 10] * 4
    drive = Drive(now_ns, np.array([0.0, 0.0, 1.0, -1.0], np.float32), False)
    while not peer.drive.poll(20):
        client.drive(drive)
    assert wire.decode(peer.drive.recv(), Drive).stamp_ns == now_ns
    client.close()
    peer.close()
