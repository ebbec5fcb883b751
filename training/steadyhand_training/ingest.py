"""Ingest: the trainer's end of the link. Commits what robots send, acknowledges it, and serves them artifacts."""

from __future__ import annotations

import hashlib
import queue
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from steadyhand_models import artifact, contract, topics, wire
from steadyhand_models.artifact import ANSWERING, ArtifactError
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import (
    Ack,
    Channel,
    Credit,
    Hello,
    ModelChunk,
    ModelNotice,
    ModelRequest,
    Records,
    Refused,
    Welcome,
)
from steadyhand_models.registry import Registry
from steadyhand_training import log
from steadyhand_training.journal import Commit, Journal, is_robot

CHUNK_BYTES = 256 << 10
KEPT_BUNDLES = 4
HELLO_FIRST = "say hello first"
SEND_QUEUE = 64
# Generous, so that a starved host is not taken for a dead one; a robot that is gone costs nothing meanwhile.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1_000, 5_000


@dataclass
class Counters:
    """What arrived, since the process started."""

    batches: int = 0
    added: int = 0
    duplicates: int = 0
    gaps: int = 0
    unreadable: int = 0
    bad_messages: int = 0
    refused: int = 0
    disk_errors: int = 0


class Shelf:
    """Packed bundles of a registry's artifacts, the last few kept in memory."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._bundles: OrderedDict[tuple[Channel, int], tuple[bytes, str]] = OrderedDict()

    def bundle(self, channel: Channel, version: int) -> tuple[bytes, str]:
        """(bytes, sha256) of one artifact. Raises ArtifactError."""
        key = (channel, version)
        if key not in self._bundles:
            data = artifact.pack(self.registry.load(channel, version))
            self._bundles[key] = (data, hashlib.sha256(data).hexdigest())
        self._bundles.move_to_end(key)
        while len(self._bundles) > KEPT_BUNDLES:
            self._bundles.popitem(last=False)
        return self._bundles[key]

    def notice(self, channel: Channel, version: int) -> ModelNotice:
        data, sha256 = self.bundle(channel, version)
        return ModelNotice(channel, version, len(data), sha256)

    def offer(self, channel: Channel, version: int) -> list[ModelNotice]:
        """The notice of one artifact, after that of the encoder that it names. Raises ArtifactError."""
        encoder = self.registry.manifest(channel, version).encoder_version
        first = [self.notice(Channel.ENCODER, encoder)] if encoder else []
        return [*first, self.notice(channel, version)]


@dataclass
class Peer:
    """A robot that has been welcomed on one connection."""

    edge: str
    run: str
    served: set[tuple[Channel, int]] = field(default_factory=set)  # artifacts fetched to the last byte


class Ingest:
    """The thread that owns the link's socket and the journal's writing end.

    The learner reads what was committed from the journal itself; `arrived` is set whenever there is more. `announce`,
    `credit` and `stop` may be called from another thread (one only).
    """

    def __init__(self, agreed: Contract, journal: Path, registry: Registry, listen: str) -> None:
        """Bind and open everything. Raises UserError when the address or the journal cannot be used."""
        self.contract = agreed
        self.counters = Counters()
        self.arrived = threading.Event()
        self._shelf = Shelf(registry)
        self._peers: dict[bytes, Peer] = {}
        self._credit: Credit | None = None
        self._throttle = log.Throttle()
        self._journal = Journal(journal)
        self._context = zmq.Context()
        self._router = _bind(self._context, listen)
        self.endpoint: str = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._wake_far = self._context.socket(zmq.PAIR)
        self._wake_near = self._context.socket(zmq.PAIR)
        self._wake_far.bind("inproc://wake")
        self._wake_near.connect("inproc://wake")
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._handlers: dict[type, Callable[[bytes, Peer, Any], None]] = {
            Records: self._records,
            ModelRequest: self._model_request,
        }
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the message at hand, then close the socket and the journal."""
        if self._thread.is_alive():
            self._order(None)
            self._thread.join()
        for socket in (self._router, self._wake_far, self._wake_near):
            socket.close(linger=0)
        self._context.term()
        self._journal.close()

    def announce(self, channel: Channel, version: int) -> None:
        """Tell every robot of an artifact that is in the registry."""
        self._order(lambda: self._announce(channel, version))

    def credit(self, steps: int) -> None:
        """Lockstep: let the simulated robot go on until its total reaches `steps`."""
        self._order(lambda: self._grant(Credit(steps)))

    def fetched(self, channel: Channel, version: int) -> bool:
        """Whether some robot has been sent an artifact whole."""
        return any((channel, version) in peer.served for peer in list(self._peers.values()))

    @property
    def robots(self) -> list[str]:
        """Edges that are connected, as far as is known."""
        return sorted({peer.edge for peer in list(self._peers.values()) if is_robot(peer.edge)})

    def _order(self, order: Callable[[], None] | None) -> None:
        self._orders.put(order)
        self._wake_near.send(b"")

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_far, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._wake_far in ready:
                self._wake_far.recv()
                order = self._orders.get()
                if order is None:
                    return
                order()
            if self._router in ready:
                self._receive()

    def _receive(self) -> None:
        identity, *parts = self._router.recv_multipart()
        try:
            if len(parts) != 1:
                raise wire.WireError(f"{len(parts)} parts; a message is one")
            message: Any = wire.decode(parts[0], Hello, Records, ModelRequest)
            self._dispatch(identity, message)
        except (wire.WireError, ArtifactError) as error:
            self.counters.bad_messages += 1
            peer = self._peers.get(identity)
            self._warn("ingest.bad_message", edge=peer.edge if peer else "unknown", reason=str(error)[:300])
        except sqlite3.Error as error:
            # Not acknowledged, so the robot keeps the records and sends them again.
            self.counters.disk_errors += 1
            self._warn("ingest.journal_refused", reason=error, fix="free space on the run folder's disk")

    def _dispatch(self, identity: bytes, message: Hello | Records | ModelRequest) -> None:
        if isinstance(message, Hello):
            self._hello(identity, message)
            return
        peer = self._peers.get(identity)
        if peer is None:  # left over from before this process or connection: the robot must learn where it stands
            self._send(identity, Refused(HELLO_FIRST))
            return
        self._handlers[type(message)](identity, peer, message)

    def _hello(self, identity: bytes, hello: Hello) -> None:
        problem = refusal(self.contract, hello)
        if problem:
            self.counters.refused += 1
            self._warn("ingest.refused", edge=hello.edge, run=hello.run, reason=problem)
            self._send(identity, Refused(problem))
            return
        self._peers[identity] = Peer(hello.edge, hello.run)
        acked = self._journal.acked(hello.edge, hello.run)
        log.info("ingest.welcome", edge=hello.edge, run=hello.run, acked=acked)
        self._send(identity, Welcome(hello.run, acked))
        for channel in ANSWERING:
            version = self._shelf.registry.newest(channel)
            for notice in self._shelf.offer(channel, version) if version is not None else ():
                self._send(identity, notice)
        if self._credit is not None:
            self._send(identity, self._credit)

    def _records(self, identity: bytes, peer: Peer, batch: Records) -> None:
        commit = self._journal.commit(peer.edge, peer.run, batch.records, self.contract)
        self._count(commit)
        if commit.gap:
            first = batch.records[0].number if batch.records else 0
            self._warn("ingest.gap", edge=peer.edge, run=peer.run, acked=commit.acked, first=first)
        if commit.unreadable:
            self._warn("ingest.unreadable", edge=peer.edge, records=commit.unreadable, kept="in the journal, unused")
        if commit.added:
            self.arrived.set()
        self._send(identity, Ack(commit.acked))

    def _count(self, commit: Commit) -> None:
        counters = self.counters
        counters.batches += 1
        counters.added += commit.added
        counters.duplicates += commit.duplicates
        counters.unreadable += commit.unreadable
        counters.gaps += commit.gap

    def _model_request(self, identity: bytes, peer: Peer, request: ModelRequest) -> None:
        data, _ = self._shelf.bundle(request.channel, request.version)
        if not 0 <= request.offset < len(data):
            raise wire.WireError(f"ModelRequest.offset: {request.offset} is outside of {len(data)} bytes")
        chunk = data[request.offset : request.offset + CHUNK_BYTES]
        if request.offset + len(chunk) == len(data):
            peer.served.add((request.channel, request.version))
            self.arrived.set()
        self._send(identity, ModelChunk(request.channel, request.version, request.offset, chunk))

    def _announce(self, channel: Channel, version: int) -> None:
        try:
            notices = self._shelf.offer(channel, version)
        except ArtifactError as error:
            self._warn("ingest.cannot_announce", channel=channel.value, version=version, reason=error)
            return
        for identity in list(self._peers):
            for notice in notices:
                self._send(identity, notice)

    def _grant(self, credit: Credit) -> None:
        self._credit = credit
        for identity in list(self._peers):
            self._send(identity, credit)

    def _send(self, identity: bytes, message: Any) -> None:
        """Queue a message; a robot that is gone or does not read is forgotten and will say hello again."""
        try:
            self._router.send_multipart([identity, wire.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            peer = self._peers.pop(identity, None)
            if peer is not None:
                log.info("ingest.robot_gone", edge=peer.edge, reason=error)

    def _warn(self, event: str, **fields: object) -> None:
        self._throttle.warn(time.monotonic(), event, **fields)


def refusal(ours: Contract, hello: Hello) -> str:
    """Why a robot cannot work with this trainer, field by field; nothing when it can."""
    if hello.contract_hash == ours.hash:
        return ""
    try:
        theirs = contract.from_json(hello.contract_json)
    except ValueError as error:
        return f"contract {hello.contract_hash} is not the trainer's {ours.hash}, and cannot be read: {error}"
    lines = contract.difference(ours, theirs)
    return f"contract {hello.contract_hash} is not the trainer's {ours.hash} (trainer -> robot):\n" + "\n".join(
        f"  {text}" for text in lines
    )


def _bind(context: zmq.Context[Any], listen: str) -> zmq.Socket[bytes]:
    """The link's ROUTER. Raises UserError when the address is taken or wrong."""
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
    router.setsockopt(zmq.RCVHWM, topics.TOPICS["link.records"].bound)
    router.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)
    router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    bind(router, listen, "listen")
    return router


def bind(socket: zmq.Socket[bytes], address: str, setting: str) -> None:
    """Bind, or raise UserError naming the setting that must change."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        if error.errno == zmq.EADDRINUSE:
            reason = "is in use; stop the program that holds it, or choose another address"
        else:
            reason = (
                f"cannot be listened on ({error.strerror}); write tcp://HOST:PORT, for example tcp://127.0.0.1:5570"
            )
        raise UserError(f"{setting}: {address} {reason}") from None
