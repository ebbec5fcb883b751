"""The spool: the edge's durable, numbered log of records, kept until the trainer has them in its journal."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from steadyhand_models.cli import UserError
from steadyhand_models.messages import Record

BUSY_TIMEOUT_S = 10.0
SYNC_PERIOD_S = 1.0  # what a power cut may cost while no trainer listens

# AUTOINCREMENT: numbers rise for ever, also when everything before was acknowledged and deleted.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS identity (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tally (one INTEGER PRIMARY KEY CHECK (one = 1), steps INTEGER NOT NULL);
INSERT OR IGNORE INTO tally VALUES (1, 0);
"""


class SpoolError(UserError):
    """The spool cannot be used; the message names the fix."""


class Spool:
    """Numbered records in a SQLite file. One process appends, another reads and trims; safe between threads.

    What `append` returned survives the death of any process; `sync` makes it survive a power cut too, and `append`
    calls it once per SYNC_PERIOD_S. With `durable=False` nothing is synced, for runs that no power cut can hurt.
    Every method raises SpoolError.
    """

    def __init__(self, path: Path, durable: bool = True) -> None:
        self._path = path
        self._durable = durable
        self._synced_s = time.monotonic()
        self._lock = threading.Lock()
        with self._clear_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._prepare()
            row = self._db.execute("SELECT name FROM identity").fetchone()
        self.identity: str = row[0]

    def append(self, payloads: Sequence[bytes], steps: int = 0) -> int:
        """Commit encoded records together, `steps` of them steps; returns the number of the last one ever appended."""
        with self._lock, self._clear_errors(), self._transaction():
            self._db.execute("UPDATE tally SET steps = steps + ?", (steps,))
            self._db.executemany("INSERT INTO records (payload) VALUES (?)", [(p,) for p in payloads])
        if self._durable and time.monotonic() - self._synced_s >= SYNC_PERIOD_S:
            self.sync()
        return self.last_number

    def read_after(self, number: int, limit: int) -> list[Record]:
        """Up to `limit` records above `number`, in order."""
        with self._lock, self._clear_errors():
            rows = self._db.execute(
                "SELECT number, payload FROM records WHERE number > ? ORDER BY number LIMIT ?", (number, limit)
            ).fetchall()
        return [Record(n, payload) for n, payload in rows]

    def trim(self, acked: int) -> None:
        """Forget every record up to `acked`."""
        with self._lock, self._clear_errors(), self._transaction():
            self._db.execute("DELETE FROM records WHERE number <= ?", (acked,))

    @property
    def last_number(self) -> int:
        """Number of the last record ever appended, 0 before the first."""
        with self._lock, self._clear_errors():
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        return int(row[0]) if row else 0

    @property
    def trimmed(self) -> int:
        """Records up to this number are no longer kept."""
        with self._lock, self._clear_errors():
            row = self._db.execute("SELECT min(number) FROM records").fetchone()
        return self.last_number if row[0] is None else int(row[0]) - 1

    @property
    def pending(self) -> int:
        """Records that are kept."""
        return self.last_number - self.trimmed

    def sync(self) -> None:
        """Bring everything that was committed, by any process, to the disk."""
        if not self._durable:
            return
        with self._clear_errors():
            # SQLite writes commits to the write-ahead log in order; what it has moved to the database it has synced.
            try:
                handle = os.open(f"{self._path}-wal", os.O_RDWR)
            except FileNotFoundError:
                return
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self._synced_s = time.monotonic()

    def close(self) -> None:
        with self._lock, self._clear_errors():
            self._db.close()

    def _prepare(self) -> None:
        deadline_s = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                # Two processes that open a new file at once: SQLite does not wait here by itself.
                if "locked" not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)
        self._db.execute("PRAGMA synchronous=NORMAL")
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (uuid.uuid4().hex[:8],))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"{self._path}: {_explain(str(error))}") from None


def _explain(problem: str) -> str:
    text = problem.lower()
    if "disk is full" in text or "no space" in text:
        return "the disk is full: free some space; what was recorded before is safe"
    if "malformed" in text or "not a database" in text:
        return "the file is damaged: move it away to start a new one"
    if "locked" in text:
        return "another program holds the file: stop it first"
    if "readonly" in text or "unable to open" in text or "permission" in text:
        return f"cannot be written ({problem}): check the folder's permissions"
    return problem
