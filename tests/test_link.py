"""The link delivers every record once and in order, and every model whole, across restarts of the other side."""

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import zmq

from steadyhand_models import artifact, task, wire
from steadyhand_models import messages as m
from steadyhand_models.registry import Registry
from steadyhand_models.settings import SettingsError, to_toml
from steadyhand_runtime import fetch
from steadyhand_runtime.config import LinkSettings, RuntimeSettings
from steadyhand_runtime.link import WINDOW, Link
from steadyhand_runtime.spool import Spool
from steadyhand_runtime.telemetry import Log

CONTRACT = task.load("lift").contract()
DEADLINE_S = 15.0


def bundle(version=1, channel=m.Channel.POLICY, size=600_000, contract_hash=CONTRACT.hash):
    golden = artifact.Golden(
        frames=np.zeros((4, *CONTRACT.frames_shape), np.uint8),
        state=np.zeros((4, 18), np.float32),
        noise=np.zeros((4, 4), np.float32),
        output=np.zeros((4, 4), np.float32),
    )
    model = np.random.default_rng(version).bytes(size)
    manifest = artifact.Manifest(
        channel, version, version - 1, contract_hash, artifact.digest(model, golden), 10, 0.0, "tick", 1e-4
    )
    return artifact.pack(artifact.Artifact(manifest, model, golden))


@dataclass
class Journal:
    """What the other side keeps over its restarts."""

    rows: dict[int, bytes] = field(default_factory=dict)
    duplicates: int = 0

    @property
    def acked(self) -> int:
        return max(self.rows, default=0)


def bind(router, port):
    """Bind to a free port, or to the one that a closed socket is about to give up."""
    if not port:
        return router.bind_to_random_port("tcp://127.0.0.1")
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            router.bind(f"tcp://127.0.0.1:{port}")
            return port
        except zmq.ZMQError:
            assert time.monotonic() < deadline_s


class Trainer:
    """A ROUTER that commits, acknowledges and serves bundles; `deaf` commits without acknowledging."""

    def __init__(self, journal, port=0, models=(), refuse="", deaf=False):
        self.journal, self.refuse, self.deaf = journal, refuse, deaf
        self.bundles = {b[0]: b[1] for b in models}
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.port = bind(self.socket, port)
        self.hellos: list[m.Hello] = []
        self.requests: list[m.ModelRequest] = []
        self.peer = b""
        self.in_flight = 0

    def pump(self):
        while self.socket.poll(1):
            self.peer, data = self.socket.recv_multipart()
            message = wire.decode(data, m.Hello, m.Records, m.ModelRequest)
            if isinstance(message, m.Hello):
                self.hellos.append(message)
                self._greet(message)
            elif isinstance(message, m.Records):
                self._commit(message)
            else:
                self.requests.append(message)
                self._serve(message)

    def send(self, message):
        self.socket.send_multipart([self.peer, wire.encode(message)])

    def raw(self, *parts):
        self.socket.send_multipart([self.peer, *parts])

    def offer(self, notice, data):
        self.bundles[notice] = data
        self.send(notice)

    def _greet(self, hello):
        if self.refuse:
            self.send(m.Refused(self.refuse))
            return
        self.send(m.Welcome(hello.run, self.journal.acked))
        for notice in self.bundles:
            self.send(notice)

    def _commit(self, records):
        for record in records.records:
            assert record.number == self.journal.acked + 1 or record.number in self.journal.rows
            self.journal.duplicates += record.number in self.journal.rows
            self.journal.rows[record.number] = record.payload
        if not self.deaf:
            self.send(m.Ack(self.journal.acked))

    def _serve(self, request):
        for notice, data in self.bundles.items():
            if (notice.channel, notice.version) == (request.channel, request.version):
                piece = data[request.offset : request.offset + fetch.CHUNK_BYTES]
                self.send(m.ModelChunk(request.channel, request.version, request.offset, piece))

    def close(self):
        self.socket.close(linger=0)
        self.context.term()


def notice_of(data, version=1, channel=m.Channel.POLICY):
    return m.ModelNotice(channel, version, len(data), hashlib.sha256(data).hexdigest())


class Rig:
    """A link under test with its spool, its registry and what it logged."""

    def __init__(self, folder, port):
        self.spool = Spool(folder / "spool.sqlite", durable=False)
        self.registry = Registry(folder / "models")
        self.out = io.StringIO()
        address = f"tcp://127.0.0.1:{port}"
        self.link = Link(LinkSettings(address), "run", CONTRACT, self.spool, self.registry, Log(self.out))

    def until(self, condition, *trainers):
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not reached; log:\n{self.out.getvalue()}"
            self.link.poll(2)
            for trainer in trainers:
                trainer.pump()


