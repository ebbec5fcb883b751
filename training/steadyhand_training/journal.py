"""The journal: every record that a robot sent, once, in order, durably; learning and resuming read it alike."""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Label, Record, Step, Swap

BUSY_TIMEOUT_S = 10.0
# Edges that are no robots: frames labelled elsewhere, and answers to questions. Their names begin so.
IMPORT_EDGE, REVIEW_EDGE = "import-", "review-"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY,
    edge TEXT NOT NULL,
    run TEXT NOT NULL,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    episode INTEGER,
    seq INTEGER,
    note TEXT NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (edge, run, number)
);
CREATE INDEX IF NOT EXISTS by_episode ON records (run, episode, seq);
CREATE TABLE IF NOT EXISTS streams (
    edge TEXT NOT NULL,
    run TEXT NOT NULL,
    acked INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    PRIMARY KEY (edge, run)
);
"""
_COLUMNS = "position, edge, run, number, kind, episode, seq, note, payload"


def is_import(edge: str) -> bool:
    """Whether a stream's frames were labelled elsewhere."""
    return edge.startswith(IMPORT_EDGE)


def is_robot(edge: str) -> bool:
    return not edge.startswith((IMPORT_EDGE, REVIEW_EDGE))


class Kind(str, enum.Enum):
    """What a record holds. Unreadable ones are kept as they came, with the reason, and are not learned from."""

    STEP = "step"
    LABEL = "label"
    SWAP = "swap"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of the journal; `position` is its place in the order of arrival over all edges."""

    position: int
    edge: str
    run: str
    number: int
    kind: Kind
    episode: int | None
    seq: int | None
    note: str
    payload: bytes

    @property
    def message(self) -> Step | Label | Swap:
        """The decoded record. Raises wire.WireError when it is unreadable."""
        return _decode(self.payload)


@dataclass(frozen=True, slots=True)
class Commit:
    """What became of one batch. `gap`: it began behind `acked` + 1, and nothing of it was kept."""

    acked: int
    added: int = 0
    duplicates: int = 0
    unreadable: int = 0
    gap: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records of each kind the journal holds, and how many resent ones it dropped."""

    steps: int
    labels: int
    swaps: int
    unreadable: int
    duplicates: int


