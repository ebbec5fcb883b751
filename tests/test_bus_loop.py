"""The bus loop on virtual servos and an injected clock; the bus process over a pty and its sockets."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import zmq

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import RAD_PER_TICK, Calibration
from steadyhand_models import wire
from steadyhand_models.messages import BusAction, BusCommand, BusState, CommandReply, Goal
from steadyhand_models.topics import endpoint
from steadyhand_runtime.bus import process
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.loop import BusLoop, MotionSettings, Phase
from steadyhand_runtime.bus.transport import InProcessTransport
from steadyhand_runtime.clock import ManualClock, MonotonicClock
from steadyhand_runtime.config import BusSettings
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import StillPlant, VirtualChain
from steadyhand_runtime.telemetry import Log

POSE = np.array([0.3, -0.4, 0.5, -0.6, 0.7, 0.8])
MOTION = MotionSettings()


@dataclass
class Rig:
    plant: StillPlant
    chain: VirtualChain
    clock: ManualClock
    loop: BusLoop
    log: io.StringIO
    commands: int = 0
    states: list[BusState] = field(default_factory=list)

    def tick(self, n: int = 1) -> BusState:
        for _ in range(n):
            self.clock.advance_s(0.01)
            self.plant.advance(0.01)
            self.states.append(self.loop.tick(self.clock.now_ns()))
        return self.states[-1]

    def follow(self, q_rad: np.ndarray, n: int) -> BusState:
        """Goals at 10 Hz for n bus ticks."""
        for tick in range(n):
            if tick % 10 == 0:
                self.goal(q_rad)
            self.tick()
        return self.states[-1]

    def goal(self, q_rad: np.ndarray, valid_s: float = 0.25) -> bool:
        now_ns = self.clock.now_ns()
        return self.loop.submit(Goal(0, now_ns, now_ns + round(valid_s * 1e9), q_rad), now_ns)

    def command(self, action: BusAction) -> CommandReply:
        self.commands += 1
        return self.loop.command(BusCommand(self.commands, action), self.clock.now_ns())

    def shares(self) -> list[float]:
        return [round(s.torque_share(), 3) for s in self.chain.servos]


def make_rig(plant: StillPlant, chain: VirtualChain, clock: ManualClock) -> Rig:
    log = io.StringIO()
    driver = Driver(InProcessTransport(chain, clock), load_arm(), Calibration.default(), clock)
    return Rig(plant, chain, clock, BusLoop(driver, log=Log(log)), log)


@pytest.fixture
def rig() -> Rig:
    plant = StillPlant()
    made = make_rig(plant, VirtualChain(plant), ManualClock())
    made.loop.start()
    return made


@pytest.fixture
def armed(rig: Rig) -> Rig:
    assert rig.command(BusAction.ARM).ok
    assert rig.tick(60).armed
    return rig


def test_goals_are_refused_and_counted_unless_armed(rig: Rig) -> None:
    assert not rig.goal(POSE)
    state = rig.tick()
    assert state.refusals == ("not_armed",)
    assert rig.tick(100).refusals == ()
    assert [s.torque_on for s in rig.chain.servos] == [False] * 6


def test_arming_ramps_the_torque_and_moves_nothing(rig: Rig) -> None:
    rig.plant.place(POSE)
    rig.tick()
    assert rig.command(BusAction.ARM).ok
    assert rig.shares() == [0.1] * 5 + [0.05]
    shares = []
    for _ in range(60):
        rig.tick()
        shares.append(rig.shares()[0])
    assert shares == sorted(shares)
    assert rig.shares() == [0.999] * 5 + [0.5]
    state = rig.states[-1]
    assert state.armed
    np.testing.assert_allclose(state.position_rad, POSE, atol=RAD_PER_TICK)


def test_an_armed_arm_follows_goals_smoothly(armed: Rig) -> None:
    before = len(armed.states)
    state = armed.follow(POSE, 100)
    np.testing.assert_allclose(state.position_rad, POSE, atol=2 * RAD_PER_TICK)
    goals = np.array([s.goal_rad for s in armed.states[before:]])
    speeds = np.diff(goals, axis=0) / 0.01
    assert np.abs(speeds).max() <= MOTION.v_max_rad_s + 1e-9
    assert np.abs(np.diff(speeds, axis=0)).max() <= MOTION.a_max_rad_s2 * 0.01 + 1e-6


def test_without_new_goals_the_arm_holds_then_yields_and_recovers_when_they_return(armed: Rig) -> None:
    armed.follow(POSE, 50)
    state = armed.tick(100)
    held = state.goal_rad
    assert state.armed and "stale" in state.refusals
    assert armed.shares()[0] == 0.999
    armed.tick(200)
    assert armed.shares()[0] == MOTION.yield_torque
    assert armed.states[-1].goal_rad.tolist() == held.tolist()
    armed.follow(POSE, 100)
    assert armed.shares()[0] == 0.999


def test_a_goal_cannot_claim_to_be_valid_for_long(armed: Rig) -> None:
    assert armed.goal(POSE, valid_s=3600.0)
    assert "stale" in armed.tick(150).refusals


def test_an_expired_goal_is_not_followed(armed: Rig) -> None:
    start = armed.states[-1].goal_rad
    armed.goal(POSE, valid_s=-1.0)
    assert armed.tick(20).goal_rad.tolist() == start.tolist()


def test_an_emergency_stop_lowers_the_torque_at_once_and_latches(armed: Rig) -> None:
    armed.follow(POSE, 15)
    assert armed.command(BusAction.ESTOP).ok
    assert armed.shares()[0] == MOTION.yield_torque
    stopped = armed.plant.read().position_rad
    assert not armed.goal(POSE)
    state = armed.tick(50)
    assert state.estopped and not state.armed
    np.testing.assert_allclose(state.position_rad, stopped, atol=RAD_PER_TICK)
    assert all(s.torque_on for s in armed.chain.servos)
    reply = armed.command(BusAction.ARM)
    assert not reply.ok and "clear it first" in reply.reason
    assert armed.command(BusAction.CLEAR).ok
    assert not armed.tick(100).armed
    assert armed.command(BusAction.ARM).ok
    assert armed.tick(60).armed


def test_an_emergency_stop_of_a_limp_arm_energises_nothing(rig: Rig) -> None:
    assert rig.command(BusAction.ESTOP).ok
    assert rig.tick(5).estopped
    assert not any(s.torque_on for s in rig.chain.servos)


def test_disarming_takes_every_torque_and_keeps_a_latched_stop(armed: Rig) -> None:
    armed.command(BusAction.ESTOP)
    assert armed.command(BusAction.DISARM).ok
    assert not any(s.torque_on for s in armed.chain.servos)
    assert armed.tick().estopped


def test_disarming_says_which_servo_did_not_confirm(armed: Rig) -> None:
    armed.chain.servos[4].silent = True
    reply = armed.command(BusAction.DISARM)
    assert not reply.ok and reply.reason.startswith("wrist_roll (id 5): did not confirm torque off")
    assert [s.torque_on for s in armed.chain.servos] == [False] * 4 + [True, False]


def test_a_command_sent_again_is_answered_and_not_repeated(armed: Rig) -> None:
    arm = BusCommand(armed.commands, BusAction.ARM)
    armed.command(BusAction.ESTOP)
    armed.command(BusAction.CLEAR)
    reply = armed.loop.command(arm, armed.clock.now_ns())
    assert reply.ok and reply.command_id == arm.command_id
    assert armed.loop.phase is Phase.DISARMED


def test_a_servo_that_stays_silent_stops_the_arm_and_is_named(armed: Rig) -> None:
    armed.follow(POSE, 20)
    armed.chain.servos[2].silent = True
    state = armed.tick(60)
    assert not state.armed and state.fault.startswith("elbow_flex: no answer")
    assert armed.shares()[0] == MOTION.yield_torque
    assert "bus.fault" in armed.log.getvalue()
    armed.chain.servos[2].silent = False
    assert armed.command(BusAction.CLEAR).ok and armed.tick().fault == ""


def test_a_latched_overload_stops_the_arm_and_clearing_releases_that_joint(armed: Rig) -> None:
    armed.chain.servos[5].trip_overload()
    state = armed.tick(60)
    assert state.fault == "gripper: overload" and state.alarms[5] == 0x20
    assert not armed.command(BusAction.ARM).ok
    assert armed.command(BusAction.CLEAR).ok
    assert armed.tick().alarms[5] == 0
    assert armed.command(BusAction.ARM).ok
    assert armed.tick(60).armed


def test_heat_stops_the_arm(armed: Rig) -> None:
    armed.chain.servos[1].temperature_c = 80
    assert armed.tick(30).fault == "shoulder_lift: 80 degC"


def test_arming_at_the_wrong_voltage_is_refused(rig: Rig) -> None:
    rig.chain.servos[0].voltage_v = 12.0
    reply = rig.command(BusAction.ARM)
    assert not reply.ok and "wrong power supply" in reply.reason
    assert not any(s.torque_on for s in rig.chain.servos)


def test_a_restarted_bus_adopts_an_energised_arm_and_waits(armed: Rig) -> None:
    armed.follow(POSE, 50)
    again = make_rig(armed.plant, armed.chain, armed.clock)
    again.loop.start()
    before = armed.plant.read().position_rad
    state = again.tick(50)
    assert not state.armed and again.loop.energised
    np.testing.assert_allclose(state.position_rad, before, atol=RAD_PER_TICK)
    assert again.shares()[0] == MOTION.yield_torque
    assert not again.goal(np.zeros(6))


def test_ten_thousand_ticks_of_random_goals_and_faults_never_jump(armed: Rig) -> None:
    rng = np.random.default_rng(7)
    for _ in range(1000):
        servo = armed.chain.servos[rng.integers(6)]
        servo.corrupt_replies = int(rng.random() < 0.2)
        servo.late_ns = int(rng.random() < 0.1) * 60_000_000
        if rng.random() < 0.8:
            armed.goal(rng.normal(size=6) * 2)
        state = armed.tick(10)
        servo.late_ns = 0
        if state.fault:
            armed.command(BusAction.CLEAR)
            armed.command(BusAction.ARM)
    moving = np.array([s.armed for s in armed.states])
    goals = np.array([s.goal_rad for s in armed.states])
    steps = np.abs(np.diff(goals, axis=0))[moving[1:] & moving[:-1]]
    assert moving.mean() > 0.5
    assert 0.02 < steps.max() <= MOTION.v_max_rad_s * 0.01 + 1e-9
    arm = load_arm()
    assert (goals >= arm.low_rad - RAD_PER_TICK).all() and (goals <= arm.high_rad + RAD_PER_TICK).all()


def test_a_state_survives_the_wire(armed: Rig) -> None:
    state = armed.tick()
    again = wire.decode(wire.encode(state), BusState)
    assert again.tick == state.tick and again.armed
    np.testing.assert_array_equal(again.position_rad, state.position_rad)


class Client:
    """What control and operator do, on the bus's sockets."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.state = self.context.socket(zmq.SUB)
        self.state.setsockopt(zmq.SUBSCRIBE, b"")
        self.goal = self.context.socket(zmq.PUB)
        self.command = self.context.socket(zmq.DEALER)
        for socket, topic in ((self.state, "bus.state"), (self.goal, "bus.goal"), (self.command, "bus.command")):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, 20_000)
            socket.connect(endpoint(folder, topic))

    def ask(self, number: int, action: BusAction) -> CommandReply:
        self.command.send(wire.encode(BusCommand(number, action)))
        return wire.decode(self.command.recv(), CommandReply)

    def until(self, wanted: Callable[[BusState], bool], limit: int = 2000) -> BusState:
        for _ in range(limit):
            state = wire.decode(self.state.recv(), BusState)
            if wanted(state):
                return state
        raise AssertionError("the state never came")

    def close(self) -> None:
        for socket in (self.state, self.goal, self.command):
            socket.close()
        self.context.term()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[PtyPort, VirtualChain, Path]]:
    plant = StillPlant()
    chain = VirtualChain(plant)
    with PtyPort(chain, link=tmp_path / "arm") as port:
        yield port, chain, tmp_path


