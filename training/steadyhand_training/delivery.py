"""Delivery of records that no robot made: to a running trainer over the link, else into the journal; exactly once."""

from __future__ import annotations

import enum
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import zmq

from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Ack, Credit, Hello, Label, ModelNotice, Record, Records, Refused, Welcome
from steadyhand_training.journal import Journal
from steadyhand_training.run_folder import RunFolder

TIMEOUT_S = 5.0  # without any answer of the trainer
BATCH_BYTES = 1 << 20
BATCH_RECORDS = 256


class DeliveryError(Exception):
    """Records could not be handed over; the message says why. Nothing of them is lost for that."""


class Way(str, enum.Enum):
    """How records got there."""

    TRAINER = "taken by the running trainer"
    JOURNAL = "written into the journal"


@dataclass(frozen=True)
class Parcel:
    """The whole of one stream, numbered from 1. Sending it twice is harmless."""

    edge: str
    run: str
    records: tuple[Record, ...]


def deliver(folder: RunFolder, contract: Contract, parcel: Parcel) -> Way:
    """Hand a stream's records over. Raises DeliveryError; UserError when the trainer refuses to work with them."""
    try:
        lock = folder.claim()
    except UserError:
        _send(_address(folder), contract, parcel)
        return Way.TRAINER
    with lock:
        _write(folder, contract, parcel)
    return Way.JOURNAL


def _write(folder: RunFolder, contract: Contract, parcel: Parcel) -> None:
    journal = Journal(folder.journal)
    try:
        acked = journal.acked(parcel.edge, parcel.run)
        for batch in _batches(parcel.records[acked:]):
            journal.commit(parcel.edge, parcel.run, batch, contract)
    except sqlite3.Error as error:
        raise DeliveryError(f"{folder.journal}: cannot be written ({error}); free space on its disk") from None
    finally:
        journal.close()


def _address(folder: RunFolder) -> str:
    """Where the trainer that holds the folder listens."""
    try:
        link = str(json.loads(folder.address.read_text(encoding="utf-8"))["link"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DeliveryError(f"{folder.root}: its trainer is not listening yet") from None
    return link.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _send(address: str, contract: Contract, parcel: Parcel) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
    try:
        socket.connect(address)
        hello = Hello(parcel.edge, f"{os.getpid()}", parcel.run, contract.hash, contract.to_json())
        acked = _ask(socket, hello, Welcome).acked
        for batch in _batches(parcel.records[acked:]):
            reply = _ask(socket, Records(tuple(batch)), Ack)
            if reply.number < batch[-1].number:
                raise DeliveryError(f"the trainer took {reply.number} of {batch[-1].number} records")
    finally:
        context.destroy(linger=0)


def _ask(socket: zmq.Socket[bytes], message: Any, expected: type[Any]) -> Any:
    """Send, and wait for an answer of that kind; what else a trainer tells its robots is not for us."""
    socket.send(wire.encode(message))
    deadline_s = time.monotonic() + TIMEOUT_S
    while socket.poll(max(0, round(1e3 * (deadline_s - time.monotonic())))):
        try:
            reply: Any = wire.decode(socket.recv(), Welcome, Ack, Refused, ModelNotice, Credit)
        except wire.WireError as error:
            raise DeliveryError(f"the trainer's answer cannot be read: {error}") from None
        if isinstance(reply, Refused):
            raise UserError(f"the trainer refused: {reply.reason}")
        if isinstance(reply, expected):
            return reply
    raise DeliveryError(f"the trainer did not answer within {TIMEOUT_S:.0f} s")


def _batches(records: Sequence[Record]) -> Iterable[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and (size + len(record.payload) > BATCH_BYTES or len(batch) == BATCH_RECORDS):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.payload)
    if batch:
        yield batch


class Outbox:
    """The labels of one sitting and one run, in a file of their own until the trainer has them.

    Locked while the sitting lasts, so that nobody else sends or removes it. Use as a context manager.
    """

    def __init__(self, path: Path, edge: str, run: str) -> None:
        """Open a new box, or one that an earlier sitting left. Raises BlockingIOError when its sitting still lasts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.edge, self.run = path, edge, run
        self._file: IO[str] = path.open("a+", encoding="ascii")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._file.seek(0)
        # A last line that a power cut broke off was never taken for an answer.
        lines = [line for line in self._file if line.endswith("\n")]
        if lines:
            head = json.loads(lines[0])
            self.edge, self.run = str(head["edge"]), str(head["run"])
        else:
            self._append(json.dumps({"edge": edge, "run": run}))
        self._records = [Record(i, bytes.fromhex(line)) for i, line in enumerate(lines[1:], 1)]

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def parcel(self) -> Parcel:
        return Parcel(self.edge, self.run, tuple(self._records))

    @property
    def labels(self) -> list[Label]:
        return [wire.decode(r.payload, Label) for r in self._records]

    def add(self, label: Label) -> None:
        """Keep a label, durably."""
        record = Record(len(self._records) + 1, wire.encode(label))
        self._append(record.payload.hex())
        self._records.append(record)

    def empty(self) -> None:
        """The trainer has everything: the file goes."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    def _append(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def leftovers(folder: RunFolder) -> list[Outbox]:
    """What earlier sittings could not deliver, opened; broken files are left alone."""
    found = []
    for path in sorted(folder.outbox.glob("*.jsonl")):
        try:
            found.append(Outbox(path, "", ""))
        except (BlockingIOError, ValueError, KeyError, TypeError):
            continue
    return found
