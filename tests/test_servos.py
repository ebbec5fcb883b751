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
from steadyhand_runtime.sim.servos import AfterSilent, PlantState, Reply, StillPlant, VirtualChain

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


def test_a_broadcast_ping_is_answered_by_all_at_once_and_only_a_lone_servo_is_understood(chain: VirtualChain) -> None:
    assert ask(chain, protocol.ping(protocol.BROADCAST)) == []
    assert len(chain.feed(protocol.ping(protocol.BROADCAST), T0)) == 1
    for servo in chain.servos[1:]:
        servo.silent = True
    assert ask(chain, protocol.ping(protocol.BROADCAST)) == [Frame(1, 0, b"")]


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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 39), max_size=4))
def test_a_request_in_pieces_is_understood_like_a_whole_one(cuts: list[int]) -> None:
    data = protocol.sync_write(42, [(1, b"\x00\x09")]) + protocol.sync_read((1, 2), 56, 6)
    whole, pieces = VirtualChain(StillPlant()), VirtualChain(StillPlant())
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    replies: list[Reply] = []
    for start, stop in itertools.pairwise(edges):
        replies += pieces.feed(data[start:stop], T0)
    assert [r.data for r in replies] == [r.data for r in whole.feed(data, T0)]


@settings(deadline=None)
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


def unlock(chain: VirtualChain, servo_id: int) -> None:
    put(chain, servo_id, "lock", 0)


def test_after_locking_what_was_just_written_reads_zero_for_a_while(chain: VirtualChain) -> None:
    unlock(chain, 1)
    put(chain, 1, "position_p", 16)
    assert value(chain, 1, "position_p") == 16
    put(chain, 1, "lock", 1)
    assert value(chain, 1, "position_p", T0 + 200_000_000) == 0
    assert value(chain, 1, "position_d", T0 + 200_000_000) == 32
    assert value(chain, 1, "position_p", T0 + 300_000_000) == 16


def test_a_value_beyond_its_range_is_limited(chain: VirtualChain) -> None:
    put_raw = protocol.write(1, TABLE["max_torque"].address, (2000).to_bytes(2, "little"))
    assert ask(chain, put_raw) == [Frame(1, 0, b"")]
    assert value(chain, 1, "max_torque") == 1000


def test_reading_past_the_end_gives_what_there_is(chain: VirtualChain) -> None:
    (answer,) = ask(chain, protocol.read(1, 120, 200))
    assert len(answer.params) == 8


def test_an_instruction_for_all_is_obeyed_by_all_and_answered_by_none(chain: VirtualChain) -> None:
    assert ask(chain, protocol.write(protocol.BROADCAST, 41, b"\x07")) == []
    assert [s.memory[41] for s in chain.servos] == [7] * 6
    assert ask(chain, protocol.reset(protocol.BROADCAST)) == []
    assert [s.id for s in chain.servos] == [1, 2, 3, 4, 5, 6]


def test_a_new_id_holds_from_the_next_instruction(chain: VirtualChain) -> None:
    assert put(chain, 1, "id", 9) == [Frame(9, 0, b"")]
    assert ask(chain, protocol.ping(1)) == []
    assert ask(chain, protocol.ping(9)) == [Frame(9, 0, b"")]
    assert [f.id for f in ask(chain, protocol.sync_read((9, 2), 56, 2))] == [9, 2]


def test_torque_on_snaps_to_a_stale_goal(chain: VirtualChain, plant: StillPlant) -> None:
    put(chain, 1, "goal_position", 2148)
    plant.advance(2.0)
    put(chain, 1, "torque_enable", 0)
    plant.place([0.5, 0, 0, 0, 0, 0])
    plant.advance(1.0)
    assert plant.read().position_rad[0] == 0.5
    put(chain, 1, "torque_enable", 1)
    plant.advance(2.0)
    assert value(chain, 1, "present_position") == 2148


def test_a_goal_beyond_the_seam_is_reached_the_short_way_of_the_servos_own_turn(
    chain: VirtualChain, plant: StillPlant
) -> None:
    put(chain, 1, "homing_offset", 1000)
    plant.place([-1500 * 2 * np.pi / 4096, 0, 0, 0, 0, 0])  # raw 548, which the servo shows as 3644
    assert value(chain, 1, "present_position") == 3644
    put(chain, 1, "goal_position", 3644)
    plant.advance(2.0)
    assert plant.read().position_rad[0] == pytest.approx(-1500 * 2 * np.pi / 4096)


