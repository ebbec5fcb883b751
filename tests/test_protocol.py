"""Bytes of the servo bus: the manual's examples, damaged streams, sign-magnitude, alarms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_firmware.control_table import Register, sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.protocol import Frame, Instruction

# Feetech protocol manual, the examples of chapters 1.3.1 to 1.3.7.
INSTRUCTIONS = [
    ("FFFF010201FB", protocol.ping(1)),
    ("FFFF0104023802BE", protocol.read(1, 0x38, 2)),
    ("FFFF0109032A00080000E803D5", protocol.write(1, 0x2A, bytes.fromhex("00080000E803"))),
    ("FFFFFE0205FA", protocol.action()),
    ("FFFFFE06823808010236", protocol.sync_read((1, 2), 0x38, 8)),
    (
        "FFFFFE20832A0601000800 00E80302000800 00E80303000800 00E80304000800 00E80358",
        protocol.sync_write(0x2A, [(i, bytes.fromhex("00080000E803")) for i in (1, 2, 3, 4)]),
    ),
]
SYNC_REPLY = bytes.fromhex("FFFF010A00000800000000791E55 FFFF020A00FF0700000000772353")

frames = st.builds(Frame, st.integers(0, 253), st.integers(0, 255), st.binary(max_size=20))


@pytest.mark.parametrize(("manual", "built"), INSTRUCTIONS)
def test_instructions_match_the_manual(manual: str, built: bytes) -> None:
    assert built == bytes.fromhex(manual)


def test_status_packets_match_the_manual() -> None:
    assert protocol.status(1, 0) == bytes.fromhex("FFFF010200FC")
    found, rest = protocol.split_frames(bytes.fromhex("FFFF0104001805DD"))
    assert rest == b"" and found == [Frame(1, 0, b"\x18\x05")]
    assert protocol.decode_register(sts3215()["present_position"], found[0].params) == 1304


def test_a_sync_read_answer_of_the_manual_holds_both_servos() -> None:
    found, rest = protocol.split_frames(SYNC_REPLY)
    assert rest == b"" and [(f.id, f.code, len(f.params)) for f in found] == [(1, 0, 8), (2, 0, 8)]
    position = sts3215()["present_position"]
    assert [protocol.decode_register(position, f.params[:2]) for f in found] == [2048, 2047]


@given(st.integers(0, 253), st.integers(0, 70), st.binary(min_size=1, max_size=20))
def test_every_instruction_is_a_sound_packet_with_its_code(servo_id: int, address: int, data: bytes) -> None:
    built = {
        Instruction.PING: protocol.ping(servo_id),
        Instruction.READ: protocol.read(servo_id, address, len(data)),
        Instruction.WRITE: protocol.write(servo_id, address, data),
        Instruction.REG_WRITE: protocol.reg_write(servo_id, address, data),
        Instruction.ACTION: protocol.action(servo_id),
        Instruction.RESET: protocol.reset(servo_id),
        Instruction.SYNC_READ: protocol.sync_read((servo_id,), address, len(data)),
        Instruction.SYNC_WRITE: protocol.sync_write(address, [(servo_id, data)]),
    }
    assert set(built) == set(Instruction)
    for code, packet in built.items():
        ((frame,), rest) = protocol.split_frames(packet)
        assert rest == b"" and frame.code == code
        assert frame.id == (protocol.BROADCAST if code >= Instruction.SYNC_READ else servo_id)


@given(st.lists(frames, min_size=1, max_size=4), st.data())
def test_doubled_and_interleaved_packets_are_each_found(packets: list[Frame], data: st.DataObject) -> None:
    order = data.draw(st.permutations(packets + packets))
    found, rest = protocol.split_frames(b"".join(protocol.packet(*f) for f in order))
    assert found == order and rest == b""


@given(st.lists(frames, min_size=2, max_size=5), st.data())
def test_one_damaged_packet_in_a_stream_costs_no_other_whole_one_its_bytes(
    packets: list[Frame], data: st.DataObject
) -> None:
    hurt = data.draw(st.integers(0, len(packets) - 1))
    pieces = [bytearray(protocol.packet(*f)) for f in packets]
    pieces[hurt][-1] ^= data.draw(st.integers(1, 255))
    found, _ = protocol.split_frames(b"".join(pieces) + protocol.packet(*packets[0]))
    assert found[-1] == packets[0]
    assert found[:hurt] == packets[:hurt]


@given(st.lists(frames, max_size=6), st.data())
def test_a_stream_split_anywhere_gives_the_same_frames(packets: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(protocol.packet(*f) for f in packets)
    cut = data.draw(st.integers(0, len(stream)))
    first, rest = protocol.split_frames(stream[:cut])
    second, rest = protocol.split_frames(rest + stream[cut:])
    assert first + second == packets
    assert rest == b""


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_and_yield_only_packets_that_rebuild_from_the_input(noise: bytes) -> None:
    found, rest = protocol.split_frames(noise)
    assert noise.endswith(rest)
    for frame in found:
        assert protocol.packet(*frame) in noise


@given(frames, frames, st.binary(max_size=8).filter(lambda b: b"\xff" not in b))
def test_noise_before_a_packet_does_not_hide_it(one: Frame, two: Frame, noise: bytes) -> None:
    found, _ = protocol.split_frames(protocol.packet(*one) + noise + protocol.packet(*two))
    assert found == [one, two]


@given(frames, st.data())
def test_a_flipped_bit_in_the_body_is_noticed(frame: Frame, data: st.DataObject) -> None:
    sound = bytearray(protocol.packet(*frame))
    at = data.draw(st.integers(4, len(sound) - 1))
    sound[at] ^= 1 << data.draw(st.integers(0, 7))
    assert frame not in protocol.split_frames(bytes(sound))[0]


def test_a_length_byte_that_promises_too_much_does_not_swallow_the_next_packet() -> None:
    broken = bytearray(protocol.status(1, 0, b"\1\2"))
    broken[3] = 200
    found, _ = protocol.split_frames(bytes(broken) + protocol.status(2, 0))
    assert found == [Frame(2, 0, b"")]


@given(st.integers(-2047, 2047))
def test_sign_magnitude_returns_what_went_in(value: int) -> None:
    assert protocol.decode_sign_magnitude(protocol.encode_sign_magnitude(value, 11), 11) == value


def test_sign_magnitude_of_known_values() -> None:
    assert protocol.encode_sign_magnitude(-85, 11) == 0x855
    assert protocol.decode_sign_magnitude(0x8001, 15) == -1
    assert protocol.decode_sign_magnitude(0x464, 10) == -100
    with pytest.raises(ValueError, match="2048 exceeds 2047"):
        protocol.encode_sign_magnitude(2048, 11)


def test_a_register_refuses_a_value_outside_its_range() -> None:
    assert protocol.encode_register(sts3215()["homing_offset"], -85) == b"\x55\x08"
    with pytest.raises(ValueError, match="torque_limit: 1001"):
        protocol.encode_register(sts3215()["torque_limit"], 1001)
    with pytest.raises(ValueError, match="2 bytes"):
        protocol.decode_register(sts3215()["torque_limit"], b"\1")


def test_packets_that_cannot_be_carried_are_refused() -> None:
    with pytest.raises(ValueError, match="servo id 255"):
        protocol.ping(255)
    with pytest.raises(ValueError, match="do not fit"):
        protocol.write(1, 0, bytes(253))
    with pytest.raises(ValueError, match="same size"):
        protocol.sync_write(42, [(1, b"\0\0"), (2, b"\0")])


def test_alarm_bits_have_names() -> None:
    assert protocol.alarm_names(0b100001) == ("voltage", "overload")
    assert protocol.alarm_names(0b1010000) == ("bit4", "bit6")
    assert protocol.alarm_names(0) == ()


@pytest.mark.parametrize("register", [r for r in sts3215() if r.sign_bit is not None], ids=lambda r: r.name)
@given(data=st.data())
def test_every_signed_register_returns_what_was_written(register: Register, data: st.DataObject) -> None:
    most = (1 << (register.sign_bit or 0)) - 1
    low = register.low if register.low is not None else -most
    high = register.high if register.high is not None else most
    value = data.draw(st.integers(max(low, -most), min(high, most)))
    assert protocol.decode_register(register, protocol.encode_register(register, value)) == value


def test_the_sign_bits_are_those_of_the_memory_table() -> None:
    bits = {r.name: r.sign_bit for r in sts3215()}
    assert {bits[n] for n in ("goal_position", "present_position", "goal_velocity", "present_velocity")} == {15}
    assert (bits["homing_offset"], bits["present_load"], bits["present_current"]) == (11, 10, 15)
