"""Declared registers against servos: what differs, what is written, what lasts, and ids."""

from __future__ import annotations

import dataclasses
import signal

import pytest
from setup_rig import SetupRig, factory_registers, setup_rig

from steadyhand_firmware.arm import Arm, load_arm
from steadyhand_firmware.control_table import Access, sts3215
from steadyhand_firmware.declaration import VoltageClass
from steadyhand_firmware.lerobot import MotorCalibration
from steadyhand_runtime.bus import protocol, provision
from steadyhand_runtime.bus.protocol import Instruction
from steadyhand_runtime.bus.transport import BusError

TABLE = sts3215()


def differing(rig: SetupRig, arm: Arm) -> list[provision.Difference]:
    return [d for s in provision.take_snapshots(rig.client, arm.joints) for d in provision.differences(s)]


def apply(rig: SetupRig, arm: Arm) -> None:
    for snapshot in provision.take_snapshots(rig.client, arm.joints):
        values = [(d.declared.register, d.wanted) for d in provision.differences(snapshot)]
        provision.write_registers(rig.client, snapshot.joint.id, values)


def written(rig: SetupRig) -> list[tuple[int, int, bytes]]:
    """(id, address, data) of every write that was sent."""
    frames = protocol.split_frames(b"".join(rig.heard))[0]
    assert not any(f.code in (Instruction.SYNC_WRITE, Instruction.REG_WRITE) for f in frames)
    return [(f.id, f.params[0], f.params[1:]) for f in frames if f.code == Instruction.WRITE]


def test_looking_writes_nothing() -> None:
    rig = setup_rig()
    factory_registers(rig.chain)
    assert differing(rig, load_arm())
    assert written(rig) == []


def test_the_difference_names_joint_register_and_both_values() -> None:
    rig = setup_rig()
    for servo in rig.chain.servos:
        servo.eprom.burn("position_p", 16)
    rig.chain.servos[2].eprom.burn("position_p", 99)
    lasting = [str(d) for d in differing(rig, load_arm()) if d.declared.lasting]
    assert lasting == [
        "elbow_flex position_p: 99 -> 16",
        "gripper max_torque: 1000 -> 500",
        "gripper protection_current: 500 -> 250",
        "gripper overload_torque: 80 -> 25",
    ]


def test_only_the_declared_bits_of_a_register_are_touched() -> None:
    rig = setup_rig()
    rig.chain.servos[0].eprom.burn("phase", 0b1101_1100)
    (phase,) = [d for d in differing(rig, load_arm()) if d.declared.register.name == "phase"]
    assert (phase.present, phase.wanted) == (0b1101_1100, 0b1100_1100)


def test_what_was_written_outlasts_a_power_off_and_nothing_differs_afterwards() -> None:
    rig, arm = setup_rig(), load_arm()
    factory_registers(rig.chain)
    apply(rig, arm)
    assert differing(rig, arm) == []
    rig.power_cycle()
    assert [d for d in differing(rig, arm) if d.declared.lasting] == []
    assert {d.declared.register.name for d in differing(rig, arm)} == {"acceleration"}
    assert all(s.memory[55] == 1 for s in rig.chain.servos)


def test_only_what_differs_is_written_and_the_lock_stays_shut_without_need() -> None:
    rig, arm = setup_rig(), load_arm()
    apply(rig, arm)
    rig.power_cycle()
    rig.chain.servos[3].eprom.burn("position_d", 7)
    rig.heard.clear()
    apply(rig, arm)
    lock, eprom = TABLE["lock"].address, {r.address for r in TABLE if r.access is Access.EPROM}
    assert [(i, a, d) for i, a, d in written(rig) if a in eprom | {lock}] == [
        (4, lock, b"\0"),
        (4, TABLE["position_d"].address, b"\x20"),
        (4, lock, b"\1"),
    ]


def test_a_second_apply_writes_nothing_at_all() -> None:
    rig, arm = setup_rig(), load_arm()
    apply(rig, arm)
    rig.heard.clear()
    apply(rig, arm)
    assert written(rig) == []


def test_a_register_that_does_not_keep_its_value_is_told() -> None:
    rig = setup_rig()
    with pytest.raises(BusError, match="model_number holds 777 after 5 was written"):
        provision.write_registers(rig.client, 1, [(TABLE["model_number"], 5)])
    assert rig.chain.servos[0].memory[55] in (0, 1)


def test_the_lock_is_shut_again_when_a_write_fails() -> None:
    rig = setup_rig()
    with pytest.raises(ValueError, match="outside"):
        provision.write_registers(rig.client, 2, [(TABLE["position_p"], 16), (TABLE["position_i"], 999)])
    assert rig.chain.servos[1].memory[55] == 1


def test_a_servo_that_falls_silent_in_the_middle_is_named() -> None:
    rig = setup_rig()
    servo = rig.chain.servos[3]
    feed = rig.chain.feed

    def cut_after_unlocking(data: bytes, now_ns: int) -> list:
        replies = feed(data, now_ns)
        servo.silent = servo.silent or servo.memory[55] == 0
        return replies

    rig.chain.feed = cut_after_unlocking  # type: ignore[method-assign, assignment]
    with pytest.raises(BusError, match="no answer from servo 4: check the arm's power and cables"):
        provision.write_registers(rig.client, 4, [(TABLE["position_p"], 16)])
    assert servo.memory[21] == 32


