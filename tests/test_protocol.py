"""Bytes of the servo bus: the manual's examples, damaged streams, sign-magnitude, alarms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.protocol import BlockReader, Frame

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


def test_a_sync_read_answer_of_the_manual_is_sound() -> None:
    reader = BlockReader((1, 2), 8)
    assert reader.expected_bytes == len(SYNC_REPLY)
    assert reader.is_sound(SYNC_REPLY)
    assert [f.id for f in reader.sound_blocks(SYNC_REPLY) if f] == [1, 2]


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


def test_an_alarm_does_not_make_a_reply_unsound() -> None:
    reply = protocol.status(1, 0x20, bytes(6)) + protocol.status(2, 0, bytes(6))
    assert BlockReader((1, 2), 6).is_sound(reply)


def test_a_missing_servo_leaves_the_others_valid() -> None:
    reply = protocol.status(1, 0, bytes(6)) + protocol.status(3, 0, bytes(6))
    assert [f is not None for f in BlockReader((1, 2, 3), 6).sound_blocks(reply)] == [True, False, True]


def test_replies_to_an_earlier_request_do_not_count() -> None:
    other_order = b"".join(protocol.status(i, 0, bytes(6)) for i in (1, 2, 3))
    assert BlockReader((2, 3, 1), 6).sound_blocks(other_order) == [None, None, None]
    other_size = protocol.status(1, 0, bytes(15))
    assert BlockReader((1, 2), 6).sound_blocks(other_size) == [None, None]
