"""The recorder: hands records to the spool, in a thread of its own where a loop must not wait for the disk."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from steadyhand_models import wire
from steadyhand_models.messages import Label, Step, Swap
from steadyhand_runtime.spool import Spool, SpoolError
from steadyhand_runtime.telemetry import Log

RETRY_S = 1.0
StreamRecord = Step | Label | Swap


class EpisodeCounter:
    """The number of the last episode that was begun, in a small file, so that numbers rise across restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.last = int(path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            self.last = 0

    def note(self, episode: int) -> None:
        """Remember a higher number durably. Raises OSError."""
        if episode <= self.last:
            return
        aside = self._path.with_name(f".{self._path.name}.new")
        with aside.open("w", encoding="ascii") as file:
            file.write(str(episode))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)
        self.last = episode


class Recorder:
    """Writes records where they are handed over. Raises SpoolError or OSError."""

    def __init__(self, spool: Spool, counter: EpisodeCounter) -> None:
        self._spool, self._counter = spool, counter
        self.committed = 0  # records that are in the spool

    def write(self, records: Sequence[StreamRecord]) -> None:
        """Commit records; an episode's number is kept before its first step is."""
        if not records:
            return
        steps = [r for r in records if isinstance(r, Step)]
        self._counter.note(max((s.episode for s in steps), default=0))
        self._spool.append([wire.encode(r) for r in records], len(steps))
        self.committed += len(records)


class ThreadedRecorder:
    """A Recorder behind a queue: `put` and `later` never wait. A disk that refuses is retried until it does not."""

    def __init__(self, recorder: Recorder, log: Log) -> None:
        self._recorder, self._log = recorder, log
        self._jobs: queue.SimpleQueue[Sequence[StreamRecord] | Callable[[], None] | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self.trouble = ""  # why nothing can be written at present
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> int:
        """Records that are in the spool."""
        return self._recorder.committed

    def put(self, records: Sequence[StreamRecord]) -> None:
        if records:
            self._jobs.put(records)

    def later(self, job: Callable[[], None]) -> None:
        """Run a job after what was put before it."""
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Write what is left, for at most `timeout_s`; false when something could not be written."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        self._given_up.set()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if callable(job):
                job()
            else:
                self._write(job)

    def _write(self, records: Sequence[StreamRecord]) -> None:
        while not self._given_up.is_set():
            try:
                self._recorder.write(records)
                self.trouble = ""
                return
            except (SpoolError, OSError) as error:
                self.trouble = str(error)
                self._log.error("record.unwritten", every_s=10.0, waiting=self._jobs.qsize() + 1, reason=error)
                self._given_up.wait(RETRY_S)
