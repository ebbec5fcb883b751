"""Ingest answers a real DEALER: nothing twice, nothing lost, and no message can stop it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from test_publish import made
from training_steps import CONTRACT, RUN, demonstration, records, step

from steadyhand_models import artifact, wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import (
    Ack,
    Channel,
    Credit,
    Hello,
    ModelChunk,
    ModelNotice,
    ModelRequest,
    Record,
    Records,
    Refused,
    Welcome,
)
from steadyhand_models.registry import Registry
from steadyhand_training.ingest import CHUNK_BYTES, Ingest
from steadyhand_training.journal import Journal, Kind

DEADLINE_MS = 5_000
HELLO = Hello("edge", "boot", RUN, CONTRACT.hash, CONTRACT.to_json())


class Robot:
    """The edge's socket, as bare as it can be."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def send(self, message: Any) -> None:
        self.socket.send(wire.encode(message))

    def receive(self, *expected: type) -> Any:
        assert self.socket.poll(DEADLINE_MS), f"no {expected} came"
        return wire.decode(self.socket.recv(), *expected)

    def ask(self, message: Any, *expected: type) -> Any:
        self.send(message)
        return self.receive(*expected)

    def close(self) -> None:
        self.context.destroy(linger=0)


class House:
    """A trainer's folder whose ingest can be stopped and started again on the same address."""

    def __init__(self, root: Path) -> None:
        self.journal = root / "journal.sqlite"
        self.registry = Registry(root / "registry")
        self.ingest: Ingest | None = None
        self.robots: list[Robot] = []
        self.start("tcp://127.0.0.1:*")

    def start(self, listen: str) -> Ingest:
        self.ingest = Ingest(CONTRACT, self.journal, self.registry, listen)
        self.ingest.start()
        return self.ingest

    def robot(self) -> Robot:
        assert self.ingest is not None
        self.robots.append(Robot(self.ingest.endpoint))
        return self.robots[-1]

    def entries(self) -> list[Any]:
        return list(Journal(self.journal).replay())

    def close(self) -> None:
        for robot in self.robots:
            robot.close()
        if self.ingest is not None:
            self.ingest.stop()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def test_records_are_in_the_journal_when_the_acknowledgement_arrives(house: House) -> None:
    robot = house.robot()
    assert robot.ask(HELLO, Welcome, Refused) == Welcome(RUN, 0)
    sent = records(demonstration(1))
    assert robot.ask(Records(sent), Ack) == Ack(len(sent))
    assert [e.payload for e in house.entries()] == [r.payload for r in sent]
    assert house.ingest is not None and house.ingest.arrived.is_set()


def test_resending_after_a_lost_acknowledgement_makes_no_duplicates(house: House) -> None:
    sent = records(demonstration(1))
    first = house.robot()
    first.ask(HELLO, Welcome)
    first.ask(Records(sent[:8]), Ack)  # pretend that this acknowledgement never came
    second = house.robot()
    assert second.ask(HELLO, Welcome).acked == 8
    assert second.ask(Records(sent), Ack) == Ack(len(sent))
    assert [e.number for e in house.entries()] == [r.number for r in sent]
    assert house.ingest is not None and house.ingest.counters.duplicates == 8


def test_a_restarted_trainer_makes_the_robot_say_hello_and_goes_on_where_it_stood(house: House) -> None:
    assert house.ingest is not None
    endpoint = house.ingest.endpoint
    sent = records(demonstration(1))
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    robot.ask(Records(sent[:5]), Ack)
    house.ingest.stop()
    house.start(endpoint)
    assert "hello" in robot.ask(Records(sent[5:9]), Refused, Ack).reason
    assert robot.ask(HELLO, Welcome) == Welcome(RUN, 5)
    assert robot.ask(Records(sent[5:]), Ack) == Ack(len(sent))
    assert [e.number for e in house.entries()] == [r.number for r in sent]


def test_a_robot_of_another_contract_is_refused_with_the_difference(house: House) -> None:
    theirs = dataclasses.replace(CONTRACT, rate_hz=20.0, robot="so100")
    robot = house.robot()
    refused = robot.ask(Hello("edge", "boot", RUN, theirs.hash, theirs.to_json()), Refused, Welcome)
    assert "rate_hz: 10.0 -> 20.0" in refused.reason
    assert "robot: 'so101' -> 'so100'" in refused.reason
    assert isinstance(robot.ask(Records(records([step(1, 0)])), Refused, Ack), Refused)
    assert house.entries() == []


