"""Each row of the failure table in docs/failures.md, on the real processes with a simulated arm."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edge_rig import Rig, rig

from steadyhand_models.messages import BusAction, EndReason, EventKind, Mode

DOCS = Path(__file__).parents[1] / "docs"
SETTLED_S = 1.0  # after its last goal has expired the arm has come to rest
STILL_RAD = 0.02  # of goals: nothing moves the arm
HELD_RAD = 0.25  # of positions: gravity may pull at an arm whose torque was lowered
# Every look at the wall clock shows another hour: whatever paced on it would race or stand still.
JUMPING_CLOCK = """
import itertools, time
_time, _time_ns, _turn = time.time, time.time_ns, itertools.count()
time.time = lambda: _time() + 3600 * (next(_turn) % 3 - 1)
time.time_ns = lambda: _time_ns() + 3600 * 10**9 * (next(_turn) % 3 - 1)
"""


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The simulated robot: physics, cameras, cube."""
    with rig(tmp_path_factory.mktemp("simulated")) as made:
        yield made


@pytest.fixture(scope="module")
def servos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Virtual servos that can be hurt, real camera processes on streams, and a wall clock that jumps all the time."""
    clock = tmp_path_factory.mktemp("clock")
    (clock / "sitecustomize.py").write_text(JUMPING_CLOCK)
    with rig(tmp_path_factory.mktemp("servos"), simulated=False, environment={"PYTHONPATH": str(clock)}) as made:
        yield made


@pytest.fixture
def robot(simulated: Rig) -> Rig:
    simulated.ready()
    return simulated


@pytest.fixture
def bare(servos: Rig) -> Rig:
    servos.ready()
    return servos


def no_goal_moves(robot: Rig, seconds: float) -> None:
    """The arm is told to stay where it is, for that long from when its last goal has run out."""
    robot.person.watch(SETTLED_S)
    goals = np.array([bus.goal_rad for _, bus in robot.person.watch(seconds)])
    assert np.ptp(goals, axis=0).max() < STILL_RAD


def waits_for_a_person(robot: Rig, modes: tuple[Mode, ...] = (Mode.FAULT,)) -> None:
    """Nothing moves by itself."""
    robot.person.until(lambda: robot.person.mode() in modes, "control does not notice")
    no_goal_moves(robot, 1.0)
    assert robot.person.mode() in modes


def test_a_frozen_camera(bare: Rig) -> None:
    bare.sources[0].frozen = True
    try:
        waits_for_a_person(bare)
        assert "frozen" in bare.log("camera")
        assert bare.person.status is not None and "camera" in bare.person.status.message
        episode = bare.person.status.episode
    finally:
        bare.sources[0].frozen = False
    bare.ready()
    bare.person.until(lambda: bare.ends().get(episode) is EndReason.FAULT, "the episode did not end as a fault")


def test_a_dead_control_process(robot: Rig) -> None:
    before = robot.person.status
    assert before is not None
    pid = robot.signal("control", signal.SIGKILL)
    no_goal_moves(robot, 1.0)
    robot.replaced("control", pid)
    waits_for_a_person(robot)
    assert robot.person.status is not None and "press scene ready" in robot.person.status.message
    robot.ready()
    assert robot.person.status.episode > before.episode
    robot.arrived(robot.recorded())


def test_a_dead_link(robot: Rig) -> None:
    records = robot.person.status.records if robot.person.status else 0
    pid = robot.signal("link", signal.SIGKILL)
    robot.replaced("link", pid)
    robot.person.until(lambda: robot.person.status is not None and robot.person.status.records > records + 10)
    assert robot.person.mode() is not Mode.FAULT
    robot.arrived(robot.recorded())


def test_a_dead_trainer(robot: Rig) -> None:
    robot.kill("trainer")
    recorded, episode = robot.recorded(), robot.person.status.episode if robot.person.status else 0
    robot.person.press(EventKind.FAILURE)
    robot.person.until(lambda: robot.person.status is not None and robot.person.status.episode > episode)
    robot.person.until(lambda: robot.recorded() > recorded + 10, "control does not record on")
    assert robot.person.mode() is not Mode.FAULT
    robot.start_trainer()
    robot.arrived(robot.recorded())


def test_a_dead_bus_process(robot: Rig) -> None:
    pid = robot.signal("bus", signal.SIGKILL)
    last = robot.person.bus
    assert last is not None
    robot.replaced("bus", pid)
    robot.hears_the_bus_again()
    heard = robot.person.watch(1.0)
    assert not any(bus.armed for _, bus in heard)
    assert "bus.adopted" in robot.log("bus")
    assert all(np.abs(bus.position_rad - last.goal_rad).max() < HELD_RAD for _, bus in heard)
    assert robot.person.mode() in (Mode.IDLE, Mode.FAULT)
    robot.ready()


def test_an_operator_who_vanished_during_takeover(robot: Rig) -> None:
    person = robot.person
    person.driving = True
    person.press(EventKind.TAKEOVER_BEGIN)
    person.until(lambda: person.mode() is Mode.TAKEOVER)
    person.present = person.driving = False
    episode = person.status.episode if person.status else 0
    waits_for_a_person(robot)
    assert person.status is not None and person.status.message == "operator_lost"
    robot.ready()
    person.until(lambda: robot.ends().get(episode) is EndReason.FAULT)
    last = [s for s in robot.journal_steps() if s.episode == episode and s.executed is not None][-1]
    assert "operator_lost" in last.reasons or "stale_drive" in last.reasons


def test_a_stalled_process(robot: Rig) -> None:
    control = robot.signal("control", signal.SIGSTOP)
    no_goal_moves(robot, 0.5)
    robot.replaced("control", control)
    waits_for_a_person(robot)
    bus = robot.signal("bus", signal.SIGSTOP)
    robot.replaced("bus", bus)
    robot.hears_the_bus_again()
    waits_for_a_person(robot, (Mode.FAULT, Mode.IDLE))
    assert robot.person.bus is not None and not robot.person.bus.armed
    assert robot.children()["bus"]["stalls"] >= 1 and robot.children()["control"]["stalls"] >= 1
    assert "process.stalled name=control" in robot.log() and "process.stalled name=bus" in robot.log()
    robot.ready()


def test_a_servo_fault(bare: Rig) -> None:
    bare.fault(servo=3, overload=True)
    try:
        bare.person.until(lambda: bare.person.bus is not None and bare.person.bus.fault, "the bus does not notice")
        waits_for_a_person(bare)
        assert bare.person.bus is not None and not bare.person.bus.armed
        assert "elbow_flex" in bare.person.bus.fault and "elbow_flex" in bare.log("bus")
        assert not bare.person.command(BusAction.ARM).ok
    finally:
        bare.fault(servo=3, overload=False)
    bare.ready()


def test_a_lost_serial_adapter(bare: Rig) -> None:
    bare.fault(chain="unplug")
    try:
        bare.person.until(lambda: bare.person.mode() is Mode.FAULT, "control does not notice")
    finally:
        bare.fault(chain="plug")
    bare.hears_the_bus_again()
    assert not any(bus.armed for _, bus in bare.person.watch(1.0))
    bare.ready()


def test_a_clock_step(bare: Rig) -> None:
    first = bare.person.status
    assert first is not None
    bare.person.watch(3.0)
    bare.person.next_tick()
    last = bare.person.status
    assert last is not None
    ticks = last.tick - first.tick + last.missed_ticks - first.missed_ticks
    assert ticks == pytest.approx((last.stamp_ns - first.stamp_ns) / 1e8, abs=1.5)
    assert last.mode is not Mode.FAULT
    bare.arrived(bare.recorded() - 5)


def test_a_dead_daemon(bare: Rig) -> None:
    pids = [bare.pid(name) for name in ("bus", "camera", "control", "link")]
    bare.kill("runtime")
    bare.person.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "orphans live on")
    assert not any(s["torque_on"] for s in bare.fault(chain="state")["servos"])
    bare.start_daemon()
    bare.ready()


def test_a_dead_host(bare: Rig) -> None:
    pids = [bare.pid(name) for name in ("bus", "camera", "control", "link")]
    for pid in (bare.processes["runtime"].pid, *pids):
        os.kill(pid, signal.SIGSTOP)  # nobody may notice that the others are gone
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    bare.kill("runtime")
    held = bare.fault(chain="state")["servos"]
    assert all(s["torque_on"] for s in held)
    bare.start_daemon()
    bare.person.until(lambda: "bus.adopted" in bare.log("bus"), "the arm is not adopted")
    bare.hears_the_bus_again()
    assert not any(bus.armed for _, bus in bare.person.watch(1.0))
    bare.ready()


def test_a_full_disk(tmp_path: Path) -> None:
    edge = tmp_path / "edge"
    edge.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "steadyhand", str(edge)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with rig(tmp_path / "rig", simulated=False, edge=edge) as robot:
            fill_and_free(robot, edge / "ballast")
    finally:
        subprocess.run(["umount", "-l", str(edge)], check=True)


def fill_and_free(robot: Rig, ballast: Path) -> None:
    person = robot.person
    robot.ready()
    robot.kill("trainer")  # what it acknowledges makes room
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            continue
    person.until(lambda: person.status is not None and "the disk is full" in person.status.message)
    person.until(lambda: person.mode() is Mode.HOLD, "autonomy goes on")
    heard = person.watch(2.0)
    assert {status.mode for status, _ in heard} == {Mode.HOLD}, {status.message for status, _ in heard}
    first, last = heard[0][0], heard[-1][0]
    ticks = last.tick - first.tick + last.missed_ticks - first.missed_ticks
    assert ticks == pytest.approx((last.stamp_ns - first.stamp_ns) / 1e8, abs=1.5)
    ballast.unlink()
    person.until(lambda: person.mode() is Mode.POLICY, "it does not go on when there is space again")
    robot.everything_arrived_once()
    seqs: dict[int, list[int]] = {}
    for step in robot.journal_steps():
        seqs.setdefault(step.episode, []).append(step.seq)
    assert all(found == list(range(len(found))) for found in seqs.values())


def test_metrics_of_a_running_robot_show_its_loops_and_its_servos(bare: Rig) -> None:
    found = ""

    def shown() -> object:
        nonlocal found
        with urllib.request.urlopen(f"http://127.0.0.1:{bare.metrics_port}/metrics", timeout=20) as answer:
            found = answer.read().decode()
        return re.search(r"tick_to_wire_seconds_count [1-9]", found) and "steadyhand_armed 1" in found

    bare.person.until(shown, "no metrics")
    counts = dict(re.findall(r"^(steadyhand_\w+_count) (\d+)$", found, re.MULTILINE))
    for name in ("control_tick_lateness", "control_frame_age", "control_tick_to_wire", "bus_tick_lateness"):
        assert int(counts[f"steadyhand_{name}_seconds_count"]) > 0, name
    assert 'steadyhand_servo_temperature_celsius{joint="gripper"}' in found
    assert re.search(r'steadyhand_camera_frames_total\{camera="front"\} [1-9]', found)


def test_the_table_and_these_tests_name_the_same_failures() -> None:
    lines = (DOCS / "failures.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ") and not line.startswith("| ---")][1:]
    named = {f"test_{re.sub('[^a-z]+', '_', row.lower())}" for row in rows}
    assert len(rows) == len(named)
    here = {name for name in globals() if re.match("test_an?_", name)}
    assert named == here


def test_no_loop_paces_on_the_wall_clock() -> None:
    code = Path(sys.modules["steadyhand_runtime"].__file__ or "").parent
    looks = re.compile(r"time\.time(_ns)?\(|datetime\.(now|utcnow)|CLOCK_REALTIME")
    found = {str(path.relative_to(code)) for path in code.rglob("*.py") if looks.search(path.read_text("utf-8"))}
    assert found <= {"bus/recording.py", "bus/recording_command.py"}  # when a recording was made, for its reader