def test_with_full_angle_feedback_the_position_runs_out_of_the_turn(chain: VirtualChain, plant: StillPlant) -> None:
    put(chain, 1, "homing_offset", 100)
    plant.place([-2000 * 2 * np.pi / 4096, 0, 0, 0, 0, 0])
    assert value(chain, 1, "present_position") == 4096 - 52
    put(chain, 1, "phase", 12 | 16)
    assert value(chain, 1, "present_position") == -52
    put(chain, 1, "phase", 12)
    assert value(chain, 1, "present_position") == 4096 - 52


def test_both_limits_zero_is_multi_turn(chain: VirtualChain, plant: StillPlant) -> None:
    for name in ("min_position", "max_position"):
        put(chain, 1, name, 0)
    for _ in range(2):
        put(chain, 1, "goal_position", 6000)
        plant.advance(3.0)
    put(chain, 1, "phase", 16)
    assert value(chain, 1, "present_position") == 6000
    chain.power_cycle()
    put(chain, 1, "phase", 16)
    assert value(chain, 1, "present_position") == 6000 - 4096


def test_other_modes_are_kept_and_hold_the_joint(chain: VirtualChain, plant: StillPlant) -> None:
    put(chain, 1, "operating_mode", 1)
    put(chain, 1, "goal_position", 3000)
    plant.advance(1.0)
    assert value(chain, 1, "operating_mode") == 1
    assert value(chain, 1, "present_position") == 2048


def test_heat_beyond_the_limit_takes_the_torque_while_it_lasts(chain: VirtualChain) -> None:
    put(chain, 1, "goal_position", 2100)
    chain.servos[0].temperature_c = 71
    assert value(chain, 1, "status") == Alarm.OVER_TEMPERATURE
    assert chain.servos[0].torque_share() == 0.0
    put(chain, 1, "unload_condition", 0)
    assert chain.servos[0].torque_share() == 1.0
    put(chain, 1, "unload_condition", 44)
    chain.servos[0].temperature_c = 70
    assert value(chain, 1, "status") == 0
    assert chain.servos[0].torque_share() == 1.0


def test_a_joint_that_lost_its_torque_stops_being_driven(chain: VirtualChain, plant: StillPlant) -> None:
    put(chain, 1, "goal_position", 3000)
    chain.servos[0].temperature_c = 90
    value(chain, 1, "status")
    before = plant.read().position_rad[0]
    plant.advance(1.0)
    assert plant.read().position_rad[0] == before


def test_two_seconds_of_over_current_take_the_torque_until_it_is_switched_off() -> None:
    chain = VirtualChain(StalledPlant())
    put(chain, 6, "overload_torque", 100)
    put(chain, 6, "protection_current", 250)
    put(chain, 6, "goal_position", 2100)
    assert value(chain, 6, "present_current", T0) == -373
    assert value(chain, 6, "status", T0 + 1_900_000_000) == 0
    assert value(chain, 6, "status", T0 + 2_100_000_000) == Alarm.OVER_CURRENT
    assert chain.servos[5].torque_share() == 0.0
    put(chain, 6, "torque_enable", 0)
    assert value(chain, 6, "status", T0 + 2_200_000_000) == 0


def test_the_load_saturates_at_the_torque_limit() -> None:
    chain = VirtualChain(StalledPlant())
    put(chain, 6, "torque_limit", 300)
    assert value(chain, 6, "present_load") == -300


def test_load_warms_a_servo_up_and_rest_cools_it_down() -> None:
    plant = StalledPlant()
    chain = VirtualChain(plant)
    put(chain, 6, "torque_limit", 700)
    readings = [value(chain, 6, "present_temperature", T0 + s * 1_000_000_000) for s in (0, 60, 600)]
    assert readings == sorted(readings)
    assert readings[0] == 30 and 45 <= readings[2] <= 50
    put(chain, 6, "torque_limit", 0)
    assert value(chain, 6, "present_temperature", T0 + 2_000_000_000_000) == 30


def test_forced_alarms_ride_on_every_reply_and_change_nothing_else(chain: VirtualChain) -> None:
    chain.servos[4].forced_alarms = int(Alarm.OVERLOAD | Alarm.ENCODER)
    assert ask(chain, protocol.ping(5)) == [Frame(5, 34, b"")]
    assert value(chain, 5, "status") == 34
    assert chain.servos[4].torque_share() == 1.0
    chain.servos[4].forced_alarms = 0
    assert value(chain, 5, "status") == 0


