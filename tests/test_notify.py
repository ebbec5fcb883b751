"""systemd hears READY when everything runs, is petted only while everything beats, and gets units that fit."""

from __future__ import annotations

import configparser
import io
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand_models.cli import UserError
from steadyhand_runtime import daemon, liveness, supervision, unit
from steadyhand_runtime.liveness import Beat, Pulse
from steadyhand_runtime.notify import ServiceManager
from steadyhand_runtime.supervision import Child, Process
from steadyhand_runtime.telemetry import Log, StatFile

BEATING = """
import sys, threading
from steadyhand_runtime.liveness import Beat
beat, left = Beat(), float(sys.argv[1])
while left > 0:
    beat()
    threading.Event().wait(0.02)
    left -= 0.02
threading.Event().wait()
"""
DEADLINE_S = 20.0


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, path: Path, watchdog_s: float = 0.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path)}
        if watchdog_s:
            self.environment |= {"WATCHDOG_USEC": str(round(watchdog_s * 1e6)), "WATCHDOG_PID": str(os.getpid())}

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode().splitlines()[0])
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify", watchdog_s=3.0)
    yield made
    made.close()


def test_ready_is_said_once_and_only_when_every_process_has_begun_to_beat(manager: Manager) -> None:
    service = ServiceManager(manager.environment, Log())
    service.alive([5, 0, 3], 1.0)
    assert manager.heard() == []
    for now_s in (1.1, 1.2):
        service.alive([6, 1, 4], now_s)
    assert manager.heard() == ["READY=1"]


def test_the_watchdog_is_petted_at_most_every_half_period_and_only_while_all_counters_advance(manager: Manager) -> None:
    service = ServiceManager(manager.environment, Log())
    service.alive([1, 1], 0.0)
    manager.heard()
    petted = []
    for tenth in range(1, 61):
        second = tenth / 10
        stuck = 20 if second >= 2.0 else tenth
        service.alive([100 + tenth, stuck], second)
        petted += [second] * len(manager.heard())
    assert petted and max(petted) <= 3.0  # the last advance of the second counter is at 2.0
    assert petted[0] <= 1.5 and all(b - a <= 1.5 for a, b in itertools.pairwise(petted))


def test_a_restarted_process_counts_from_zero_and_is_waited_for(manager: Manager) -> None:
    service = ServiceManager(manager.environment, Log())
    service.alive([500], 0.0)
    manager.heard()
    service.alive([0], 1.1)
    assert manager.heard() == []
    service.alive([7], 2.1)
    assert manager.heard() == ["WATCHDOG=1"]


def test_stopping_is_said_and_a_deaf_manager_or_none_harms_nothing(manager: Manager, tmp_path: Path) -> None:
    service = ServiceManager(manager.environment, Log())
    service.stopping()
    assert manager.heard() == ["STOPPING=1"]
    service.close()
    service.stopping()
    out = io.StringIO()
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, Log(out)).stopping()
    assert "notify.unsent" in out.getvalue()
    ServiceManager({}, Log(out)).stopping()


def test_a_watchdog_of_another_process_is_left_alone(manager: Manager) -> None:
    service = ServiceManager({**manager.environment, "WATCHDOG_PID": "1"}, Log())
    for second in range(10):
        service.alive([second + 1], float(second))
    assert manager.heard() == ["READY=1"]


def test_beats_are_counted_and_silence_is_what_somebody_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse()
    for key, value in pulse.environment(2).items():
        monkeypatch.setenv(key, value)
    beat = Beat()
    assert liveness.restarts() == 2
    for now_s in range(3):
        beat()
        pulse.look(float(now_s))
    assert (pulse.beats, pulse.silent_s) == (3, 0.0)
    pulse.look(60.0)  # the supervisor itself was away for a minute
    assert pulse.silent_s <= liveness.LOOK_MAX_S and not pulse.overdue(5.0)
    for tick in range(60):
        pulse.look(60.0 + tick / 10)
    assert pulse.overdue(5.0)
    pulse.started()
    pulse.close()
    beat()  # nobody reads any more: no error