@pytest.fixture
def journal():
    return Journal()


@pytest.fixture
def trainer(journal):
    made = Trainer(journal)
    yield made
    made.close()


@pytest.fixture
def rig(tmp_path, trainer):
    made = Rig(tmp_path, trainer.port)
    yield made
    made.link.close()


def test_records_arrive_once_in_order_and_leave_the_spool_when_acknowledged(rig, trainer, journal):
    payloads = [b"record %d" % i for i in range(700)]
    rig.spool.append(payloads)
    rig.until(lambda: rig.link.acked == 700, trainer)
    assert [journal.rows[n] for n in sorted(journal.rows)] == payloads
    assert journal.duplicates == 0
    assert rig.spool.pending == 0
    rig.spool.append([b"later"])
    rig.until(lambda: rig.link.acked == 701, trainer)


def test_the_edge_introduces_itself_with_run_contract_and_the_spools_identity(rig, trainer):
    rig.until(lambda: rig.link.connected, trainer)
    hello = trainer.hellos[0]
    assert hello.run == "run" and hello.contract_hash == CONTRACT.hash
    assert hello.contract_json == CONTRACT.to_json()
    assert hello.edge == f"edge.{rig.spool.identity}"


def test_at_most_a_window_is_on_its_way(rig, trainer, journal):
    trainer.deaf = True
    rig.spool.append([b"x"] * (WINDOW + 100))
    rig.until(lambda: len(journal.rows) == WINDOW, trainer)
    for _ in range(20):
        rig.link.poll(1)
        trainer.pump()
    assert len(journal.rows) == rig.link.sent == WINDOW
    assert rig.spool.pending == WINDOW + 100


def test_records_too_big_for_one_message_together_are_split(rig, trainer, journal):
    rig.spool.append([bytes(1_500_000)] * 12)
    rig.until(lambda: rig.link.acked == 12, trainer)
    assert journal.duplicates == 0


def test_a_trainer_killed_before_it_acknowledged_gets_everything_again_and_doubles_nothing(rig, trainer, journal):
    trainer.deaf = True
    rig.spool.append([b"%d" % i for i in range(150)])
    rig.until(lambda: len(journal.rows) == 150, trainer)
    journal.rows = {n: p for n, p in journal.rows.items() if n <= 40}  # the rest was never committed
    trainer.close()
    again = Trainer(journal, trainer.port)
    try:
        rig.until(lambda: rig.link.acked == 150, again)
        assert sorted(journal.rows) == list(range(1, 151)) and journal.duplicates == 0
        assert rig.link.reconnects >= 1
    finally:
        again.close()


def test_recording_goes_on_while_the_trainer_is_away(rig, trainer, journal):
    rig.until(lambda: rig.link.connected, trainer)
    trainer.close()
    rig.until(lambda: not rig.link.connected)
    rig.spool.append([b"alone"] * 30)
    again = Trainer(journal, trainer.port)
    try:
        rig.until(lambda: rig.link.acked == 30, again)
    finally:
        again.close()
    assert "link.lost" in rig.out.getvalue()


def test_a_restarted_edge_goes_on_where_the_trainer_stands(tmp_path, rig, trainer, journal):
    rig.spool.append([b"a"] * 20)
    rig.until(lambda: rig.link.acked == 20, trainer)
    trainer.deaf = True
    rig.spool.append([b"b"] * 10)
    rig.until(lambda: len(journal.rows) == 30, trainer)
    rig.link.close()
    trainer.deaf = False
    other = Rig(tmp_path, trainer.port)
    try:
        other.until(lambda: other.link.acked == 30, trainer)
    finally:
        other.link.close()
    assert journal.duplicates == 0
    assert other.spool.pending == 0


def test_a_refusal_is_said_with_its_reason_and_nothing_is_sent_or_lost(rig, trainer, journal):
    trainer.refuse = "contract: rate_hz: 10.0 -> 20.0"
    rig.spool.append([b"kept"])
    rig.until(lambda: rig.link.refused, trainer)
    assert "rate_hz: 10.0 -> 20.0" in rig.link.refused and "link.refused" in rig.out.getvalue()
    assert not journal.rows and rig.spool.pending == 1 and not rig.link.connected


def test_a_trainer_that_claims_more_than_was_recorded_is_turned_away(rig, trainer, journal):
    journal.rows[99] = b"of another spool"
    rig.until(lambda: rig.link.refused, trainer)
    assert "restore it" in rig.link.refused


def test_another_runs_trainer_is_turned_away(rig, trainer):
    trainer.refuse = "unused"
    rig.until(lambda: trainer.hellos, trainer)
    trainer.send(m.Welcome("other", 0))
    rig.until(lambda: "other" in rig.link.refused)
    assert not rig.link.connected


