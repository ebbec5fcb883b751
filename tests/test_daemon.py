"""The daemon starts, watches, restarts and stops its processes, and says clearly why one cannot run."""

import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from steadyhand_models import settings
from steadyhand_models.cli import UserError
from steadyhand_models.settings import SettingsError
from steadyhand_runtime import config, daemon, spool, supervision
from steadyhand_runtime.config import Affinity, CameraDevice, MetricsSettings, RealtimeSettings, RuntimeSettings
from steadyhand_runtime.daemon import Signals
from steadyhand_runtime.supervision import Child, Process, StartError
from steadyhand_runtime.telemetry import Log, StatFile

DEADLINE_S = 15.0

# A stand-in: notes its life in a file, and ends on SIGTERM with the code it was given.
STAND_IN = """
import pathlib, signal, sys
name, folder, code = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
def note(what):
    with (folder / "life").open("a") as file:
        file.write(f"{name} {what}\\n")
def stop(*_):
    note("stopped")
    sys.exit(code)
signal.signal(signal.SIGTERM, stop)
note("started")
while True:
    signal.pause()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


def stand_in(name, folder, code=0, **kwargs):
    return Child(name, (sys.executable, "-c", STAND_IN, name, str(folder), str(code)), **kwargs)


def until(condition):
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.01)


def life(folder):
    path = folder / "life"
    return path.read_text().splitlines() if path.exists() else []


class ScriptedSignals(Signals):
    """Asks for an end when the condition holds; stands in for a person at the keyboard."""

    def __init__(self, condition):
        super().__init__()
        self._condition = condition
        self._deadline_s = time.monotonic() + DEADLINE_S

    def wait(self, timeout_s):
        assert time.monotonic() < self._deadline_s
        return self._condition() or super().wait(0.02)


@pytest.fixture
def log():
    return Log(io.StringIO())


@pytest.fixture
def stats(tmp_path, log):
    return StatFile(tmp_path / "daemon.json", 0.0, log)


def test_processes_stop_in_order_with_the_bus_last(tmp_path, log, stats):
    names = ["bus", "camera", "control", "link"]
    processes = [Process(stand_in(name, tmp_path), tmp_path, log) for name in names]
    daemon.supervise(processes, ScriptedSignals(lambda: len(life(tmp_path)) == 4), stats)
    assert sorted(life(tmp_path)[:4]) == sorted(f"{n} started" for n in names)
    assert life(tmp_path)[4:] == ["control stopped", "link stopped", "camera stopped", "bus stopped"]
    assert not any(p.unclean for p in processes)


def test_a_killed_process_is_started_again_and_the_others_live_on(tmp_path, log, stats, monkeypatch):
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.05,))
    processes = [Process(stand_in(name, tmp_path), tmp_path, log) for name in ("bus", "link")]
    killed: list[int] = []

    def kill_the_link_once_and_wait():
        if len(life(tmp_path)) == 2 and not killed:
            killed.append(processes[1].pid)
            os.kill(processes[1].pid, signal.SIGKILL)
        return len(life(tmp_path)) == 3

    daemon.supervise(processes, ScriptedSignals(kill_the_link_once_and_wait), stats)
    assert [p.restarts for p in processes] == [0, 1]
    assert life(tmp_path)[2:] == ["link started", "link stopped", "bus stopped"]
    assert "process.died name=link code=-9" in log._out.getvalue()
    assert set(json.loads((tmp_path / "daemon.json").read_text())) == {"bus", "link"}


def test_restarts_back_off_and_are_forgiven_after_a_steady_life(tmp_path, log):
    now = [0.0]
    child = Child("link", (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    process = Process(child, tmp_path, log, lambda: now[0])

    def waits(life_s):
        until(lambda: process.pid is None)
        now[0] += life_s
        process.watch()
        start = now[0]
        while process._due_s is not None:
            now[0] += 0.25
            process.watch()
        return now[0] - start

    process.start()
    assert [waits(0.125) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert waits(supervision.STEADY_S + 1.0) == 0.5
    until(lambda: process.pid is None)


def test_a_process_that_cannot_start_ends_everything_with_what_it_said(tmp_path, log, stats):
    broken = Child("control", (sys.executable, "-c", "import sys; sys.exit('control: /dev/nothing: no such port')"))
    processes = [Process(stand_in("bus", tmp_path), tmp_path, log), Process(broken, tmp_path, log)]
    (tmp_path / "control.log").write_text("old news of another day\n")
    with pytest.raises(StartError, match="control could not start") as caught:
        daemon.supervise(processes, Signals(), stats)
    assert "no such port" in str(caught.value) and "old news" not in str(caught.value)
    assert processes[0].pid is None


def test_a_process_that_does_not_stop_is_killed_sooner_in_a_hurry(tmp_path, log):
    process = Process(Child("link", (sys.executable, "-c", STUBBORN), stop_s=60.0, hurried_s=0.1), tmp_path, log)
    process.start()
    until(lambda: "up" in (tmp_path / "link.log").read_text())
    start_s = time.monotonic()
    process.stop(lambda: True)
    assert time.monotonic() - start_s < 10.0
    assert process.unclean and "process.killed" in log._out.getvalue()


def test_an_end_with_an_error_code_is_not_clean(tmp_path, log, stats):
    process = Process(stand_in("bus", tmp_path, code=1), tmp_path, log)
    daemon.supervise([process], ScriptedSignals(lambda: life(tmp_path)), stats)
    assert process.unclean


def test_the_second_signal_asks_for_a_quicker_end():
    signals = Signals()
    assert not signals.wait(0)
    signals._on_signal()
    assert signals.wait(0) and not signals.hurry()
    signals._on_signal()
    assert signals.hurry()


@pytest.fixture
def chosen(tmp_path):
    return RuntimeSettings(run=tmp_path / "run", sockets=str(tmp_path / "s"))


def test_a_run_writes_its_effective_settings_and_private_sockets_and_ends_cleanly(tmp_path, chosen, log, monkeypatch):
    monkeypatch.setattr(daemon, "children", lambda *_: [stand_in("bus", tmp_path)])
    assert daemon.run(chosen, log, ScriptedSignals(lambda: life(tmp_path))) == 0
    assert settings.load(RuntimeSettings, chosen.paths.settings / "runtime.toml") == chosen
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert chosen.paths.spool.exists()


def test_every_process_gets_the_same_settings_file(chosen, tmp_path):
    path = tmp_path / "runtime.toml"
    assert [c.name for c in daemon.children(chosen, path)] == ["bus", "control", "link"]
    cameras = (CameraDevice("front", "/dev/video0"), CameraDevice("wrist", "/dev/video2"))
    found = daemon.children(config.RuntimeSettings(cameras=cameras), path)
    assert [c.name for c in found] == ["bus", "camera", "control", "link"]
    assert all(c.command[-2:] == ("--config", str(path)) for c in found)


def test_the_bus_alone_has_a_core_of_its_own_where_that_is_asked_for(tmp_path):
    off, auto = RuntimeSettings(), RuntimeSettings(realtime=RealtimeSettings(Affinity.AUTO))
    assert {c.own_core for c in daemon.children(off, tmp_path)} == {None}
    assert {c.name: c.own_core for c in daemon.children(auto, tmp_path)} == {
        "bus": True,
        "control": False,
        "link": False,
    }


def test_every_process_is_watched_and_the_link_may_wait_for_the_disk(tmp_path):
    silences = {c.name: c.silence_s for c in daemon.children(RuntimeSettings(), tmp_path)}
    assert all(silences.values()) and silences["link"] > spool.BUSY_TIMEOUT_S > silences["bus"]


def test_metrics_are_served_while_the_daemon_runs(tmp_path, chosen, log, monkeypatch):
    monkeypatch.setattr(daemon, "children", lambda *_: [stand_in("bus", tmp_path)])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    measured = dataclasses.replace(chosen, metrics=MetricsSettings(port))
    found = []

    def scraped():
        if life(tmp_path):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S) as answer:
                found.append(answer.read().decode())
        return bool(found)

    assert daemon.run(measured, log, ScriptedSignals(scraped)) == 0
    assert 'steadyhand_process_up{process="bus"} 1' in found[0]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S)


def test_a_missing_port_is_said_by_the_command_itself(tmp_path, monkeypatch):
    only_the_bus = daemon.children(RuntimeSettings(), tmp_path)[:1]
    assert only_the_bus[0].name == "bus"
    code = (
        "import sys; from steadyhand_models import cli; from steadyhand_runtime import daemon; all = daemon.children;"
        "daemon.children = lambda *a: all(*a)[:1]; sys.exit(cli.main(['runtime', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--run", str(tmp_path / "run"), "--bus.port", "/dev/no-arm-here"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "/dev/no-arm-here: no such port" in done.stderr and "Traceback" not in done.stderr


def test_two_daemons_do_not_share_a_run_folder(chosen, log, tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "children", lambda *_: [stand_in("bus", tmp_path)])

    def second():
        if not life(tmp_path):
            return False
        with pytest.raises(UserError, match="another `steadyhand runtime`"):
            daemon.run(chosen, log, Signals())
        return True

    assert daemon.run(chosen, log, ScriptedSignals(second)) == 0


def test_an_unwritable_run_folder_a_wrong_task_and_wrong_cameras_are_said_first(chosen, tmp_path, log):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run folder cannot be written"):
        daemon.run(RuntimeSettings(run=tmp_path / "file" / "run"), log, Signals())
    with pytest.raises(SettingsError, match="no task 'juggle'"):
        daemon.run(RuntimeSettings(run=tmp_path / "run", task="juggle"), log, Signals())
    with pytest.raises(SettingsError, match="sees through front, wrist"):
        daemon.run(RuntimeSettings(run=tmp_path, cameras=(CameraDevice("top", "/dev/video0"),)), log, Signals())


def test_a_damaged_spool_is_said_before_anything_starts(chosen, log, tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "children", lambda *_: [stand_in("bus", tmp_path)])
    chosen.paths.prepare()
    chosen.paths.spool.write_bytes(b"rubbish" * 1000)
    with pytest.raises(UserError, match="damaged"):
        daemon.run(chosen, log, Signals())
    assert not life(tmp_path)


def test_settings_survive_the_file_and_the_command_line(tmp_path):
    chosen = RuntimeSettings(
        run=tmp_path, cameras=(CameraDevice("front", "/dev/video0"), CameraDevice("wrist", "clip.mkv", format=""))
    )
    path = tmp_path / "runtime.toml"
    path.write_text(settings.to_toml(chosen))
    parsed = settings.parse_command_line(
        RuntimeSettings, ["--config", str(path), "--control.exploration", "0.5"], "steadyhand runtime", "text"
    )
    assert parsed.cameras == chosen.cameras and parsed.control.exploration == 0.5
    assert config.from_child_arguments(["--config", str(path)], "child") == chosen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[bus]\nprt = 'x'\n", "did you mean 'bus.port'"),
        ("[bus]\nrate_hz = 0\n", "bus.rate_hz"),
        ("[control]\nreward_source = 'guess'\n", "control.reward_source"),
        ("run = [", "not valid TOML"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path, text, said):
    path = tmp_path / "runtime.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        settings.load(RuntimeSettings, path)


def test_sockets_get_a_short_private_folder(tmp_path):
    long = tmp_path / ("x" * 100)
    derived = config.socket_folder("", long)
    assert derived == config.socket_folder("", long) != config.socket_folder("", tmp_path)
    assert len(str(derived)) <= config.MAX_SOCKET_FOLDER_CHARS
    with pytest.raises(SettingsError, match="choose a shorter"):
        config.socket_folder(str(long), tmp_path)
    with pytest.raises(UserError, match="cannot hold sockets"):
        (tmp_path / "file").write_text("")
        config.private_folder(tmp_path / "file")


def test_log_lines_are_event_first_and_repeats_are_counted():
    now, out = [0.0], io.StringIO()
    log = Log(out, lambda: now[0])
    for second in (0.0, 0.4, 0.9, 1.1):
        now[0] = second
        log.warn("safety.stop", every_s=1.0, reason="stale goal", age_s=0.13400001)
    first, second_line = out.getvalue().splitlines()
    assert first.endswith('WARN safety.stop reason="stale goal" age_s=0.134')
    assert second_line.endswith("age_s=0.134 repeated=2")


def test_figures_are_replaced_whole_and_an_unwritable_folder_is_reported(tmp_path):
    out = io.StringIO()
    stats = StatFile(tmp_path / "a.json", 1.0, Log(out))
    assert stats.due(0)
    stats.write({"path": Path("x"), "late": [1.5]}, 10)
    assert not stats.due(10) and stats.due(1_000_000_010)
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": "x", "late": [1.5]}
    StatFile(tmp_path / "missing" / "a.json", 1.0, Log(out)).write({}, 0)
    assert "stat.unwritable" in out.getvalue()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
