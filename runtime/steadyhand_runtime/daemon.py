"""Run everything beside the arm: bus, cameras, control loop and link to the trainer."""

from __future__ import annotations

import ctypes
import dataclasses
import fcntl
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from steadyhand_models import cli, settings, task
from steadyhand_models.cli import UserError
from steadyhand_runtime import camera, config
from steadyhand_runtime.config import RuntimeSettings
from steadyhand_runtime.spool import Spool
from steadyhand_runtime.telemetry import Log, StatFile

WATCH_S = 0.1
FIRST_LIFE_S = 15.0  # a process that gives up so early, on its first start, was set up wrongly
STEADY_S = 30.0  # after this long a restart counts as the first again
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
HURRIED_S = 1.0
HURRIED_BUS_S = 4.0  # torque off on every servo takes its time, also when somebody is impatient
TAIL_BYTES = 4096
TAIL_LINES = 12
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Child:
    """One process of the runtime; `stop_s` is how long it may take to end after SIGTERM, `hurried_s` in a hurry."""

    name: str
    command: tuple[str, ...]
    stop_s: float = 5.0
    hurried_s: float = HURRIED_S


class StartError(UserError):
    """A process that could not start; the message is what it said last."""


class Process:
    """A child that is started, watched, restarted with back-off and stopped; its output goes to a log file."""

    def __init__(self, child: Child, logs: Path, log: Log, now_s: Callable[[], float] = time.monotonic) -> None:
        self.child = child
        self.restarts = 0
        self.unclean = False
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

    def start(self) -> None:
        """Raises UserError when its log cannot be written."""
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
                )
        except OSError as error:
            raise UserError(f"{self._path}: {self.child.name} cannot be started: {error.strerror}") from None
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
        if code is None:
            return
        lived_s = now_s - self._started_s
        if code > 0 and self.restarts == 0 and lived_s < FIRST_LIFE_S:
            raise StartError(f"{self.child.name} could not start:\n{self.tail()}")
        self._failures = 0 if lived_s > STEADY_S else self._failures
        wait_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        self._due_s = now_s + wait_s
        self._log.error(
            "process.died", name=self.child.name, code=code, lived_s=lived_s, again_in_s=wait_s, log=self._path
        )

    def stop(self, hurry: Callable[[], bool]) -> None:
        """SIGTERM, then SIGKILL when it takes too long; `hurry` is asked all the time."""
        running = self._running
        self._due_s = None
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


class Signals:
    """Counts SIGTERM and SIGINT: the first asks for an end, the second for a quicker one."""

    def __init__(self) -> None:
        self._count = 0
        self._event = threading.Event()

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)

    def hurry(self) -> bool:
        return self._count > 1

    def _on_signal(self, *_: Any) -> None:
        self._count += 1
        self._event.set()


def children(chosen: RuntimeSettings, path: Path) -> list[Child]:
    """The processes in the order of their start; all read the same settings file."""

    def child(name: str, module: str, stop_s: float = 5.0, hurried_s: float = HURRIED_S) -> Child:
        return Child(name, (sys.executable, "-m", module, "--config", str(path)), stop_s, hurried_s)

    found = [child("bus", "steadyhand_runtime.bus.process", 10.0, HURRIED_BUS_S)]
    if chosen.cameras:
        found.append(child("camera", "steadyhand_runtime.camera"))
    found.append(child("control", "steadyhand_runtime.control_process"))
    found.append(child("link", "steadyhand_runtime.link", chosen.link.drain_s + 3.0))
    return found


def stop_order(processes: Sequence[Process]) -> list[Process]:
    """Control first, then the link with what control left, the bus last: torque goes off once nobody moves the arm."""
    rank = {"control": 0, "link": 1, "camera": 2, "bus": 3}
    return sorted(processes, key=lambda p: rank.get(p.child.name, 2))


def supervise(processes: Sequence[Process], signals: Signals, stats: StatFile) -> None:
    """Start, watch until a signal, stop in order. Raises StartError or UserError after having stopped everything."""
    try:
        for process in processes:
            process.start()
        while not signals.wait(WATCH_S):
            for process in processes:
                process.watch()
            if stats.due(now_ns := time.monotonic_ns()):
                stats.write({p.child.name: {"pid": p.pid, "restarts": p.restarts} for p in processes}, now_ns)
    finally:
        for process in stop_order(processes):
            process.stop(signals.hurry)


def run(chosen: RuntimeSettings, log: Log, signals: Signals) -> int:
    """The runtime until a signal; 0 when everything ended cleanly, 1 when something had to be killed."""
    _check(chosen)
    chosen = dataclasses.replace(chosen, run=chosen.run.absolute())
    paths = chosen.paths
    paths.prepare()
    config.private_folder(chosen.socket_folder)
    with _only_one(paths.edge / "runtime.lock"):
        Spool(paths.spool).close()  # a spool that cannot be used is said here, before anything moves
        effective = paths.settings / "runtime.toml"
        effective.write_text(settings.to_toml(chosen), encoding="utf-8")
        log.info(
            "runtime.starting", run=chosen.run, task=chosen.task, port=chosen.bus.port, sockets=chosen.socket_folder
        )
        processes = [Process(child, paths.logs, log) for child in children(chosen, effective)]
        supervise(processes, signals, StatFile(paths.edge / "daemon.json", 2.0, log))
    unclean = [p.child.name for p in processes if p.unclean]
    log.info("runtime.stopped", unclean=",".join(unclean) or "none")
    return 1 if unclean else 0


def main(argv: Sequence[str]) -> int:
    """`steadyhand runtime`: start, watch and stop the processes beside the arm."""
    text = "Starts bus, cameras, control and link, watches them, and stops them in order on Ctrl-C.\n\n"
    text += "Example: steadyhand runtime --config runtime.toml --bus.port /dev/ttyACM0"
    chosen = settings.parse_command_line(RuntimeSettings, argv, "steadyhand runtime", text)
    signals = Signals()
    signals.install()
    return run(chosen, Log(), signals)


def _check(chosen: RuntimeSettings) -> None:
    """What can be known to be wrong before anything starts. Raises SettingsError or UserError."""
    task.load(chosen.task)
    if chosen.cameras:
        camera.matched(chosen)
    problem = cli.two_onnxruntimes()
    if problem is not None:
        raise UserError(problem)


def _only_one(path: Path) -> TextIO:
    """Hold the run folder for this daemon while the file is open. Raises UserError when another one has it."""
    file = path.open("w", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(
            f"{path.parent.parent}: another `steadyhand runtime` works in this run folder: "
            "stop it, or choose another one with --run"
        ) from None
    return file


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
