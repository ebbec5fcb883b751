"""The simulated robot looks like a real one from outside: a serial port, cameras, and time that passes."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models import messages as m
from steadyhand_models import task, topics, wire
from steadyhand_models.cli import UserError
from steadyhand_models.settings import SettingsError
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.transport import SerialTransport
from steadyhand_runtime.clock import ManualClock, MonotonicClock
from steadyhand_runtime.config import RunPaths
from steadyhand_runtime.sim import robot as robot_module
from steadyhand_runtime.sim.robot import Robot, SimSettings, TruthLog, scene_settings, truth_message
from steadyhand_runtime.telemetry import Log

DEADLINE_MS = 20_000


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(robot_module, "_prefer_realtime", lambda: "not in a test")
    return SimSettings(run=tmp_path / "run", sockets=str(tmp_path / "s"), seed=7)


@pytest.fixture
def running(chosen):
    """A robot whose loop runs in a thread; yields (robot, socket folder)."""
    stop = threading.Event()
    with Robot(chosen, Log()) as robot:

        def loop():
            while not stop.is_set():
                robot.tick()

        thread = threading.Thread(target=loop)
        thread.start()
        yield robot, chosen
        stop.set()
        thread.join()


@pytest.fixture
def connect():
    context = zmq.Context()
    sockets = []

    def make(kind, chosen, topic, instance=""):
        socket = context.socket(kind)
        socket.linger = 0
        if kind == zmq.SUB:
            socket.subscribe(b"")
        socket.connect(topics.endpoint(Path(chosen.sockets), topic, instance))
        sockets.append(socket)
        return socket

    yield make
    for socket in sockets:
        socket.close()
    context.term()


def heard(socket, cls):
    assert socket.poll(DEADLINE_MS), "nothing was published"
    return wire.decode(socket.recv(), cls)


def heard_until(socket, cls, condition):
    """The first message that fulfils the condition."""
    deadline_s = time.monotonic() + DEADLINE_MS / 1000
    while time.monotonic() < deadline_s:
        message = heard(socket, cls)
        if condition(message):
            return message
    raise AssertionError("it did not happen")


def test_every_camera_publishes_prepared_pictures_that_show_something(running, connect):
    _, chosen = running
    for camera in task.load("lift").contract().cameras:
        socket = connect(zmq.SUB, chosen, "camera.frame", camera.name)
        first, second = heard(socket, m.Frame), heard(socket, m.Frame)
        assert first.camera == camera.name
        assert first.pixels.shape == (camera.size_px[1], camera.size_px[0], 3)
        assert first.pixels.std() > 5
        assert second.seq > first.seq and second.stamp_ns > first.stamp_ns


def test_the_port_answers_the_servo_protocol_with_the_arms_pose(running):
    robot, chosen = running
    assert robot.port == str(chosen.port_link)
    clock = MonotonicClock()
    transport = SerialTransport(robot.port, chosen.baud, clock)
    arm = load_arm()
    driver = Driver(transport, arm, Calibration.default(len(arm.joints)), clock, chosen.baud)
    try:
        transport.drain()
        deadline_s = time.monotonic() + DEADLINE_MS / 1000
        while not (reading := driver.cycle(None)).valid.all():  # a busy machine may answer too late for one cycle
            assert time.monotonic() < deadline_s
    finally:
        driver.close()
    np.testing.assert_allclose(reading.position_rad, robot.world.read().position_rad, atol=0.01)


def test_truth_passes_in_real_time(running, connect):
    socket = connect(zmq.SUB, running[1], "sim.truth")
    first = heard(socket, m.Truth)
    later = heard_until(socket, m.Truth, lambda t: t.stamp_ns - first.stamp_ns > 200_000_000)
    assert not later.grasped and not later.success and abs(later.lifted_m) < 0.005


def test_the_cube_is_placed_anew_on_request_where_the_seed_says(running, connect):
    _, chosen = running
    truths = connect(zmq.SUB, chosen, "sim.truth")
    before = heard(truths, m.Truth)
    requests = connect(zmq.REQ, chosen, "sim.control")
    placed = []
    for seed in (11, 12, 11):
        requests.send(wire.encode(m.SceneRequest(seed)))
        assert heard(requests, m.SceneReply).ok
        asked_ns = time.monotonic_ns()
        placed.append(heard_until(truths, m.Truth, lambda t, after=asked_ns: t.stamp_ns > after).cube_xyz_m[:2])
    assert np.abs(placed[0] - before.cube_xyz_m[:2]).max() > 0.002
    np.testing.assert_allclose(placed[0], placed[2], atol=1e-3)
    assert np.abs(placed[0] - placed[1]).max() > 0.002


def test_a_bad_request_is_answered_and_harms_nothing(running, connect):
    requests = connect(zmq.REQ, running[1], "sim.control")
    for data in (b"nonsense", wire.encode(m.SceneRequest(-1)), wire.encode(m.SceneReply(True))):
        requests.send(data)
        assert not heard(requests, m.SceneReply).ok
    requests.send(wire.encode(m.SceneRequest(1)))
    assert heard(requests, m.SceneReply).ok


class NoCameras:
    """Cameras that do not run, so that nothing but the test moves the clock."""

    failure = None

    def __init__(self, *_):
        pass

    def close(self):
        pass


def test_time_is_counted_as_it_passed_and_a_stalled_machine_does_not_leap(chosen, capsys, monkeypatch):
    monkeypatch.setattr(robot_module, "Cameras", NoCameras)
    clock = ManualClock()
    with Robot(chosen, Log(), clock) as robot:
        advanced: list[float] = []
        robot.world.advance = advanced.append
        for late_s in (0.0, 0.0, 0.013, 0.0, 5.0):
            clock.advance_s(late_s)
            robot.tick()
    assert advanced == pytest.approx([0.005, 0.005, 0.013, 0.002, robot_module.MAX_CATCH_UP_S])
    assert "sim.stalled" in capsys.readouterr().err


def test_a_camera_that_cannot_draw_stops_the_robot_with_its_reason(chosen, monkeypatch):
    def no_gl(_):
        raise robot_module.SimError("no GL context can be made: install one")

    monkeypatch.setattr(robot_module, "Eye", no_gl)
    with pytest.raises(robot_module.SimError, match="install one"):
        Robot(chosen, Log())


def test_truth_rows_are_appended_and_readable_after_a_restart(tmp_path, chosen):
    path = tmp_path / "truth.csv"
    with Robot(chosen, Log()) as robot:
        state = robot.world.truth()
    for stamp in (1, 2):
        log = TruthLog(path)
        log.add(truth_message(state, stamp))
        log.close()
    lines = path.read_text().splitlines()
    assert lines[0] == "stamp_ns,lifted_m,grasped,success,cube_x,cube_y"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
    assert lines[1].split(",")[2:4] == ["0", "0"]


def test_a_task_with_a_camera_that_the_simulation_lacks_is_refused(chosen):
    lift = task.load("lift")
    strange = replace(lift, cameras=(replace(lift.cameras[0], name="ceiling"), lift.cameras[1]))
    with pytest.raises(SettingsError, match="front and wrist"):
        scene_settings(strange)


def test_an_unwritable_run_folder_is_a_clear_error(tmp_path, chosen):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run folder cannot be written"):
        Robot(replace(chosen, run=tmp_path / "file"), Log())


def test_the_process_says_where_its_port_is_and_stops_cleanly(tmp_path):
    code = "import sys; from steadyhand_runtime.sim.robot import main; sys.exit(main(sys.argv[1:]))"
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--run", str(run), "--sockets", str(tmp_path / "s")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = process.stdout.readline().strip()
        assert os.path.exists(port)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_MS / 1000)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "sim.stopped" in err and "Traceback" not in err and "EGL" not in err
    assert RunPaths(run).truth.exists() and not os.path.lexists(port)