def test_the_process_serves_state_goals_and_commands_and_ends_without_torque(
    served: tuple[PtyPort, VirtualChain, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, chain, folder = served
    monkeypatch.setattr(process, "realtime", lambda priority: ["not in a test"])
    monkeypatch.setattr(process, "RELAX_S", 0.01)
    stop, out, log = process.StopFlag(), [], io.StringIO()
    settings = BusSettings(port=port.path)
    body = threading.Thread(
        target=lambda: out.append(process.run(settings, folder, stop, Log(log), folder / "faults", MonotonicClock()))
    )
    body.start()
    client = Client(folder)
    try:
        assert client.ask(1, BusAction.ARM).ok
        state = client.until(lambda s: s.armed)
        client.command.send(b"nonsense")
        assert "not msgpack" in wire.decode(client.command.recv(), CommandReply).reason
        # A subscriber that is still connecting misses what is sent meanwhile, so the goal is sent until it shows.
        for number in range(100):
            now_ns = MonotonicClock().now_ns()
            client.goal.send(wire.encode(Goal(number, now_ns, now_ns + 250_000_000, state.position_rad + 0.1)))
            if client.until(lambda s: True).goal_rad[0] > 0.01:
                break
        assert client.until(lambda s: s.goal_rad[0] > 0.01)
    finally:
        stop.set()
        body.join(20)
        client.close()
    assert out and out[0]["disarm_trouble"] == [] and out[0]["ticks"] > 40
    assert not any(s.torque_on for s in chain.servos)
    assert "bus.realtime_degraded" in log.getvalue()


def test_a_terminated_process_leaves_no_torque_and_its_figures(served: tuple[PtyPort, VirtualChain, Path]) -> None:
    port, chain, folder = served
    config = folder / "runtime.toml"
    config.write_text(f'run = "{folder}/run"\nsockets = "{folder}/s"\n[bus]\nport = "{port.path}"\n')
    child = subprocess.Popen(
        [sys.executable, "-m", "steadyhand_runtime.bus.process", "--config", str(config)], stderr=subprocess.PIPE
    )
    client = Client(folder / "s")
    try:
        assert client.ask(1, BusAction.ARM).ok
        client.until(lambda s: s.armed)
        os.kill(child.pid, signal.SIGTERM)
        _, text = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
        client.close()
    assert child.returncode == 0, text
    assert not any(s.torque_on for s in chain.servos)
    assert (folder / "run" / "edge" / "bus.json").exists()


def test_a_missing_port_ends_the_process_with_one_line_that_helps(tmp_path: Path) -> None:
    config = tmp_path / "runtime.toml"
    config.write_text(f'run = "{tmp_path}/run"\nsockets = "{tmp_path}/s"\n[bus]\nport = "{tmp_path}/gone"\n')
    out = subprocess.run(
        [sys.executable, "-m", "steadyhand_runtime.bus.process", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert out.returncode == 1
    assert (
        out.stderr.strip()
        == f"bus: {tmp_path}/gone: no such port: plug the arm in, or give the right one (ls /dev/serial/by-id)"
    )
