"""Child processes of a command: started with a log each, watched, and stopped in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steadyhand_models.cli import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
TAIL_LINES = 15
TAIL_BYTES = 16 << 10
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
# One thread each: on a machine with few cores, waiting threads of one process starve the others.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def steadyhand(*words: str) -> tuple[str, ...]:
    """A `steadyhand` command line for this very interpreter, wherever its scripts are installed."""
    return (sys.executable, "-c", "from steadyhand_models.cli import main; raise SystemExit(main())", *words)


@dataclass(frozen=True)
class Plan:
    """One process. One that may be restarted is started again when it dies; death of any other ends the command."""

    name: str
    command: tuple[str, ...]
    stop_s: float = 10.0
    restart: bool = False


class Child:
    """One running Plan. Its output goes to its log; Ctrl-C in the terminal does not reach it."""

    def __init__(self, plan: Plan, logs: Path) -> None:
        self.plan = plan
        self.log = logs / f"{plan.name}.log"
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Raises UserError when its log cannot be written."""
        try:
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self.plan.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**_ENVIRONMENT, **os.environ},
                    preexec_fn=_die_with_parent,
                )
        except OSError as error:
            raise UserError(f"{self.plan.name} cannot be started: {error}") from None

    def died(self) -> int | None:
        """Its exit code when it ended by itself, else None."""
        return self._process.poll() if self._process is not None else None

    def restart(self) -> None:
        self.restarts += 1
        self.start()

    def ask_to_stop(self) -> None:
        """SIGTERM to it and to what it started itself, except for processes in sessions of their own."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; whether it came."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> bool:
        """SIGTERM, and SIGKILL when it takes longer than its plan allows; whether it ended by itself."""
        self.ask_to_stop()
        if self.wait(self.plan.stop_s):
            return True
        assert self._process is not None
        # The whole group: a daemon that hangs must not leave its own processes behind.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return False

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            return f"  ({error})"
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (it wrote nothing)"


class Death(UserError):
    """A process that must not end has ended; the message holds its log's tail."""


def watch(children: Sequence[Child]) -> list[str]:
    """Restart what may be restarted; what happened, in words. Raises Death for the others."""
    news = []
    for child in children:
        code = child.died()
        if code is None:
            continue
        what = f"{child.plan.name} ended with {_code(code)}; its log {child.log} ends with\n{child.tail()}"
        if not child.plan.restart:
            raise Death(what)
        child.restart()
        news.append(f"{what}\n{child.plan.name} was started again")
    return news


def stop_in_order(children: Sequence[Child]) -> list[str]:
    """Stop one after the other; the names of those that had to be killed."""
    return [child.plan.name for child in children if not child.stop()]


def wait_for(children: Sequence[Child], there: Path, timeout_s: float, stopped: Callable[[], bool]) -> None:
    """Wait until a file is there or `stopped()`. Raises Death when a child ends before, UserError after timeout_s."""
    deadline_s = time.monotonic() + timeout_s
    while not there.exists() and not stopped():
        watch(children)
        if time.monotonic() > deadline_s:
            names = ", ".join(child.plan.name for child in children)
            raise UserError(f"{there} did not appear within {timeout_s:.0f} s; see the logs of {names}")
        time.sleep(0.05)


def _code(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _die_with_parent() -> None:
    """In the child: it is told to stop when whoever started it is killed."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