def test_truncated_foreign_and_multipart_messages_are_counted_and_harm_nothing(rig, trainer):
    rig.until(lambda: rig.link.connected, trainer)
    whole = wire.encode(m.Ack(0))
    for parts in (
        [whole[:-1]],
        [b""],
        [b"\x80\x04pickle"],
        [wire.encode(m.Hello("a", "b", "c", "d", "e"))],
        [whole, whole],
    ):
        trainer.raw(*parts)
    rig.until(lambda: rig.link.bad_messages == 5, trainer)
    rig.spool.append([b"still works"])
    rig.until(lambda: rig.link.acked == 1, trainer)


def test_an_acknowledgement_of_what_was_never_sent_is_refused(rig, trainer):
    trainer.deaf = True
    rig.spool.append([b"one", b"two"])
    rig.until(lambda: rig.link.sent == 2, trainer)
    trainer.send(m.Ack(3))
    rig.until(lambda: rig.link.bad_messages == 1, trainer)
    assert rig.spool.pending == 2


def test_an_oversized_message_costs_the_connection_and_nothing_else(rig, trainer, journal):
    rig.until(lambda: rig.link.connected, trainer)
    trainer.raw(bytes(wire.MAX_MESSAGE_BYTES + 1))
    rig.until(lambda: rig.link.reconnects == 1, trainer)
    rig.spool.append([b"still works"])
    rig.until(lambda: rig.link.acked == 1, trainer)


def test_something_else_behind_the_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        rig = Rig(tmp_path, server.getsockname()[1])

        def answer():
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 4)
                peer.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            rig.until(lambda: "link.not_a_trainer" in rig.out.getvalue() or rig.link.reconnects)
        finally:
            thread.join(DEADLINE_S)
            rig.link.close()


def test_an_unusable_address_names_the_setting(tmp_path):
    with pytest.raises(SettingsError, match=r"link\.address"):
        Link(
            LinkSettings("over there"),
            "run",
            CONTRACT,
            Spool(tmp_path / "s.sqlite"),
            Registry(tmp_path),
            Log(io.StringIO()),
        )


def test_credit_only_grows(rig, trainer):
    rig.until(lambda: rig.link.connected, trainer)
    trainer.send(m.Credit(30))
    trainer.send(m.Credit(20))
    rig.until(lambda: rig.link.credit == 30, trainer)


def test_an_offered_model_arrives_in_verified_pieces_and_is_published(rig, trainer):
    data = bundle(3)
    rig.until(lambda: rig.link.connected, trainer)
    trainer.offer(notice_of(data, 3), data)
    rig.until(lambda: rig.registry.newest(m.Channel.POLICY) == 3, trainer)
    assert artifact.pack(rig.registry.load(m.Channel.POLICY, 3)) == data
    assert [r.offset for r in trainer.requests] == list(range(0, len(data), fetch.CHUNK_BYTES))
    assert rig.registry.root.joinpath("policy").is_dir()


def test_a_download_goes_on_where_a_restarted_trainer_left_it(rig, trainer, journal):
    data = bundle(1, size=1_500_000)
    notice = notice_of(data)
    rig.until(lambda: rig.link.connected, trainer)
    trainer.offer(notice, data)
    rig.until(lambda: len(trainer.requests) == 3, trainer)
    trainer.close()
    again = Trainer(journal, trainer.port, [(notice, data)])
    try:
        rig.until(lambda: rig.registry.newest(m.Channel.POLICY) == 1, again)
        assert again.requests[0].offset > 0
    finally:
        again.close()


def test_a_damaged_model_is_fetched_again_a_few_times_and_then_left(rig, trainer):
    data = bundle(1, size=1000)
    rig.until(lambda: rig.link.connected, trainer)
    trainer.offer(notice_of(data), data[:-1] + bytes([data[-1] ^ 1]))
    rig.until(lambda: rig.link.figures()["models_refused"] == fetch.ATTEMPTS, trainer)
    assert rig.registry.newest(m.Channel.POLICY) is None
    trainer.offer(notice_of(bundle(2), 2), bundle(2))
    rig.until(lambda: rig.registry.newest(m.Channel.POLICY) == 2, trainer)


def test_a_model_of_another_contract_is_refused_with_the_reason(rig, trainer):
    data = bundle(1, size=1000, contract_hash="0123456789abcdef")
    rig.until(lambda: rig.link.connected, trainer)
    trainer.offer(notice_of(data), data)
    rig.until(lambda: "made for contract 0123456789abcdef" in rig.out.getvalue(), trainer)
    assert rig.registry.newest(m.Channel.POLICY) is None


