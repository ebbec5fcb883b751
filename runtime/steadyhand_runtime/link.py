"""The link: carries the spool's records to the trainer, and the trainer's models here, across every outage."""

from __future__ import annotations

import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from steadyhand_models import task, topics, wire
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import (
    Ack,
    Credit,
    Hello,
    ModelChunk,
    ModelNotice,
    Record,
    Records,
    Refused,
    Welcome,
)
from steadyhand_models.registry import Registry
from steadyhand_models.settings import SettingsError
from steadyhand_runtime import config
from steadyhand_runtime.config import LinkSettings
from steadyhand_runtime.fetch import Fetcher
from steadyhand_runtime.liveness import Beat
from steadyhand_runtime.spool import Spool, SpoolError
from steadyhand_runtime.telemetry import Log, StatFile

WINDOW = 256  # records on their way without an acknowledgement
BATCH_BYTES = wire.MAX_MESSAGE_BYTES // 2
HELLO_PERIOD_NS = 1_000_000_000
REFUSED_PERIOD_NS = 5_000_000_000
STALL_NS = 10_000_000_000
HEARTBEAT_MS = 1_000
SILENCE_MS = 4_000  # without a sign of life the connection counts as lost
RECONNECT_MS = 100
RECONNECT_MAX_MS = 2_000
POLL_MS = 20  # how soon a new record of the spool is noticed
MESSAGES_PER_POLL = 64

_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)
Incoming = Welcome | Refused | Ack | Credit | ModelNotice | ModelChunk


