"""Connecting: who is silent, wrong, doubled, odd or on the wrong supply is told apart, and what it means for torque."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.survey import Problem
from steadyhand_runtime.bus.transport import BusError, InProcessTransport
from steadyhand_runtime.bus.verify import NobodyAnswers
from steadyhand_runtime.clock import ManualClock
from steadyhand_runtime.sim.servos import AfterSilent, StillPlant, VirtualChain

LOW = np.full(6, 0.1)


@dataclass
class Rig:
    chain: VirtualChain
    clock: ManualClock
    driver: Driver


def make_rig(ids: Sequence[int] = (1, 2, 3, 4, 5, 6), after_silent: AfterSilent = AfterSilent.ANSWER) -> Rig:
    clock = ManualClock()
    chain = VirtualChain(StillPlant(len(ids)), ids=ids, after_silent=after_silent)
    driver = Driver(InProcessTransport(chain, clock), load_arm(), Calibration.default(), clock)
    return Rig(chain, clock, driver)


@pytest.mark.parametrize("after_silent", list(AfterSilent))
def test_a_silent_servo_is_named_and_the_ones_behind_it_are_not(after_silent: AfterSilent) -> None:
    rig = make_rig(after_silent=after_silent)
    rig.chain.servos[2].silent = True
    with pytest.raises(BusError, match=r"elbow_flex \(id 3\) does not answer") as caught:
        rig.driver.connect()
    assert "wrist" not in str(caught.value)


def test_when_nobody_answers_the_power_supply_is_named() -> None:
    rig = make_rig()
    for servo in rig.chain.servos:
        servo.silent = True
    with pytest.raises(NobodyAnswers, match="power supply"):
        rig.driver.connect()


def test_two_servos_with_one_id_are_told_apart_from_a_silent_one() -> None:
    rig = make_rig(ids=(1, 2, 3, 4, 5, 6, 4))
    rig.chain.place(6, 1000)
    with pytest.raises(BusError, match=r"wrist_flex \(id 4\): answers collide"):
        rig.driver.connect()


def test_another_model_is_refused_with_its_number() -> None:
    rig = make_rig()
    rig.chain.servos[5].memory[3:5] = (2825).to_bytes(2, "little")
    with pytest.raises(BusError, match=r"gripper \(id 6\) is model 2825"):
        rig.driver.connect()


def test_a_mix_of_firmware_is_kept_as_a_finding_and_blocks_nothing() -> None:
    rig = make_rig()
    rig.chain.servos[1].memory[1] ^= 1
    rig.driver.connect()
    assert [f.problem for f in rig.driver.findings] == [Problem.FIRMWARE]
    assert rig.driver.arm_torque(LOW) == []


def test_the_wrong_supply_lets_the_arm_be_read_and_refuses_torque() -> None:
    rig = make_rig()
    for servo in rig.chain.servos:
        servo.voltage_v = 12.0
    rig.driver.connect()
    assert {f.problem for f in rig.driver.findings} == {Problem.VOLTAGE}
    assert rig.driver.cycle(None).all_valid
    assert len(rig.driver.arm_torque(LOW)) == 6
    assert not any(s.torque_on for s in rig.chain.servos)


def test_an_alarm_at_the_start_hides_no_servo() -> None:
    rig = make_rig()
    rig.chain.servos[2].trip_overload()
    rig.driver.connect()
    assert rig.driver.cycle(None).all_valid
    assert [c.alarms for c in rig.driver.counters()] == [0, 0, 1, 0, 0, 0]


def test_a_single_damaged_reply_at_the_start_is_no_doubled_id() -> None:
    rig = make_rig()
    rig.chain.servos[3].corrupt_replies = 1
    rig.driver.connect()
    assert rig.driver.findings == ()


@pytest.mark.parametrize("alarming", range(6))
def test_disarming_takes_every_torque_whoever_reports_an_alarm(alarming: int) -> None:
    rig = make_rig()
    rig.driver.connect()
    assert rig.driver.arm_torque(LOW) == []
    rig.chain.servos[alarming].forced_alarms = 0x2D
    rig.chain.servos[(alarming + 1) % 6].corrupt_replies = 2
    assert rig.driver.disarm() == []
    assert not any(s.torque_on for s in rig.chain.servos)


def test_disarming_names_the_servo_that_cannot_confirm_and_reaches_all_others() -> None:
    rig = make_rig(after_silent=AfterSilent.MUTE)
    rig.driver.connect()
    rig.driver.arm_torque(LOW)
    rig.chain.servos[0].silent = True
    (trouble,) = rig.driver.disarm()
    assert str(trouble) == "shoulder_pan (id 1): did not confirm torque off: switch the arm's power off"
    assert [s.torque_on for s in rig.chain.servos] == [True] + [False] * 5


def test_servos_that_do_not_acknowledge_writes_are_disarmed_all_the_same() -> None:
    rig = make_rig()
    rig.driver.connect()
    rig.driver.arm_torque(LOW)
    for servo in rig.chain.servos:
        servo.memory[8] = 0
    assert rig.driver.disarm() == []


def test_an_overload_is_cleared_at_its_joint_only_and_arming_starts_where_the_arm_is() -> None:
    rig = make_rig()
    rig.driver.connect()
    rig.driver.arm_torque(LOW)
    rig.chain.servos[5].trip_overload()
    rig.driver.cycle(None)
    assert rig.driver.clear_overloads() == []
    assert [s.torque_on for s in rig.chain.servos] == [True] * 5 + [False]
    assert rig.driver.arm_torque(LOW) == []
    assert rig.chain.servos[5].goal_ticks() == rig.chain.servos[5].present_ticks