def fetcher(tmp_path, keep=32):
    return fetch.Fetcher(Registry(tmp_path), CONTRACT.hash, keep, Log(io.StringIO()))


def deliver(f, data, version, channel=m.Channel.POLICY):
    f.notice(notice_of(data, version, channel))
    while (request := f.request(0)) is not None:
        f.chunk(
            m.ModelChunk(request.channel, request.version, request.offset, data[request.offset :][: fetch.CHUNK_BYTES])
        )


def test_a_request_without_an_answer_is_repeated_and_then_dropped_for_the_next(tmp_path):
    f = fetcher(tmp_path)
    data = bundle(1)
    f.notice(notice_of(data))
    assert f.request(0) == m.ModelRequest(m.Channel.POLICY, 1, 0)
    assert f.request(fetch.ANSWER_TIMEOUT_NS - 1) is None
    times = [f.request(k * fetch.ANSWER_TIMEOUT_NS) for k in range(1, 5)]
    assert times == [m.ModelRequest(m.Channel.POLICY, 1, 0)] * 2 + [None, None]
    f.notice(notice_of(data))
    assert f.request(10 * fetch.ANSWER_TIMEOUT_NS) is not None


def test_chunks_that_do_not_continue_the_bundle_are_ignored(tmp_path):
    f = fetcher(tmp_path)
    data = bundle(1, size=1000)
    f.chunk(m.ModelChunk(m.Channel.POLICY, 1, 0, data))
    f.notice(notice_of(data))
    f.request(0)
    for offset, piece in ((5, data), (0, b""), (0, data + b"more"), (0, bytes(fetch.CHUNK_BYTES + 1))):
        f.chunk(m.ModelChunk(m.Channel.POLICY, 1, offset, piece))
    assert f.published == 0
    f.chunk(m.ModelChunk(m.Channel.POLICY, 1, 0, data))
    assert f.published == 1


def test_old_and_oversized_offers_are_passed_over(tmp_path):
    f = fetcher(tmp_path)
    deliver(f, bundle(5, size=1000), 5)
    f.notice(notice_of(bundle(4, size=1000), 4))
    f.notice(replace(notice_of(b"x", 6), size=artifact.MAX_MODEL_BYTES + 1))
    assert f.request(0) is None


def test_a_bundle_that_holds_another_version_than_announced_is_refused(tmp_path):
    f = fetcher(tmp_path)
    f.notice(notice_of(bundle(1, size=1000), 2))
    request = f.request(0)
    f.chunk(m.ModelChunk(request.channel, request.version, 0, bundle(1, size=1000)))
    assert (f.published, f.refused) == (0, 1)


def test_only_the_newest_versions_are_kept(tmp_path):
    f = fetcher(tmp_path, keep=3)
    for version in range(1, 7):
        deliver(f, bundle(version, size=100), version)
    assert Registry(tmp_path).versions(m.Channel.POLICY) == [4, 5, 6]


def test_the_newest_offer_wins_and_the_classifier_comes_first(tmp_path):
    f = fetcher(tmp_path)
    for version in (1, 2):
        f.notice(notice_of(bundle(version, size=100), version))
    f.notice(notice_of(bundle(1, m.Channel.CLASSIFIER, 100), 1, m.Channel.CLASSIFIER))
    assert f.request(0).channel is m.Channel.CLASSIFIER
    f.chunk(m.ModelChunk(m.Channel.CLASSIFIER, 1, 0, bundle(1, m.Channel.CLASSIFIER, 100)))
    assert f.request(0) == m.ModelRequest(m.Channel.POLICY, 2, 0)


def test_a_killed_link_process_loses_and_doubles_nothing(tmp_path, trainer, journal):
    run = tmp_path / "run"
    settings = RuntimeSettings(run=run, link=LinkSettings(f"tcp://127.0.0.1:{trainer.port}"))
    config = tmp_path / "runtime.toml"
    config.write_text(to_toml(settings))
    spool = Spool(settings.paths.spool)
    spool.append([b"%d" % i for i in range(300)])
    command = [sys.executable, "-m", "steadyhand_runtime.link", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + DEADLINE_S

    def pump_until(condition):
        while not condition():
            assert time.monotonic() < deadline_s
            trainer.pump()

    try:
        pump_until(lambda: len(journal.rows) >= 100)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        spool.append([b"%d" % i for i in range(300, 400)])
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        pump_until(lambda: len(journal.rows) == 400)
        process.send_signal(signal.SIGTERM)
        pump_until(lambda: process.poll() is not None)
    finally:
        process.kill()
    assert process.returncode == 0
    assert [journal.rows[n] for n in range(1, 401)] == [b"%d" % i for i in range(400)]
    assert spool.pending == 0
    assert "link.stopped acked=400 kept=0" in process.stderr.read()
