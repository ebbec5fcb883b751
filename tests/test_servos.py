"""The virtual servos, byte by byte and nanosecond by nanosecond."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.protocol import Alarm, Frame
from steadyhand_runtime.sim.servos import PlantState, Reply, StillPlant, VirtualChain

TABLE = sts3215()
T0 = 1_000_000_000


@pytest.fixture
def plant() -> StillPlant:
    return StillPlant()


@pytest.fixture
def chain(plant: StillPlant) -> VirtualChain:
    return VirtualChain(plant)


def ask(chain: VirtualChain, data: bytes, now_ns: int = T0) -> list[Frame]:
    return protocol.split_frames(b"".join(r.data for r in chain.feed(data, now_ns)))[0]


def value(chain: VirtualChain, servo_id: int, name: str, now_ns: int = T0) -> int:
    register = TABLE[name]
    (answer,) = ask(chain, protocol.read(servo_id, register.address, register.size), now_ns)
    return protocol.decode_register(register, answer.params)


def put(chain: VirtualChain, servo_id: int, name: str, number: int) -> list[Frame]:
    register = TABLE[name]
    return ask(chain, protocol.write(servo_id, register.address, protocol.encode_register(register, number)))


def test_a_ping_is_answered_by_the_servo_that_was_asked(chain: VirtualChain) -> None:
    assert ask(chain, protocol.ping(3)) == [Frame(3, 0, b"")]
    assert ask(chain, protocol.ping(9)) == []
    assert [f.id for f in ask(chain, protocol.ping(protocol.BROADCAST))] == [1, 2, 3, 4, 5, 6]


def test_a_sync_read_is_answered_in_the_listed_order(chain: VirtualChain) -> None:
    assert [f.id for f in ask(chain, protocol.sync_read((4, 1, 6), 56, 6))] == [4, 1, 6]


def test_replies_take_the_wires_time_at_a_megabaud(chain: VirtualChain) -> None:
    request = protocol.sync_read((1, 2, 3, 4, 5, 6), 56, 2)
    replies = chain.feed(request, T0)
    sent_ns = T0 + len(request) * 10_000
    assert [r.ready_ns for r in replies] == [sent_ns + (i + 1) * (50_000 + 8 * 10_000) for i in range(6)]


def test_a_request_waits_for_the_one_before(chain: VirtualChain) -> None:
    (first,) = chain.feed(protocol.ping(1), T0)
    (second,) = chain.feed(protocol.ping(2), T0)
    assert second.ready_ns - first.ready_ns == 6 * 10_000 + 50_000 + 6 * 10_000


@settings(max_examples=30)
@given(st.lists(st.integers(1, 39), max_size=4))
def test_a_request_in_pieces_is_understood_like_a_whole_one(cuts: list[int]) -> None:
    data = protocol.sync_write(42, [(1, b"\x00\x09")]) + protocol.sync_read((1, 2), 56, 6)
    whole, pieces = VirtualChain(StillPlant()), VirtualChain(StillPlant())
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    replies: list[Reply] = []
    for start, stop in itertools.pairwise(edges):
        replies += pieces.feed(data[start:stop], T0)
    assert [r.data for r in replies] == [r.data for r in whole.feed(data, T0)]


@given(st.binary(max_size=120))
def test_noise_never_stops_the_servos(noise: bytes) -> None:
    chain = VirtualChain(StillPlant())
    chain.feed(noise, T0)
    chain.feed(bytes(260), T0)
    assert any(f.id == 1 for f in ask(chain, protocol.ping(1)))


def test_a_goal_write_turns_the_torque_on_by_itself(chain: VirtualChain, plant: StillPlant) -> None:
    assert value(chain, 1, "torque_enable") == 0
    put(chain, 1, "goal_position", 2148)
    assert value(chain, 1, "torque_enable") == 1
    plant.advance(1.0)
    assert value(chain, 1, "present_position") == 2148
    assert value(chain, 2, "torque_enable") == 0


def test_a_wide_write_that_ends_before_the_goal_does_not(chain: VirtualChain) -> None:
    ask(chain, protocol.write(1, 40, b"\x00\x0a"))
    assert value(chain, 1, "torque_enable") == 0
    assert value(chain, 1, "acceleration") == 10


def test_a_goal_is_kept_within_the_servos_limits(chain: VirtualChain, plant: StillPlant) -> None:
    put(chain, 1, "max_position", 2200)
    put(chain, 1, "goal_position", 3000)
    plant.advance(2.0)
    assert value(chain, 1, "present_position") == 2200


def test_the_homing_offset_moves_the_reading_and_not_the_joint(chain: VirtualChain, plant: StillPlant) -> None:
    put(chain, 1, "homing_offset", 100)
    assert value(chain, 1, "present_position") == 1948
    put(chain, 1, "goal_position", 1948)
    plant.advance(1.0)
    assert plant.read().position_rad[0] == pytest.approx(0.0, abs=1e-9)
    put(chain, 1, "homing_offset", -2047)
    assert value(chain, 1, "present_position") == (2048 + 2047) % 4096


def test_torque_enable_128_makes_the_present_position_the_middle(chain: VirtualChain, plant: StillPlant) -> None:
    plant.place([0.5, 0, 0, 0, 0, 0])
    put(chain, 1, "torque_enable", 128)
    assert value(chain, 1, "present_position") == 2048


def test_an_eprom_write_under_lock_works_until_power_off(chain: VirtualChain) -> None:
    put(chain, 1, "position_p", 16)
    assert value(chain, 1, "position_p") == 16
    chain.power_cycle()
    assert value(chain, 1, "position_p") == 32


def test_an_unlocked_eprom_write_survives_power_off(chain: VirtualChain) -> None:
    put(chain, 1, "lock", 0)
    put(chain, 1, "position_p", 16)
    put(chain, 1, "max_torque", 500)
    assert value(chain, 1, "torque_limit") == 1000
    chain.power_cycle()
    assert value(chain, 1, "position_p") == 16
    assert value(chain, 1, "torque_limit") == 500
    assert value(chain, 1, "lock") == 1


def test_power_off_takes_the_torque(chain: VirtualChain, plant: StillPlant) -> None:
    put(chain, 1, "goal_position", 3000)
    chain.power_cycle()
    plant.advance(1.0)
    assert value(chain, 1, "torque_enable") == 0
    assert value(chain, 1, "present_position") == 2048


def test_measured_registers_cannot_be_written(chain: VirtualChain) -> None:
    put_answer = ask(chain, protocol.write(1, 56, b"\x00\x01"))
    assert put_answer == [Frame(1, 0, b"")]
    assert value(chain, 1, "present_position") == 2048


def test_a_registered_write_waits_for_action(chain: VirtualChain) -> None:
    ask(chain, protocol.reg_write(1, 48, b"\x64\x00"))
    assert (value(chain, 1, "torque_limit"), value(chain, 1, "async_flag")) == (1000, 1)
    assert ask(chain, protocol.action()) == []
    assert (value(chain, 1, "torque_limit"), value(chain, 1, "async_flag")) == (100, 0)


def test_reset_restores_defaults_and_keeps_the_id(chain: VirtualChain) -> None:
    put(chain, 4, "homing_offset", 85)
    ask(chain, protocol.reset(4))
    assert value(chain, 4, "homing_offset") == 0
    assert value(chain, 4, "id") == 4


def test_status_level_zero_answers_only_ping_and_read(chain: VirtualChain) -> None:
    put(chain, 1, "status_level", 0)
    assert put(chain, 1, "acceleration", 5) == []
    assert value(chain, 1, "acceleration") == 5
    assert ask(chain, protocol.ping(1)) == [Frame(1, 0, b"")]


def test_an_overload_latches_until_the_torque_is_off_and_refuses_nothing(chain: VirtualChain) -> None:
    put(chain, 6, "goal_position", 2100)
    chain.servos[5].trip_overload()
    assert put(chain, 6, "torque_limit", 300) == [Frame(6, Alarm.OVERLOAD, b"")]
    assert value(chain, 6, "torque_limit") == 300
    assert value(chain, 6, "status") == Alarm.OVERLOAD
    put(chain, 6, "torque_enable", 0)
    assert value(chain, 6, "status") == 0


class StalledPlant(StillPlant):
    def read(self) -> PlantState:
        state = super().read()
        return state._replace(effort=np.array([0, 0, 0, 0, 0, -0.9]))


def test_two_seconds_of_stall_trip_the_overload() -> None:
    chain = VirtualChain(StalledPlant())
    put(chain, 6, "goal_position", 2100)
    assert value(chain, 6, "present_load", T0) == -900
    assert value(chain, 6, "status", T0 + 1_900_000_000) == 0
    assert value(chain, 6, "status", T0 + 2_100_000_000) == Alarm.OVERLOAD
    assert chain.servos[5].torque_share() == pytest.approx(0.2)


def test_a_supply_outside_the_limits_raises_the_voltage_alarm(chain: VirtualChain) -> None:
    chain.servos[0].voltage_v = 12.0
    assert value(chain, 1, "status") == Alarm.VOLTAGE
    assert value(chain, 1, "present_voltage") == 120
    chain.servos[0].voltage_v = 7.4
    assert value(chain, 1, "status") == 0


def test_a_silent_servo_neither_answers_nor_obeys(chain: VirtualChain) -> None:
    chain.servos[1].silent = True
    assert [f.id for f in ask(chain, protocol.sync_read((1, 2, 3), 56, 6))] == [1, 3]
    ask(chain, protocol.sync_write(42, [(2, b"\x00\x09")]))
    chain.servos[1].silent = False
    assert value(chain, 2, "torque_enable") == 0


def test_a_corrupt_reply_has_a_wrong_checksum_once(chain: VirtualChain) -> None:
    chain.servos[0].corrupt_replies = 1
    assert ask(chain, protocol.ping(1)) == []
    assert ask(chain, protocol.ping(1)) == [Frame(1, 0, b"")]
