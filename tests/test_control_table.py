"""The servo's registers and the arm as data."""

from __future__ import annotations

import pytest

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.control_table import Access, ControlTable, Register, sts3215

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
    with pytest.raises(ValueError, match="known: so101_follower"):
        load_arm("so102")
