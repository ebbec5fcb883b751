"""A cable that is pulled: the bus says so, comes back by itself, and moves nothing until a person arms it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zmq

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models import wire
from steadyhand_models.messages import BusAction, BusCommand, BusState, CommandReply, Goal
from steadyhand_models.topics import endpoint
from steadyhand_runtime.bus import process
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.faults import FaultReason
from steadyhand_runtime.bus.loop import BusLoop, MotionSettings, Phase
from steadyhand_runtime.bus.recording import Kind, read_recording
from steadyhand_runtime.bus.transport import BusError, InProcessTransport, PortLost
from steadyhand_runtime.clock import ManualClock, MonotonicClock
from steadyhand_runtime.config import BusSettings
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import StillPlant, VirtualChain
from steadyhand_runtime.telemetry import Log


class Cable(InProcessTransport):
    """A wire that can be pulled."""

    pulled = False

    def write(self, data: bytes | bytearray) -> None:
        self._check()
        super().write(data)

    def read(self, n: int, deadline_ns: int) -> bytes:
        self._check()
        return super().read(n, deadline_ns)

    def drain(self) -> int:
        self._check()
        return super().drain()

    def _check(self) -> None:
        if self.pulled:
            raise PortLost("/dev/arm: the port was lost (hung up): check the USB cable and the arm's power")


@dataclass
class Rig:
    chain: VirtualChain
    plant: StillPlant
    clock: ManualClock
    cable: Cable
    loop: BusLoop
    commands: int = 0

    def tick(self, n: int = 1) -> BusState:
        for _ in range(n):
            self.clock.advance_s(0.01)
            self.plant.advance(0.01)
            state = self.loop.tick(self.clock.now_ns())
        return state

    def command(self, action: BusAction) -> CommandReply:
        self.commands += 1
        return self.loop.command(BusCommand(self.commands, action), self.clock.now_ns())

    def plug_in(self) -> None:
        self.cable = Cable(self.chain, self.clock)
        self.loop.driver.attach(self.cable)
        self.loop.recover()


@pytest.fixture
def armed() -> Rig:
    clock, plant = ManualClock(), StillPlant()
    chain = VirtualChain(plant)
    cable = Cable(chain, clock)
    driver = Driver(cable, load_arm(), Calibration.default(), clock)
    rig = Rig(chain, plant, clock, cable, BusLoop(driver, log=Log(io.StringIO())))
    rig.loop.start()
    assert rig.command(BusAction.ARM).ok
    assert rig.tick(60).armed
    return rig


def test_a_lost_port_is_a_fault_with_no_joint_valid_and_growing_age(armed: Rig) -> None:
    before = armed.tick()
    armed.cable.pulled = True
    state = armed.tick()
    assert state.fault.startswith("port lost: /dev/arm") and not state.armed
    assert not state.valid.any()
    np.testing.assert_array_equal(state.position_rad, before.position_rad)
    assert armed.tick(100).age_s.min() == pytest.approx(1.01, abs=0.02)
    assert armed.loop.faults[FaultReason.PORT_LOST] == 1


@pytest.mark.parametrize("action", list(BusAction))
def test_without_a_port_every_command_says_what_is_missing(armed: Rig, action: BusAction) -> None:
    armed.cable.pulled = True
    armed.tick()
    reply = armed.command(action)
    assert not reply.ok and "port lost" in reply.reason
    assert not armed.tick().valid.any()


def test_an_arm_that_comes_back_energised_is_held_yielding_where_it_is_until_it_is_armed(armed: Rig) -> None:
    now_ns = armed.clock.now_ns()
    armed.loop.submit(Goal(0, now_ns, now_ns + 250_000_000, np.full(6, 0.5)), now_ns)
    armed.tick(10)
    armed.cable.pulled = True
    armed.tick(50)
    armed.plug_in()
    here = armed.plant.read().position_rad
    state = armed.tick(50)
    assert state.valid.all() and "port lost" in state.fault and not state.armed
    np.testing.assert_allclose(armed.plant.read().position_rad, here, atol=0.002)
    assert armed.chain.servos[0].torque_share() == MotionSettings().yield_torque
    assert not armed.loop.submit(Goal(1, 0, 10**15, np.zeros(6)), armed.clock.now_ns())
    assert not armed.command(BusAction.ARM).ok
    assert armed.command(BusAction.CLEAR).ok and armed.command(BusAction.ARM).ok
    assert armed.tick(60).armed


def test_another_arm_on_the_cable_is_not_taken(armed: Rig) -> None:
    armed.cable.pulled = True
    armed.tick()
    armed.chain.servos[2].memory[3:5] = (2825).to_bytes(2, "little")
    with pytest.raises(BusError, match="model 2825"):
        armed.plug_in()
    assert not armed.tick().valid.any() and armed.loop.port_lost


def test_an_emergency_stop_outlasts_the_loss_of_the_port(armed: Rig) -> None:
    armed.command(BusAction.ESTOP)
    armed.cable.pulled = True
    armed.tick(5)
    armed.plug_in()
    assert armed.tick().estopped


def test_a_power_glitch_of_the_gripper_stops_the_arm_with_its_cap_in_force(armed: Rig) -> None:
    armed.chain.servos[5].power_cycle()
    state = armed.tick(25)
    assert state.fault.startswith("gripper (id 6): lost its power") and not state.armed
    assert armed.loop.phase is Phase.FAULT
    assert armed.chain.servos[5].torque_share() <= 0.5 * MotionSettings().yield_torque + 1e-9


def test_a_command_that_meets_the_loss_says_so(armed: Rig) -> None:
    armed.cable.pulled = True
    reply = armed.command(BusAction.DISARM)
    assert not reply.ok and "port lost" in reply.reason


def test_a_hot_joint_loses_torque_before_it_stops_the_arm(armed: Rig) -> None:
    armed.chain.servos[1].temperature_c = 60
    state = armed.tick(130)
    assert state.armed and state.fault == ""
    assert 0.6 < armed.chain.servos[1].torque_share() < 0.7
    assert armed.chain.servos[2].torque_share() == 0.999
    armed.chain.servos[1].temperature_c = 40
    armed.tick(1000)
    assert armed.chain.servos[1].torque_share() == armed.chain.servos[2].torque_share()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(process, "realtime", lambda priority: ["not in a test"])
    monkeypatch.setattr(process, "RELAX_S", 0.01)
    yield tmp_path


class Listener:
    """Hears the state and sends commands, like an operator."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._state = self._context.socket(zmq.SUB)
        self._state.setsockopt(zmq.SUBSCRIBE, b"")
        self._command = self._context.socket(zmq.DEALER)
        for socket, topic in ((self._state, "bus.state"), (self._command, "bus.command")):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, 30_000)
            socket.connect(endpoint(folder, topic))

    def until(self, wanted: str) -> BusState:
        """The first state whose fault begins with `wanted`, or an entirely valid one for ''."""
        for _ in range(6000):
            state = wire.decode(self._state.recv(), BusState)
            if state.fault.startswith(wanted) if wanted else state.valid.all():
                return state
        raise AssertionError("the state never came")

    def ask(self, number: int, action: BusAction) -> CommandReply:
        self._command.send(wire.encode(BusCommand(number, action)))
        return wire.decode(self._command.recv(), CommandReply)

    def close(self) -> None:
        self._state.close()
        self._command.close()
        self._context.term()


