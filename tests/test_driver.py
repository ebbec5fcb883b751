"""The driver against virtual servos on an injected clock, and once over a real pty."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import RAD_PER_TICK, Calibration
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.driver import Driver, Reading
from steadyhand_runtime.bus.protocol import Alarm
from steadyhand_runtime.bus.transport import BusError, InProcessTransport, SerialTransport
from steadyhand_runtime.clock import ManualClock, MonotonicClock
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import StillPlant, VirtualChain

POSE = np.array([0.3, -0.4, 0.5, -0.6, 0.7, 0.8])
LOW = np.full(6, 0.1)


@dataclass
class Rig:
    plant: StillPlant
    chain: VirtualChain
    clock: ManualClock
    driver: Driver

    def cycle(self, goal_rad: np.ndarray | None = None, slow: bool = False) -> Reading:
        self.clock.advance_s(0.01)
        self.plant.advance(0.01)
        return self.driver.cycle(goal_rad, slow)


@pytest.fixture
def rig() -> Rig:
    plant, clock = StillPlant(), ManualClock()
    chain = VirtualChain(plant)
    driver = Driver(InProcessTransport(chain, clock), load_arm(), Calibration.default(), clock)
    return Rig(plant, chain, clock, driver)


def test_connect_accepts_six_sts3215(rig: Rig) -> None:
    rig.driver.connect()
    assert rig.cycle().voltage_v.tolist() == [7.4] * 6


def test_connect_names_the_servos_that_do_not_answer(rig: Rig) -> None:
    rig.chain.servos[3].silent = True
    with pytest.raises(BusError, match=r"wrist_flex \(id 4\) does not answer: check the cables"):
        rig.driver.connect()


def test_connect_refuses_another_model(rig: Rig) -> None:
    rig.chain.servos[2].memory[3:5] = (2825).to_bytes(2, "little")
    with pytest.raises(BusError, match=r"elbow_flex \(id 3\) is model 2825"):
        rig.driver.connect()


def test_a_cycle_moves_the_joints_and_reads_them(rig: Rig) -> None:
    for _ in range(100):
        reading = rig.cycle(POSE)
    assert reading.all_valid
    np.testing.assert_allclose(reading.position_rad, POSE, atol=RAD_PER_TICK)
    assert reading.age_s.tolist() == [0.0] * 6


def test_a_cycle_without_goal_energises_nothing(rig: Rig) -> None:
    rig.cycle()
    assert rig.driver.energised() == [False] * 6


def test_one_write_carries_goal_and_request(rig: Rig) -> None:
    writes: list[bytes] = []
    feed = rig.chain.feed
    rig.chain.feed = lambda data, now_ns: writes.append(bytes(data)) or feed(data, now_ns)  # type: ignore[method-assign, func-returns-value]
    rig.cycle(POSE)
    assert [len(w) for w in writes] == [26 + 14]


def test_speed_has_the_sign_of_the_motion(rig: Rig) -> None:
    reading = [rig.cycle(POSE) for _ in range(4)][-1]
    assert (np.sign(reading.velocity_rad_s) == np.sign(POSE)).all()


def test_the_slow_block_comes_every_twentieth_cycle(rig: Rig) -> None:
    rig.chain.servos[5].temperature_c = 55
    readings = [rig.cycle() for _ in range(20)]
    assert readings[18].temperature_c[5] == 0.0
    assert readings[19].temperature_c[5] == 55.0


def test_a_silent_servo_keeps_its_last_good_values_and_its_age_grows(rig: Rig) -> None:
    for _ in range(100):
        rig.cycle(POSE)
    rig.chain.servos[1].silent = True
    reading = [rig.cycle(POSE) for _ in range(10)][-1]
    assert reading.valid.tolist() == [True, False, True, True, True, True]
    assert reading.age_s[1] == pytest.approx(0.1, abs=0.02)
    np.testing.assert_allclose(reading.position_rad, POSE, atol=RAD_PER_TICK)
    rig.chain.servos[1].silent = False
    assert [rig.cycle(POSE).all_valid for _ in range(12)][-1]


def test_a_corrupt_reply_is_asked_for_again_within_the_cycle(rig: Rig) -> None:
    rig.cycle()
    rig.chain.servos[4].corrupt_replies = 1
    assert rig.cycle().valid.all()
    assert [c.checksum_errors for c in rig.driver.counters()] == [0, 0, 0, 0, 1, 0]


def test_two_corrupt_replies_cost_only_that_servo_and_only_that_cycle(rig: Rig) -> None:
    rig.cycle()
    rig.chain.servos[4].corrupt_replies = 2
    assert rig.cycle().valid.tolist() == [True, True, True, True, False, True]
    assert rig.cycle().all_valid
    assert rig.driver.failed_reads == 1


def test_replies_that_come_a_cycle_late_are_never_taken_for_fresh(rig: Rig) -> None:
    rig.plant.place([0.1] * 6)
    rig.cycle()
    for servo in rig.chain.servos:
        servo.late_ns = 70_000_000
    rig.cycle()
    for servo in rig.chain.servos:
        servo.late_ns = 0
    for n in range(20):
        rig.plant.place([0.2 + n / 100] * 6)
        reading = rig.cycle()
        fresh = reading.position_rad[reading.valid]
        np.testing.assert_allclose(fresh, 0.2 + n / 100, atol=RAD_PER_TICK)
    assert reading.all_valid


def test_one_late_reply_does_not_shift_slow_servos_by_a_cycle_for_ever(rig: Rig) -> None:
    for servo in rig.chain.servos:
        servo.late_ns = 8_000_000
    assert not rig.cycle().valid.any()
    for servo in rig.chain.servos:
        servo.late_ns = 2_500_000  # later than a silent bus is waited for, sooner than a cycle's deadline
    assert [rig.cycle().all_valid for _ in range(4)][1:] == [True, True, True]


def test_alarms_are_reported_and_the_data_stays_valid(rig: Rig) -> None:
    rig.chain.servos[5].trip_overload()
    reading = rig.cycle()
    assert reading.all_valid
    assert reading.alarms.tolist() == [0, 0, 0, 0, 0, Alarm.OVERLOAD]


def test_arming_starts_low_at_the_present_pose_whatever_the_old_goal_was(rig: Rig) -> None:
    rig.cycle(POSE)
    rig.driver.disarm()
    rig.plant.place([-0.5] * 6)
    assert rig.driver.arm_torque(LOW) == []
    for _ in range(50):
        reading = rig.cycle()
    np.testing.assert_allclose(reading.position_rad, -0.5, atol=RAD_PER_TICK)
    assert [s.torque_share() for s in rig.chain.servos] == [0.1] * 6
    assert rig.driver.energised() == [True] * 6


def test_arming_is_refused_at_the_wrong_voltage(rig: Rig) -> None:
    rig.chain.servos[0].voltage_v = 12.1
    (trouble,) = rig.driver.arm_torque(LOW)
    assert "shoulder_pan (id 1): 12.1 V is outside 4.0..8.0 V" in str(trouble)
    assert rig.driver.energised() == [False] * 6


def test_disarming_reaches_every_servo_though_one_is_overloaded_and_one_silent(rig: Rig) -> None:
    rig.driver.arm_torque(LOW)
    rig.chain.servos[2].trip_overload()
    rig.chain.servos[4].silent = True
    (trouble,) = rig.driver.disarm()
    assert (trouble.joint, trouble.servo_id) == ("wrist_roll", 5)
    assert [s.torque_on for s in rig.chain.servos] == [False, False, False, False, True, False]


def test_limiting_torque_acts_at_once_on_all(rig: Rig) -> None:
    rig.driver.arm_torque(LOW)
    rig.driver.limit_torque(np.array([1.0, 0.5, 0.25, 2.0, -1.0, 0.3]))
    assert [s.torque_share() for s in rig.chain.servos] == [0.999, 0.5, 0.25, 0.999, 0.0, 0.3]


def test_clearing_an_overload_takes_only_that_joints_torque(rig: Rig) -> None:
    rig.driver.arm_torque(LOW)
    rig.chain.servos[5].trip_overload()
    rig.cycle()
    assert rig.driver.clear_overloads() == []
    assert [s.torque_on for s in rig.chain.servos] == [True] * 5 + [False]


def test_holding_here_makes_the_present_pose_the_goal(rig: Rig) -> None:
    for _ in range(3):
        rig.cycle(POSE)
    stopped = rig.plant.read().position_rad
    assert rig.driver.hold_here()
    for _ in range(50):
        reading = rig.cycle()
    np.testing.assert_allclose(reading.position_rad, stopped, atol=RAD_PER_TICK)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[PtyPort]:
    with PtyPort(VirtualChain(StillPlant()), link=tmp_path / "arm") as served:
        yield served


def test_the_same_driver_works_over_a_pty(port: PtyPort) -> None:
    clock = MonotonicClock()
    driver = Driver(SerialTransport(port.path, 1_000_000, clock), load_arm(), Calibration.default(), clock)
    driver.connect()
    assert driver.arm_torque(LOW) == []
    # On a busy machine some replies miss the cycle's margin; whatever is valid must be right.
    readings = [driver.cycle(np.zeros(6)) for _ in range(100)]
    assert any(r.all_valid for r in readings)
    assert all(np.abs(r.position_rad).max() < RAD_PER_TICK for r in readings)
    assert driver.disarm() == []
    driver.close()


def test_a_port_may_be_written_before_it_was_ever_read(port: PtyPort) -> None:
    clock = MonotonicClock()
    transport = SerialTransport(port.path, 1_000_000, clock)
    transport.write(protocol.ping(1))
    assert transport.read(6, clock.now_ns() + 2_000_000_000) == bytes.fromhex("ffff010200fc")
    transport.close()


def test_a_second_program_is_told_that_the_port_is_busy(port: PtyPort) -> None:
    first = SerialTransport(port.path, 1_000_000, MonotonicClock())
    with pytest.raises(BusError, match="busy: another program holds it"):
        SerialTransport(port.path, 1_000_000, MonotonicClock())
    first.close()
    SerialTransport(port.path, 1_000_000, MonotonicClock()).close()


def test_a_missing_port_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="no such port: plug the arm in"):
        SerialTransport(str(tmp_path / "nothing"), 1_000_000, MonotonicClock())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_a_forbidden_port_is_named_with_the_fix(port: PtyPort) -> None:
    os.chmod(port.device, 0)
    with pytest.raises(BusError, match="usermod -aG dialout"):
        SerialTransport(port.path, 1_000_000, MonotonicClock())


def test_something_that_is_no_serial_port_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BusError, match="cannot be opened as a serial port"):
        SerialTransport(str(file), 1_000_000, MonotonicClock())


def test_losing_the_port_raises_an_error_that_names_the_cable(port: PtyPort) -> None:
    clock = MonotonicClock()
    transport = SerialTransport(port.path, 1_000_000, clock)
    port.close()
    with pytest.raises(BusError, match=r"the port was lost .*check the USB cable"):
        for _ in range(3):
            transport.write(b"\xff")
            transport.read(6, clock.now_ns() + 10_000_000)
    transport.close()
