"""The servo's registers and the arm as data."""

from __future__ import annotations

import pytest

from steadyhand_firmware.arm import arm_names, load_arm
from steadyhand_firmware.control_table import Access, ControlTable, Register, sts3215
from steadyhand_firmware.declaration import VoltageClass, read_declarations

# Feetech memory table v220328.
ADDRESSES = {
    "model_number": (3, 2),
    "id": (5, 1),
    "baud_rate": (6, 1),
    "min_position": (9, 2),
    "max_position": (11, 2),
    "max_torque": (16, 2),
    "phase": (18, 1),
    "position_p": (21, 1),
    "position_d": (22, 1),
    "position_i": (23, 1),
    "protection_current": (28, 2),
    "homing_offset": (31, 2),
    "operating_mode": (33, 1),
    "torque_enable": (40, 1),
    "acceleration": (41, 1),
    "goal_position": (42, 2),
    "goal_velocity": (46, 2),
    "torque_limit": (48, 2),
    "lock": (55, 1),
    "present_position": (56, 2),
    "present_velocity": (58, 2),
    "present_load": (60, 2),
    "present_voltage": (62, 1),
    "present_temperature": (63, 1),
    "status": (65, 1),
    "present_current": (69, 2),
    "max_acceleration": (85, 1),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_and_sizes_are_the_memory_tables(name: str) -> None:
    register = sts3215()[name]
    assert (register.address, register.size) == ADDRESSES[name]


def test_signs_are_where_the_table_puts_them() -> None:
    table = sts3215()
    signs = {r.name: r.sign_bit for r in table if r.sign_bit is not None}
    assert signs["homing_offset"] == 11
    assert signs["present_load"] == signs["goal_time"] == 10
    assert {signs[n] for n in ("goal_position", "present_position", "present_velocity", "present_current")} == {15}


def test_defaults_lie_within_their_ranges() -> None:
    for register in sts3215():
        assert register.low is None or register.low <= register.default
        assert register.high is None or register.default <= register.high


def test_eprom_is_everything_below_forty_that_can_be_written() -> None:
    for register in sts3215():
        if register.access is not Access.READ:
            assert (register.access is Access.EPROM) == (register.address < 40)


def test_overlapping_registers_are_refused() -> None:
    one = Register("one", 10, 2, Access.READ, 0)
    two = Register("two", 11, 1, Access.READ, 0)
    with pytest.raises(ValueError, match="one and two overlap"):
        ControlTable("X", 1, 4096, (one, two))
    with pytest.raises(ValueError, match="twice"):
        ControlTable("X", 1, 4096, (one, Register("one", 20, 1, Access.READ, 0)))


def test_the_follower_has_six_joints_in_bus_order() -> None:
    arm = load_arm()
    assert arm.ids == (1, 2, 3, 4, 5, 6)
    assert arm.names == ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    assert (arm.low_rad < arm.high_rad).all()
    assert arm.high_rad[4] == 2.84121
    assert arm.torque_limit[5] == 0.5


def test_an_unknown_arm_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: so101_follower, so101_leader"):
        load_arm("so102")


def declared(arm: str, joint: str, voltage: VoltageClass | None = None) -> dict[str, int]:
    (found,) = [j for j in load_arm(arm, voltage).joints if j.name == joint]
    return {d.register.name: d.value for d in found.registers}


@pytest.mark.parametrize("name", arm_names())
def test_every_joint_declares_the_registers_that_the_arm_depends_on(name: str) -> None:
    for joint in load_arm(name).joints:
        values = declared(name, joint.name)
        assert values["id"] == joint.id
        assert (values["position_p"], values["position_i"], values["position_d"]) == (16, 0, 32)
        assert (values["return_delay"], values["operating_mode"], values["baud_rate"]) == (0, 0, 0)
        assert (values["acceleration"], values["max_acceleration"]) == (254, 254)
        assert values["max_torque"] == 1000 * joint.torque_limit
        assert [d.register.address for d in joint.registers] == sorted(d.register.address for d in joint.registers)
        assert all(d.why for d in joint.registers)


def test_the_followers_gripper_is_spared() -> None:
    values = declared("so101_follower", "gripper")
    assert (values["max_torque"], values["protection_current"], values["overload_torque"]) == (500, 250, 25)


def test_the_leader_has_its_own_gears_and_never_gets_torque() -> None:
    leader = load_arm("so101_leader")
    assert [j.gear for j in leader.joints] == [191, 345, 191, 147, 147, 147]
    assert not leader.energised
    assert not leader.torque_limit.any()
    assert all(j.gear == 345 for j in load_arm().joints)


def test_the_voltage_class_sets_the_servos_upper_limit() -> None:
    assert declared("so101_follower", "gripper")["max_voltage"] == 80
    assert declared("so101_follower", "gripper", VoltageClass.V12)["max_voltage"] == 140
    assert [VoltageClass.of(v) for v in (80, 85, 120, 140)] == [VoltageClass.V7_4] * 2 + [VoltageClass.V12] * 2


def test_a_bitwise_declaration_leaves_the_other_bits_alone() -> None:
    (phase,) = [d for d in load_arm().joints[0].registers if d.register.name == "phase"]
    assert [phase.wanted(v) for v in (0x0C, 0x1C, 0xFF, 0x00)] == [0x0C, 0x0C, 0xEF, 0x00]
    both = read_declarations({"phase": {"set": 0x01, "clear": 0x80, "why": "x"}})["phase"]
    assert both.wanted(0x90) == 0x11


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"positionp": {"value": 1, "why": "x"}}, "no register 'positionp'"),
        ({"position_p": {"value": 255, "why": "x"}}, r"position_p: 255 is outside 0\.\.254"),
        ({"position_p": {"value": 1}}, "position_p: needs a `why`"),
        ({"position_p": {"vlaue": 1, "why": "x"}}, "position_p: needs a `why` and one of value"),
        ({"phase": {"why": "x"}}, "must name different bits"),
        ({"phase": {"set": 1, "clear": 1, "why": "x"}}, "must name different bits"),
        ({"phase": {"set": 0x100, "why": "x"}}, "must name different bits of 1 bytes"),
        ({"moving": {"value": 1, "why": "x"}}, "moving: cannot be written"),
    ],
)
def test_an_impossible_declaration_is_refused(entry: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_declarations(entry)