def test_the_process_outlives_its_port_and_serves_the_arm_when_it_is_back(folder: Path) -> None:
    plant = StillPlant()
    chain = VirtualChain(plant)
    port = PtyPort(chain, link=folder / "arm")
    stop, log, figures = process.StopFlag(), io.StringIO(), []
    settings = BusSettings(port=str(folder / "arm"))
    body = threading.Thread(
        target=lambda: figures.append(process.run(settings, folder, stop, Log(log), folder / "faults"))
    )
    body.start()
    listener = Listener(folder)
    try:
        assert listener.ask(1, BusAction.ARM).ok
        port.close()
        state = listener.until("port lost")
        assert not state.valid.any() and not state.armed
        assert not listener.ask(2, BusAction.ARM).ok
        port = PtyPort(chain, link=folder / "arm")
        state = listener.until("")
        assert state.fault.startswith("port lost") and not state.armed
        assert listener.ask(3, BusAction.CLEAR).ok and listener.ask(4, BusAction.ARM).ok
    finally:
        stop.set()
        body.join(30)
        listener.close()
        port.close()
    assert figures and figures[0]["disarm_trouble"] == [] and figures[0]["faults"] == {"port_lost": 1}
    assert not any(s.torque_on for s in chain.servos)
    assert "bus.port_back" in log.getvalue()
    (flight,) = (folder / "faults").iterdir()
    assert Kind.PORT_LOST in {event.kind for event in read_recording(flight).events}


def run_process(folder: Path, settings: BusSettings) -> None:
    process.run(settings, folder, process.StopFlag(), Log(io.StringIO()), folder / "faults", MonotonicClock())


def test_servos_at_another_rate_are_named_with_it(folder: Path) -> None:
    chain = VirtualChain(StillPlant())
    for servo in chain.servos:
        servo.memory[6] = 1
    with (
        PtyPort(chain, link=folder / "arm"),
        pytest.raises(BusError, match=r"at 1000000 baud, but at 500000.*steadyhand bus scan"),
    ):
        run_process(folder, BusSettings(port=str(folder / "arm")))


def test_a_rate_that_the_wire_cannot_carry_is_refused_before_any_torque(folder: Path) -> None:
    chain = VirtualChain(StillPlant(), baud=38_400)
    for servo in chain.servos:
        servo.memory[6] = 7
    with (
        PtyPort(chain, link=folder / "arm"),
        pytest.raises(BusError, match=r"bus.rate_hz = 100 is more than this bus carries \(\d+ Hz"),
    ):
        run_process(folder, BusSettings(port=str(folder / "arm"), baud=38_400))
    assert not any(s.torque_on for s in chain.servos)