def test_a_supervisor_that_does_not_read_never_blocks_a_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse()
    monkeypatch.setenv(liveness.BEAT_VARIABLE, pulse.environment(0)[liveness.BEAT_VARIABLE])
    beat = Beat()
    for _ in range(200_000):
        beat()
    pulse.look(0.0)
    assert 0 < pulse.beats < 200_000
    pulse.started()
    pulse.close()


def test_a_process_that_falls_silent_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.05,))
    out = io.StringIO()
    child = Child("control", (sys.executable, "-c", BEATING, "0.2"), silence_s=0.5)
    process = Process(child, tmp_path, Log(out))
    process.start()
    deadline_s = time.monotonic() + DEADLINE_S
    while process.restarts < 1:
        assert time.monotonic() < deadline_s, out.getvalue()
        process.watch()
        threading.Event().wait(0.05)
    process.stop(lambda: True)
    assert process.stalls == 1
    assert "process.stalled name=control" in out.getvalue() and "process.died name=control code=-9" in out.getvalue()


def test_a_process_that_failed_after_it_had_worked_is_started_again_instead_of_ending_everything(
    tmp_path: Path,
) -> None:
    code = "from steadyhand_runtime.liveness import Beat; Beat()(); raise SystemExit('the port is gone')"
    process = Process(Child("bus", (sys.executable, "-c", code), silence_s=5.0), tmp_path, Log(io.StringIO()))
    process.start()
    deadline_s = time.monotonic() + DEADLINE_S
    while process._due_s is None:
        assert time.monotonic() < deadline_s
        process.watch()  # raises StartError where nothing had worked before
        threading.Event().wait(0.02)
    process.stop(lambda: True)


def test_the_daemon_tells_its_manager_that_it_is_ready_and_that_it_stops(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(Child("link", (sys.executable, "-c", BEATING, "60"), silence_s=5.0), tmp_path, Log(io.StringIO()))
    signals, said = daemon.Signals(), []
    service = ServiceManager(manager.environment, Log())

    class Watching(StatFile):
        def due(self, now_ns: int) -> bool:
            said.extend(manager.heard())
            if "READY=1" in said:
                signals._on_signal()
                signals._on_signal()
            return False

    daemon.supervise([process], signals, Watching(tmp_path / "d.json", 1.0, Log()), service)
    said += manager.heard()
    assert said[0] == "READY=1" and said[-1] == "STOPPING=1"


@pytest.mark.parametrize("name", unit.UNITS)
def test_the_units_are_whole_and_name_this_environment(name: str, tmp_path: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.text(name, tmp_path, "somebody"))
    service = parser["Service"]
    assert service["User"] == "somebody" and service["Restart"] == "on-failure"
    assert service["ExecStart"].endswith(f"steadyhand {name} --config {tmp_path}/{name}.toml")
    assert "{" not in unit.text(name, tmp_path)
    if name == "runtime":
        assert (service["Type"], service["LimitRTPRIO"], service["LimitMEMLOCK"]) == ("notify", "80", "infinity")
        assert float(service["WatchdogSec"]) > 2 * max(daemon.SILENCE_S["control"], max(supervision.BACKOFF_S))


def test_the_command_prints_a_unit_and_knows_no_other(tmp_path: Path) -> None:
    code = "from steadyhand_models.cli import main; raise SystemExit(main())"
    words = [sys.executable, "-c", code, "runtime", unit.OPTION]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and "Type=notify" in done.stdout and str(tmp_path) in done.stdout
    assert unit.asked_for([unit.OPTION, "train"]) == "train" and unit.asked_for(["--run", "x"]) is None
    with pytest.raises(UserError, match="no unit 'trian'"):
        unit.asked_for([unit.OPTION, "trian"])