class Journal:
    """One connection to the journal, for one thread. Raises UserError when the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            # FULL: a commit that was acknowledged survives a power cut, not only a crash.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be used as a journal ({error}); choose another run folder") from None

    def close(self) -> None:
        self._db.close()

    def acked(self, edge: str, run: str) -> int:
        """Number up to which every record of this stream is committed; 0 for an unknown one."""
        row = self._db.execute("SELECT acked FROM streams WHERE edge = ? AND run = ?", (edge, run)).fetchone()
        return int(row[0]) if row else 0

    def commit(self, edge: str, run: str, records: Sequence[Record], contract: Contract) -> Commit:
        """Add the records that continue the stream, in one durable transaction.

        Records at or below `acked` are duplicates: dropped and counted. Raises sqlite3.Error when the disk refuses;
        then nothing of the batch is kept.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            commit = self._add(edge, run, records, contract)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return commit

    def _add(self, edge: str, run: str, records: Sequence[Record], contract: Contract) -> Commit:
        acked = before = self.acked(edge, run)
        rows = []
        for record in records:
            if record.number <= acked:
                continue
            if record.number != acked + 1:
                break
            acked = record.number
            rows.append((edge, run, record.number, *_describe(record.payload, run, contract), record.payload))
        self._db.executemany(
            "INSERT INTO records (edge, run, number, kind, episode, seq, note, payload) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        duplicates = sum(r.number <= before for r in records)
        self._db.execute(
            "INSERT INTO streams VALUES (?, ?, ?, ?) ON CONFLICT (edge, run) "
            "DO UPDATE SET acked = excluded.acked, duplicates = duplicates + excluded.duplicates",
            (edge, run, acked, duplicates),
        )
        unreadable = sum(row[3] == Kind.UNREADABLE.value for row in rows)
        return Commit(acked, len(rows), duplicates, unreadable, gap=len(rows) + duplicates < len(records))

    def after(self, position: int, limit: int = 256) -> list[Entry]:
        """The next entries behind a position, in the order in which they were committed."""
        return self._select("position > ? ORDER BY position LIMIT ?", (position, limit))

    def replay(self, position: int = 0) -> Iterator[Entry]:
        """Every entry behind a position, read in small batches."""
        while entries := self.after(position):
            yield from entries
            position = entries[-1].position

    def episode(self, run: str, episode: int, first_seq: int = 0, last_seq: int | None = None) -> list[Entry]:
        """Steps `first_seq` to `last_seq` (inclusive; None for all) of an episode, in order."""
        last = (1 << 62) if last_seq is None else last_seq
        where = "run = ? AND episode = ? AND kind = 'step' AND seq BETWEEN ? AND ? ORDER BY seq, position"
        return self._select(where, (run, episode, first_seq, last))

    def labels(self, run: str, episode: int | None = None) -> list[Entry]:
        """Labels of a run, or of one of its episodes, in order."""
        if episode is None:
            return self._select("run = ? AND kind = 'label' ORDER BY position", (run,))
        return self._select("run = ? AND episode = ? AND kind = 'label' ORDER BY position", (run, episode))

    def all_labels(self) -> list[Entry]:
        """Labels of every run, in order of arrival."""
        return self._select("kind = 'label' ORDER BY position", ())

    def swaps(self) -> list[Entry]:
        """What became of every artifact on the robots, in order."""
        return self._select("kind = 'swap' ORDER BY position", ())

    def counts(self) -> Counts:
        found = dict(self._db.execute("SELECT kind, COUNT(*) FROM records GROUP BY kind"))
        duplicates = self._db.execute("SELECT COALESCE(SUM(duplicates), 0) FROM streams").fetchone()[0]
        steps, labels, swaps, unreadable = (
            int(found.get(kind.value, 0)) for kind in (Kind.STEP, Kind.LABEL, Kind.SWAP, Kind.UNREADABLE)
        )
        return Counts(steps, labels, swaps, unreadable, int(duplicates))

    def _select(self, where: str, values: tuple[object, ...]) -> list[Entry]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM records WHERE {where}", values)
        return [
            Entry(position, edge, run, number, Kind(kind), episode, seq, note, payload)
            for position, edge, run, number, kind, episode, seq, note, payload in rows
        ]


def _decode(payload: bytes) -> Step | Label | Swap:
    message: Any = wire.decode(payload, Step, Label, Swap)
    return cast("Step | Label | Swap", message)


def _describe(payload: bytes, run: str, contract: Contract) -> tuple[str, int | None, int | None, str]:
    """(kind, episode, seq, note) of an encoded record."""
    try:
        message = _decode(payload)
    except wire.WireError as error:
        return Kind.UNREADABLE.value, None, None, str(error)
    if isinstance(message, Swap):
        return Kind.SWAP.value, None, None, ""
    problem = _problem(message, run, contract)
    if problem:
        return Kind.UNREADABLE.value, message.episode, None, problem
    if isinstance(message, Label):
        return Kind.LABEL.value, message.episode, None, ""
    return Kind.STEP.value, message.episode, message.seq, ""


def _problem(message: Step | Label, run: str, contract: Contract) -> str:
    """Why a record cannot be learned from, or nothing."""
    if message.run != run:
        return f"run {message.run!r} in a stream of run {run!r}"
    if isinstance(message, Label):
        return ""
    if message.contract != contract.hash:
        return f"contract {message.contract} in a journal of contract {contract.hash}"
    if message.frames.shape != contract.frames_shape:
        return f"frames {message.frames.shape} are not {contract.frames_shape}"
    sizes = {"state": (message.state, len(contract.state)), "proposed": (message.proposed, len(contract.action))}
    sizes["executed"] = (message.executed, len(contract.action))
    for name, (vector, size) in sizes.items():
        if vector is not None and vector.shape != (size,):
            return f"{name} has {vector.shape[0]} entries, the contract {size}"
        if vector is not None and not np.isfinite(vector).all():
            return f"{name} is not finite"
    return ""