class Link:
    """One edge's connection to the trainer, pumped by `poll`; never blocks longer than asked and reconnects for ever.

    Records are sent in order above what the trainer has committed, at most WINDOW ahead, and are trimmed from the spool
    only when acknowledged; after any interruption everything unacknowledged is sent again. Raises SpoolError.
    """

    def __init__(
        self,
        settings: LinkSettings,
        run: str,
        contract: Contract,
        spool: Spool,
        registry: Registry,
        log: Log | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._log = log or Log()
        self._now_ns = now_ns
        # The spool's identity keeps the numbers of a replaced spool from being taken for duplicates.
        edge = f"{settings.edge}.{spool.identity}"
        self._hello = wire.encode(Hello(edge, _boot_id(), run, contract.hash, contract.to_json()))
        self._run = run
        self._fetcher = Fetcher(registry, contract.hash, settings.keep_models, self._log, settings.trusted_keys)
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._down_since_ns = now_ns()
        self.acked = 0
        self.sent = 0
        self.credit = 0
        self.refused = ""
        self.bad_messages = 0
        self.reconnects = 0
        self._open()

    @property
    def connected(self) -> bool:
        """Whether the trainer has welcomed this edge."""
        return self._welcomed

    def poll(self, timeout_ms: int = 0) -> bool:
        """Send what may be sent, wait for news at most `timeout_ms`, take it in; true when there was any."""
        self._send_due()
        events = dict(self._poller.poll(timeout_ms))
        if self._monitor in events:
            self._watch()
        if self._socket in events:
            self._receive()
        if events:
            self._send_due()
        return bool(events)

    def drain(self, timeout_s: float) -> bool:
        """Pump until the trainer has everything, at most `timeout_s`; true when it has."""
        deadline_ns = self._now_ns() + round(timeout_s * 1e9)
        while not (self._welcomed and self.acked >= self._spool.last_number):
            if self._now_ns() >= deadline_ns:
                return False
            self.poll(POLL_MS)
        return True

    def figures(self) -> dict[str, Any]:
        """What a stat file shows of the link."""
        return {
            "connected": self._welcomed,
            "refused": self.refused,
            "sent": self.sent,
            "acked": self.acked,
            "recorded": self._spool.last_number,
            "reconnects": self.reconnects,
            "bad_messages": self.bad_messages,
            "models_published": self._fetcher.published,
            "models_refused": self._fetcher.refused,
        }

    def close(self) -> None:
        """Leave the trainer; harmless when repeated. The spool stays open."""
        if not self._socket.closed:
            self._shut()
            self._context.term()

    # -- the connection --------------------------------------------------------------------------------------------

    def _open(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.immediate = 1
        socket.sndhwm = socket.rcvhwm = topics.TOPICS["link.records"].bound
        socket.maxmsgsize = wire.MAX_MESSAGE_BYTES
        socket.heartbeat_ivl = HEARTBEAT_MS
        socket.heartbeat_timeout = SILENCE_MS
        socket.reconnect_ivl = RECONNECT_MS
        socket.reconnect_ivl_max = RECONNECT_MAX_MS
        self._monitor = socket.get_monitor_socket(_WATCHED)
        self._socket = socket
        self._reachable = False
        self._welcomed = False
        self._hello_due_ns = 0
        self._progress_ns = self._now_ns()
        try:
            socket.connect(self._settings.address)
        except zmq.ZMQError as error:
            self._shut()
            reason = error.strerror or str(error)
            raise SettingsError(
                f"link.address: {self._settings.address!r} is no address ({reason}); write tcp://HOST:PORT"
            ) from None
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _shut(self) -> None:
        for socket in (self._socket, self._monitor):
            if socket in self._poller:
                self._poller.unregister(socket)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _reopen(self, reason: str) -> None:
        """Start over with a fresh socket: nothing of the old connection may slip in before the next Hello."""
        if self._welcomed or self._reachable:
            self._log.warn(
                "link.lost", address=self._settings.address, reason=reason, unacknowledged=self.sent - self.acked
            )
            self._down_since_ns = self._now_ns()
        self.reconnects += 1
        self._fetcher.interrupted()
        self.sent = self.acked
        self._shut()
        self._open()

    def _watch(self) -> None:
        """Follow what the transport says about the connection."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._reachable = True
                self._hello_due_ns = 0
            elif event == zmq.EVENT_DISCONNECTED:
                self._reopen("disconnected")
                return
            else:
                self._log.error(
                    "link.not_a_trainer", every_s=10.0, address=self._settings.address,
                    fix="something else listens there: check link.address and the trainer's listen address",
                )  # fmt: skip

    # -- sending ---------------------------------------------------------------------------------------------------

    def _send_due(self) -> None:
        now_ns = self._now_ns()
        if not self._welcomed:
            self._greet(now_ns)
            return
        self._send_records()
        request = self._fetcher.request(now_ns)
        if request is not None:
            self._send(wire.encode(request))
        if self.sent == self.acked:
            self._progress_ns = now_ns
        elif now_ns - self._progress_ns > STALL_NS:
            self._reopen("no acknowledgement")

    def _greet(self, now_ns: int) -> None:
        if self._reachable and now_ns >= self._hello_due_ns:
            self._send(self._hello)
            self._hello_due_ns = now_ns + (REFUSED_PERIOD_NS if self.refused else HELLO_PERIOD_NS)
        if not self.refused and now_ns - self._down_since_ns > 2 * HELLO_PERIOD_NS:
            self._log.warn(
                "link.waiting",
                every_s=10.0,
                address=self._settings.address,
                for_s=(now_ns - self._down_since_ns) / 1e9,
                kept=self._spool.pending,
                reason="no answer" if self._reachable else "no trainer listens there",
            )

    def _send_records(self) -> None:
        batch = topics.TOPICS["link.records"].bound
        while (room := self.acked + WINDOW - self.sent) > 0:
            records = _at_most(self._spool.read_after(self.sent, min(batch, room)), BATCH_BYTES)
            if not records:
                return
            # An acknowledged number must never be handed out again, not even after a power cut here.
            self._spool.sync()
            if not self._send(wire.encode(Records(tuple(records)))):
                return
            self.sent = records[-1].number

    def _send(self, data: bytes) -> bool:
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    # -- receiving -------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(MESSAGES_PER_POLL):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(parts) != 1:
                    raise wire.WireError(f"{len(parts)} parts where one was expected")
                message: Any = wire.decode(parts[0], Welcome, Refused, Ack, Credit, ModelNotice, ModelChunk)
                self._take(message)
            except wire.WireError as error:
                self.bad_messages += 1
                self._log.warn("link.bad_message", every_s=5.0, reason=error)

    def _take(self, message: Incoming) -> None:
        if isinstance(message, Ack):
            self._acknowledged(message.number)
        elif isinstance(message, ModelChunk):
            self._fetcher.chunk(message)
        elif isinstance(message, ModelNotice):
            self._fetcher.notice(message)
        elif isinstance(message, Credit):
            self.credit = max(self.credit, message.steps)
        elif isinstance(message, Welcome):
            self._accepted(message)
        else:
            self._turned_away(message.reason)

    def _accepted(self, welcome: Welcome) -> None:
        if self._welcomed:
            return  # the answer to a second Hello that crossed the first answer
        last = self._spool.last_number
        if welcome.run != self._run:
            self._turned_away(f"the trainer works on run {welcome.run!r}, this edge on {self._run!r}")
            return
        if not 0 <= welcome.acked <= last:
            self._turned_away(f"the trainer has {welcome.acked} records of this spool, which holds {last}: restore it")
            return
        self._welcomed = True
        self.refused = ""
        self.acked = self.sent = welcome.acked
        self._progress_ns = self._now_ns()
        self._spool.trim(self.acked)
        if welcome.acked < self._spool.trimmed:
            self._log.error(
                "link.journal_lost_records",
                first=welcome.acked + 1,
                last=self._spool.trimmed,
                reason="the trainer had acknowledged them: was its journal replaced?",
            )
        self._log.info("link.connected", address=self._settings.address, acked=self.acked, to_send=last - self.acked)

    def _turned_away(self, reason: str) -> None:
        """Introduce ourselves again later: soon to a trainer that forgot a known edge, else when somebody mended it."""
        forgotten, self._welcomed = self._welcomed, False
        self._down_since_ns = self._now_ns() if forgotten else self._down_since_ns
        self._fetcher.interrupted()
        self._hello_due_ns = self._now_ns() + (HELLO_PERIOD_NS if forgotten else REFUSED_PERIOD_NS)
        if not forgotten:
            self.refused = reason
        self._log.error("link.refused", every_s=30.0, address=self._settings.address, reason=reason)

    def _acknowledged(self, number: int) -> None:
        if not self._welcomed or not self.acked <= number <= self.sent:
            raise wire.WireError(f"Ack {number} is outside of {self.acked}..{self.sent}")
        if number > self.acked:
            self.acked = number
            self._progress_ns = self._now_ns()
            self._spool.trim(number)


def _at_most(records: list[Record], limit_bytes: int) -> list[Record]:
    """The first records that fit a message together, at least one."""
    total = 0
    for i, record in enumerate(records):
        total += len(record.payload)
        if total > limit_bytes and i:
            return records[:i]
    return records


def _boot_id() -> str:
    """Identifies this machine's monotonic clock: it is another one after a reboot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


def main(argv: Sequence[str]) -> int:
    """The link process: pumps until told to stop, then hands over what is left."""
    settings = config.from_child_arguments(argv, "steadyhand_runtime.link")
    log = Log()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopping.append(signum))
    paths = settings.paths
    paths.prepare()
    spool = Spool(paths.spool)
    contract = task.load(settings.task).contract()
    link = Link(settings.link, settings.run_id, contract, spool, Registry(paths.models), log)
    stats = StatFile(paths.edge / "link.json", 2.0, log)
    beat = Beat()
    while not stopping:
        beat()
        try:
            link.poll(POLL_MS)
        except SpoolError as error:
            log.error("spool.failed", every_s=10.0, reason=error)
            time.sleep(POLL_MS / 1e3)
        if stats.due(now_ns := time.monotonic_ns()):
            stats.write(link.figures(), now_ns)
    link.drain(settings.link.drain_s if link.connected else 0.0)
    log.info("link.stopped", acked=link.acked, kept=spool.pending)
    stats.write(link.figures(), time.monotonic_ns())
    link.close()
    spool.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (UserError, SettingsError) as error:
        sys.exit(f"link: {error}")