def test_only_as_many_replies_are_late_as_were_asked_for(chain: VirtualChain) -> None:
    servo = chain.servos[1]
    servo.late_ns, servo.late_replies = 70_000_000, 1
    request = protocol.sync_read((1, 2, 3), 56, 2)
    late = chain.feed(request, T0)
    assert [r.data[2] for r in late] == [1, 3, 2]
    assert late[2].ready_ns - late[1].ready_ns > 69_000_000
    assert [r.data[2] for r in chain.feed(request, T0 + 1_000_000_000)] == [1, 2, 3]
    servo.late_ns = 70_000_000
    for n in range(2, 6):
        assert [r.data[2] for r in chain.feed(request, T0 + n * 1_000_000_000)] == [1, 3, 2]


def test_no_replies_are_late_when_none_were_asked_for(chain: VirtualChain) -> None:
    servo = chain.servos[1]
    servo.late_ns, servo.late_replies = 70_000_000, 0
    assert [r.data[2] for r in chain.feed(protocol.sync_read((1, 2, 3), 56, 2), T0)] == [1, 2, 3]


def test_later_servos_answer_after_a_silent_one_or_stay_mute(chain: VirtualChain) -> None:
    chain.servos[2].silent = True
    request = protocol.sync_read((1, 2, 3, 4, 5, 6), 56, 2)
    assert [f.id for f in ask(chain, request)] == [1, 2, 4, 5, 6]
    chain.after_silent = AfterSilent.MUTE
    assert [f.id for f in ask(chain, request)] == [1, 2]
    assert [f.id for f in ask(chain, protocol.sync_read((6, 5, 3, 1), 56, 2))] == [6, 5]


def test_servos_of_the_same_id_garble_each_other_often_but_not_always() -> None:
    chain = VirtualChain(StillPlant(), ids=(1, 2, 2, 4, 5, 6))
    sound = sum(ask(chain, protocol.ping(2)) == [Frame(2, 0, b"")] for _ in range(500))
    assert 250 <= sound <= 350
    chain.servos[2].temperature_c = 90
    assert value(chain, 4, "present_temperature") == 30
    assert ask(chain, protocol.sync_read((4, 5), 56, 2))[0].id == 4


def test_both_servos_of_an_id_obey() -> None:
    chain = VirtualChain(StillPlant(), ids=(1, 2, 2))
    ask(chain, protocol.sync_write(41, [(2, b"\x09")]))
    assert [s.memory[41] for s in chain.servos] == [0, 9, 9]


def test_a_servo_hears_only_its_own_speed(chain: VirtualChain) -> None:
    chain.listen_at(500_000)
    assert ask(chain, protocol.ping(1)) == []
    chain.listen_at(1_000_000)
    assert ask(chain, protocol.write(1, TABLE["baud_rate"].address, b"\x01")) == [Frame(1, 0, b"")]
    assert ask(chain, protocol.ping(1)) == []
    chain.listen_at(500_000)
    assert ask(chain, protocol.ping(1)) == [Frame(1, 0, b"")]
    assert ask(chain, protocol.ping(2)) == []


def test_what_was_said_slowly_delays_nothing_that_is_said_at_another_speed(chain: VirtualChain) -> None:
    chain.listen_at(50)
    chain.feed(bytes(4000), T0)
    chain.listen_at(1_000_000)
    (reply,) = chain.feed(protocol.ping(1), T0)
    assert reply.ready_ns - T0 == 12 * 10_000 + 50_000


def test_every_speed_of_the_table_works_and_takes_its_time() -> None:
    for baud in (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400):
        chain = VirtualChain(StillPlant(), baud=baud, reply_gap_ns=0)
        chain.listen_at(baud)
        (reply,) = chain.feed(protocol.ping(3), T0)
        assert reply.ready_ns - T0 == 12 * (10 * 1_000_000_000 // baud)
        chain.power_cycle()
        assert chain.servos[0].baud == baud


def test_a_speed_that_no_servo_has_is_refused() -> None:
    with pytest.raises(ValueError, match="the servos know 1000000, 500000"):
        VirtualChain(StillPlant(), baud=921_600)


def test_a_recorded_middle_survives_power_off_only_when_unlocked(chain: VirtualChain, plant: StillPlant) -> None:
    plant.place([0.5] * 6)
    unlock(chain, 1)
    for servo_id in (1, 2):
        put(chain, servo_id, "torque_enable", 128)
    assert value(chain, 2, "present_position") == 2048
    chain.power_cycle()
    assert value(chain, 1, "present_position") == 2048
    assert value(chain, 2, "present_position") == 2048 + 326
