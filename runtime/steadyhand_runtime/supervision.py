"""Supervision of processes: one is started, watched for its end and its signs of life, restarted and stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadyhand_models.cli import UserError
from steadyhand_runtime import clock
from steadyhand_runtime.liveness import Pulse
from steadyhand_runtime.telemetry import Log

WATCH_S = 0.1
FIRST_LIFE_S = 15.0  # a process that gives up so early, before any sign of life, was set up wrongly
STEADY_S = 30.0  # after this long a restart counts as the first again
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
HURRIED_S = 1.0
TAIL_BYTES = 4096
TAIL_LINES = 12
# One thread each, where nobody chose otherwise: on few cores, waiting threads of one process starve the others.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Child:
    """One process of the runtime; `stop_s` is how long it may take to end after SIGTERM, `hurried_s` in a hurry.

    One that gives no sign of life for `silence_s` is killed and started again; None: it gives none. With `own_core` it
    has a core to itself, or keeps off that one; None: it runs wherever the system puts it.
    """

    name: str
    command: tuple[str, ...]
    stop_s: float = 5.0
    hurried_s: float = HURRIED_S
    silence_s: float | None = None
    own_core: bool | None = None


class StartError(UserError):
    """A process that could not start; the message is what it said last."""


class Process:
    """A child that is started, watched, restarted with back-off and stopped; its output goes to a log file."""

    def __init__(self, child: Child, logs: Path, log: Log, now_s: Callable[[], float] = time.monotonic) -> None:
        self.child = child
        self.restarts = 0
        self.stalls = 0
        self.unclean = False
        self._pulse: Pulse | None = None
        self._path = logs / f"{child.name}.log"
        self._log = log
        self._now_s = now_s
        self._running: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._due_s: float | None = None  # when to start it again
        self._failures = 0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running is not None and self._running.poll() is None else None

    @property
    def beats(self) -> int:
        """Signs of life that this life of it has given."""
        return self._pulse.beats if self._pulse is not None else 0

    def figures(self) -> dict[str, Any]:
        """What a stat file shows of it."""
        pid = self.pid
        return {
            "pid": pid,
            "restarts": self.restarts,
            "stalls": self.stalls,
            "beats": self.beats,
            "realtime": pid is not None and clock.is_realtime(pid),
        }

    def start(self) -> None:
        """Raises UserError when its log cannot be written."""
        if self._pulse is not None:
            self._pulse.close()
        self._pulse = Pulse()
        try:
            with self._path.open("ab") as output:
                self._log_start = output.tell()
                self._running = subprocess.Popen(
                    self.child.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C reaches the daemon alone, which stops them in order
                    preexec_fn=_die_with_parent,
                    pass_fds=self._pulse.inherited,
                    env={**ONE_THREAD, **os.environ, **self._pulse.environment(self.restarts)},
                )
        except OSError as error:
            raise UserError(f"{self._path}: {self.child.name} cannot be started: {error.strerror}") from None
        finally:
            self._pulse.started()
        if self.child.own_core is not None and (cores := clock.cores_for(self.child.own_core)[0]):
            os.sched_setaffinity(self._running.pid, cores)
        self._started_s = self._now_s()
        self._due_s = None
        self._log.info("process.started", name=self.child.name, pid=self._running.pid)

    def watch(self) -> None:
        """Notice an end, and start again when that is due. Raises StartError when its first start failed."""
        now_s = self._now_s()
        if self._due_s is not None:
            if now_s >= self._due_s:
                self.restarts += 1
                self.start()
            return
        code = self._running.poll() if self._running is not None else None
        self._feel(now_s, killing=code is None)
        if code is None:
            return
        lived_s = now_s - self._started_s
        if code > 0 and self.restarts == 0 and lived_s < FIRST_LIFE_S and not self.beats:
            raise StartError(f"{self.child.name} could not start:\n{self.tail()}")
        self._failures = 0 if lived_s > STEADY_S else self._failures
        wait_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        self._due_s = now_s + wait_s
        self._log.error(
            "process.died", name=self.child.name, code=code, lived_s=lived_s, again_in_s=wait_s, log=self._path
        )

    def _feel(self, now_s: float, killing: bool) -> None:
        """Count its signs of life, and kill it when it stands still; its end is noticed at the next turn."""
        if self._pulse is None or self._running is None:
            return
        self._pulse.look(now_s)
        if killing and self.child.silence_s is not None and self._pulse.overdue(self.child.silence_s):
            self.stalls += 1
            self._log.error("process.stalled", name=self.child.name, silent_s=self._pulse.silent_s, next="killed")
            self._running.kill()
            self._running.wait()

    def stop(self, hurry: Callable[[], bool]) -> None:
        """SIGTERM, then SIGKILL when it takes too long; `hurry` is asked all the time."""
        running = self._running
        self._due_s = None
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        if running is None or running.poll() is not None:
            return
        running.terminate()
        start_s = self._now_s()
        while running.poll() is None:
            allowed_s = self.child.hurried_s if hurry() else self.child.stop_s
            if self._now_s() - start_s > allowed_s:
                self._log.error("process.killed", name=self.child.name, after_s=self._now_s() - start_s)
                running.kill()
                running.wait()
            _wait(running, WATCH_S / 2)
        self.unclean = running.returncode != 0
        self._log.info("process.stopped", name=self.child.name, code=running.returncode)

    def tail(self) -> str:
        """The last lines that this life of it wrote."""
        with self._path.open("rb") as output:
            output.seek(0, 2)
            output.seek(max(self._log_start, output.tell() - TAIL_BYTES))
            lines = output.read().decode("utf-8", "replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (it wrote nothing)"


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pass


_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def _die_with_parent() -> None:
    """In the child: a daemon that is killed takes its processes along, so that no arm stays held by orphans."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