def test_a_contract_that_cannot_be_read_is_refused_too(house: House) -> None:
    refused = house.robot().ask(Hello("edge", "boot", RUN, "f" * 16, "{}"), Refused, Welcome)
    assert "cannot be read" in refused.reason


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "two parts", "foreign"])
def test_a_bad_message_is_counted_and_nothing_else_happens(house: House, damage: str) -> None:
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    good = wire.encode(Records(records([step(1, 0)])))
    parts = {
        "truncated": [good[: len(good) // 2]],
        "noise": [np.random.default_rng(0).bytes(500)],
        "empty": [b""],
        "two parts": [good, b"more"],
        "foreign": [wire.encode(Credit(10))],
    }[damage]
    robot.socket.send_multipart(parts)
    assert robot.ask(Records(records([step(1, 0)])), Ack) == Ack(1)
    assert house.ingest is not None and house.ingest.counters.bad_messages == 1
    assert len(house.entries()) == 1


def test_an_oversized_message_costs_its_sender_the_connection_and_nobody_else(house: House) -> None:
    calm, loud = house.robot(), house.robot()
    calm.ask(HELLO, Welcome)
    loud.socket.send(b"\x00" * (wire.MAX_MESSAGE_BYTES + 1))
    assert calm.ask(Records(records([step(1, 0)])), Ack) == Ack(1)


def test_a_damaged_record_in_a_sound_batch_is_kept_and_acknowledged(house: House) -> None:
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    assert robot.ask(Records((Record(1, b"junk"), *records([step(1, 0)], first=2))), Ack) == Ack(2)
    assert [e.kind for e in house.entries()] == [Kind.UNREADABLE, Kind.STEP]


def test_a_batch_behind_a_gap_is_answered_with_what_is_missing(house: House) -> None:
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    sent = records([step(1, t) for t in range(4)])
    assert robot.ask(Records(sent[2:]), Ack) == Ack(0)
    assert robot.ask(Records(sent), Ack) == Ack(4)


def test_a_robot_hears_of_the_newest_models_on_connecting_and_of_new_ones_when_published(house: House) -> None:
    house.registry.publish(made(3))
    house.registry.publish(made(4))
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    assert robot.receive(ModelNotice).version == 4
    house.registry.publish(made(2, Channel.CLASSIFIER))
    assert house.ingest is not None
    house.ingest.announce(Channel.CLASSIFIER, 2)
    notice = robot.receive(ModelNotice)
    assert (notice.channel, notice.version) == (Channel.CLASSIFIER, 2)


def test_a_robot_that_was_away_hears_of_the_newest_policy_after_the_encoder_that_it_names(house: House) -> None:
    eyes = [made(version, Channel.ENCODER) for version in (1, 2)]
    policy = made(7)
    names = {"encoder_version": 1, "encoder_sha256": eyes[0].manifest.sha256}
    policy = dataclasses.replace(policy, manifest=dataclasses.replace(policy.manifest, **names))
    for one in (*eyes, policy):
        house.registry.publish(one)
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    heard = [robot.receive(ModelNotice) for _ in range(2)]
    assert [(n.channel, n.version) for n in heard] == [(Channel.ENCODER, 1), (Channel.POLICY, 7)]
    assert house.ingest is not None
    house.ingest.announce(Channel.POLICY, 7)
    assert [robot.receive(ModelNotice) for _ in range(2)] == heard


def test_a_model_is_fetched_in_chunks_that_make_the_announced_bundle(house: House) -> None:
    assert house.ingest is not None
    house.registry.publish(made(1, size=2 * CHUNK_BYTES + 17))
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    notice = robot.receive(ModelNotice)
    data = b""
    while len(data) < notice.size:
        assert not house.ingest.fetched(Channel.POLICY, 1)
        chunk = robot.ask(ModelRequest(Channel.POLICY, 1, len(data)), ModelChunk)
        assert chunk.offset == len(data) and 0 < len(chunk.data) <= CHUNK_BYTES
        data += chunk.data
    assert hashlib.sha256(data).hexdigest() == notice.sha256
    assert artifact.unpack(data, CONTRACT.hash).manifest.version == 1
    assert house.ingest.fetched(Channel.POLICY, 1)


@pytest.mark.parametrize(("version", "offset"), [(9, 0), (1, -1), (1, 1 << 40)])
def test_a_request_for_what_is_not_there_is_a_bad_message(house: House, version: int, offset: int) -> None:
    house.registry.publish(made(1))
    robot = house.robot()
    robot.ask(HELLO, Welcome)
    robot.receive(ModelNotice)
    robot.send(ModelRequest(Channel.POLICY, version, offset))
    assert robot.ask(Records(records([step(1, 0)])), Ack) == Ack(1)
    assert house.ingest is not None and house.ingest.counters.bad_messages == 1


def test_credit_reaches_a_robot_that_is_there_and_one_that_comes_later(house: House) -> None:
    assert house.ingest is not None
    early = house.robot()
    early.ask(HELLO, Welcome)
    house.ingest.credit(10)
    assert early.receive(Credit) == Credit(10)
    late = house.robot()
    late.ask(HELLO, Welcome)
    assert late.receive(Credit) == Credit(10)


def test_a_busy_address_is_refused_in_words(house: House, tmp_path: Path) -> None:
    assert house.ingest is not None
    with pytest.raises(UserError, match=r"listen: tcp://127.0.0.1:\d+ is in use"):
        Ingest(CONTRACT, tmp_path / "other.sqlite", house.registry, house.ingest.endpoint)
    with pytest.raises(UserError, match="write tcp://HOST:PORT"):
        Ingest(CONTRACT, tmp_path / "other.sqlite", house.registry, "nonsense")