@pytest.mark.parametrize("after_requests", range(8))
def test_the_lock_is_shut_again_wherever_an_interrupt_comes(after_requests: int) -> None:
    rig = setup_rig()
    feed = rig.chain.feed
    sent = 0

    def interrupt(data: bytes, now_ns: int) -> list:
        nonlocal sent
        replies = feed(data, now_ns)
        sent += 1
        if sent == after_requests + 1:
            raise KeyboardInterrupt
        return replies

    rig.chain.feed = interrupt  # type: ignore[method-assign, assignment]
    values = [(TABLE["position_p"], 16), (TABLE["position_d"], 30)]
    with pytest.raises(KeyboardInterrupt):
        provision.write_registers(rig.client, 4, values)
    assert rig.chain.servos[3].memory[55] == 1


def test_an_interrupt_while_the_memory_settles_is_put_off_until_the_servo_is_done() -> None:
    rig = setup_rig()
    sleep = rig.clock.sleep_until_ns
    settled = 0

    def interrupt(deadline_ns: int) -> None:
        nonlocal settled
        if deadline_ns - rig.clock.now_ns() >= 0.2e9:
            settled += 1
            signal.raise_signal(signal.SIGINT)
        sleep(deadline_ns)

    rig.clock.sleep_until_ns = interrupt  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        provision.write_registers(rig.client, 4, [(TABLE["position_p"], 16)])
    assert settled == 2
    assert signal.getsignal(signal.SIGINT) is before
    rig.power_cycle()
    assert (rig.chain.servos[3].memory[21], rig.chain.servos[3].memory[55]) == (16, 1)


def test_a_servo_at_another_rate_is_brought_to_the_declared_one() -> None:
    rig, arm = setup_rig(mixed_bauds=True), load_arm()
    rig.chain.servos[2].eprom.burn("baud_rate", 1)
    rig.client.use_baud(500_000)
    snapshot = provision.take_snapshots(rig.client, [arm.joints[2]])[0]
    values = [(d.declared.register, d.wanted) for d in provision.differences(snapshot)]
    provision.write_registers(rig.client, 3, values)
    assert rig.client.baud == 500_000
    rig.client.use_baud(1_000_000)
    rig.power_cycle()
    assert rig.client.ping(3) is not None


def test_a_7_4_volt_servo_on_a_12_volt_supply_is_refused_before_anything_else() -> None:
    rig = setup_rig()
    for servo in rig.chain.servos:
        servo.voltage_v = 12.1
    for voltage in VoltageClass:
        with pytest.raises(BusError, match=r"a 7\.4 V servo \(at most 8\.0 V\) stands on a supply of 12\.1 V: switch"):
            differing(rig, load_arm(voltage=voltage))


def test_a_servo_of_the_other_variant_is_refused_and_its_limit_is_never_rewritten() -> None:
    rig = setup_rig()
    rig.chain.servos[4].eprom.burn("max_voltage", 140)
    arm = load_arm()
    snapshots = provision.take_snapshots(rig.client, arm.joints)
    with pytest.raises(BusError, match=r"wrist_roll \(id 5\) is a 12 V servo, .* give --voltage 12"):
        provision.check_voltage(arm, snapshots)


def test_a_weak_supply_is_refused_with_what_to_check() -> None:
    rig = setup_rig()
    rig.chain.servos[0].voltage_v = 3.2
    with pytest.raises(BusError, match=r"the supply gives 3\.2 V, the servo needs 4\.0 V at least"):
        differing(rig, load_arm())


def test_silence_another_model_and_a_shared_id_are_told_apart() -> None:
    rig = setup_rig(ids=(1, 3, 3, 4, 5, 6))
    rig.chain.place(1, 1000)
    rig.chain.servos[0].eprom.burn("model_number", 2825)
    arm = load_arm()
    for joint, message in zip(arm.joints, ("is model 2825", "does not answer at 1000000 baud", "share the id")):
        with pytest.raises(BusError, match=message):
            provision.check_servo(rig.client, joint)


def test_the_calibration_is_compared_too_when_it_is_given() -> None:
    rig, joint = setup_rig(), load_arm().joints[0]
    motor = MotorCalibration(1, 0, -321, 700, 3300)
    snapshot = provision.take_snapshot(rig.client, dataclasses.replace(joint, registers=()))
    found = provision.differences(snapshot, provision.calibration_declared(motor))
    names = [(d.declared.register.name, d.present, d.wanted) for d in found]
    assert names == [("min_position", 0, 700), ("max_position", 4095, 3300), ("homing_offset", 0, -321)]


def test_an_id_is_changed_for_good() -> None:
    rig = setup_rig(ids=(1,))
    provision.change_id(rig.client, 1, 6)
    rig.power_cycle()
    assert rig.client.ping(6) is not None
    assert rig.client.ping(1) is None
    assert rig.chain.servos[0].memory[55] == 1


def test_no_id_is_given_on_a_wrong_supply() -> None:
    rig = setup_rig(ids=(1,))
    rig.chain.servos[0].voltage_v = 12.0
    with pytest.raises(BusError, match=r"servo 1: a 7\.4 V servo"):
        provision.change_id(rig.client, 1, 6)
    assert written(rig) == []


@pytest.mark.parametrize(
    ("ids", "old", "message"),
    [((1, 2), 1, "id 2 is taken"), ((1, 1), 1, "several servos answer at id 1"), ((5,), 1, "no servo answers at id 1")],
)
def test_an_id_is_not_changed_where_it_would_confuse(ids: tuple[int, ...], old: int, message: str) -> None:
    rig = setup_rig(ids=ids)
    for index in range(len(ids)):
        rig.chain.place(index, 1000 + 700 * index)
    with pytest.raises(BusError, match=message):
        provision.change_id(rig.client, old, 2)
    assert tuple(s.id for s in rig.chain.servos) == ids
    assert written(rig) == []
