"""Run everything beside the arm: bus, cameras, control loop and link to the trainer."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from steadyhand_models import cli, settings, task
from steadyhand_models.cli import UserError
from steadyhand_runtime import camera, clock, config, metrics, unit
from steadyhand_runtime.config import Affinity, RuntimeSettings
from steadyhand_runtime.notify import ServiceManager
from steadyhand_runtime.prometheus import Endpoint
from steadyhand_runtime.spool import Spool
from steadyhand_runtime.supervision import HURRIED_S, WATCH_S, Child, Process
from steadyhand_runtime.telemetry import Log, StatFile

HURRIED_BUS_S = 4.0  # torque off on every servo takes its time, also when somebody is impatient
# How long a process may stand still. The bus meets its servos again, and the link waits for the disk, within a turn.
SILENCE_S = {"bus": 5.0, "camera": 5.0, "control": 5.0, "link": 30.0}


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
        command = (sys.executable, "-m", module, "--config", str(path))
        own = name == "bus" if chosen.realtime.affinity is Affinity.AUTO else None
        return Child(name, command, stop_s, hurried_s, SILENCE_S[name], own)

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


def supervise(
    processes: Sequence[Process], signals: Signals, stats: StatFile, manager: ServiceManager | None = None
) -> None:
    """Start, watch until a signal, stop in order. Raises StartError or UserError after having stopped everything."""
    manager = manager or ServiceManager({}, Log())
    try:
        for process in processes:
            process.start()
        while not signals.wait(WATCH_S):
            for process in processes:
                process.watch()
            manager.alive([p.beats for p in processes], time.monotonic())
            if stats.due(now_ns := time.monotonic_ns()):
                stats.write({p.child.name: p.figures() for p in processes}, now_ns)
    finally:
        manager.stopping()
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
        if chosen.realtime.affinity is Affinity.AUTO and (refused := clock.cores_for(own=True)[1]):
            log.warn("runtime.affinity_off", reason=refused)
        processes = [Process(child, paths.logs, log) for child in children(chosen, effective)]
        manager = ServiceManager(os.environ, log)
        with _measured(chosen, processes):
            supervise(processes, signals, StatFile(paths.edge / "daemon.json", 2.0, log), manager)
        manager.close()
    unclean = [p.child.name for p in processes if p.unclean]
    log.info("runtime.stopped", unclean=",".join(unclean) or "none")
    return 1 if unclean else 0


def main(argv: Sequence[str]) -> int:
    """`steadyhand runtime`: start, watch and stop the processes beside the arm."""
    text = "Starts bus, cameras, control and link, watches them, and stops them in order on Ctrl-C.\n\n"
    text += "Example: steadyhand runtime --config runtime.toml --bus.port /dev/ttyACM0"
    text += "\n\n--print-systemd-unit [runtime|train] prints a unit for this user, with this folder's NAME.toml."
    wanted = unit.asked_for(argv)
    if wanted is not None:
        print(unit.text(wanted, Path.cwd()), end="")
        return 0
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


@contextmanager
def _measured(chosen: RuntimeSettings, processes: Sequence[Process]) -> Iterator[None]:
    """The Prometheus endpoint while the block runs, where one is wanted. Raises UserError when its port is taken."""
    if not chosen.metrics.port:
        yield
        return
    ear = metrics.BusEar(chosen.socket_folder)

    def text() -> str:
        return metrics.text(chosen.paths.edge, lambda: {p.child.name: p.figures() for p in processes}, ear)

    try:
        with Endpoint(chosen.metrics.port, text):
            yield
    finally:
        ear.close()


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
