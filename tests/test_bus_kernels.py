"""The compiled arithmetic against its own Python and against the plain protocol."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyhand_firmware.calibration import Calibration
from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import kernels, protocol
from steadyhand_runtime.bus.kernels import SOUND, SOUND_WITH_NEWS, UNSOUND
from steadyhand_runtime.bus.reading import ALARMS, CURRENT, LOAD, POSITION, ROWS, TEMPERATURE, VALID, VELOCITY, VOLTAGE

IDS = (1, 2, 3, 4, 5, 6)
LAYOUT = np.array([(j, i) for j, i in enumerate(IDS)], np.int64)
CALIBRATION = Calibration(
    homing_offset=(0,) * 6,
    range_min=(0, 100, 0, 500, 0, 2000),
    range_max=(4095, 4000, 4095, 3500, 4095, 3000),
    zero_ticks=(2048, 2000, 2100, 2048, 2048, 2010),
    drive_sign=(1, -1, 1, 1, -1, 1),
)
SCALE = kernels.make_scale(CALIBRATION)
TABLE = sts3215()
blocks = st.lists(st.binary(min_size=15, max_size=15), min_size=6, max_size=6)
alarms = st.lists(st.integers(0, 255), min_size=6, max_size=6)


def stream(data: list[bytes], bits: list[int]) -> bytes:
    return b"".join(protocol.status(i, a, d) for i, a, d in zip(IDS, bits, data))


def take(data: bytes, table: np.ndarray, size: int = 15, compiled: bool = True) -> int:
    function = kernels.take_blocks if compiled else kernels.take_blocks.py_func  # type: ignore[attr-defined]
    return int(function(np.frombuffer(data, np.uint8), LAYOUT, 56, size, table, SCALE, 7_000))


def register(name: str, block: bytes) -> int:
    r = TABLE[name]
    return protocol.decode_register(r, block[r.address - 56 : r.end - 56])


@settings(deadline=None)
@given(blocks, alarms)
def test_a_whole_answer_says_what_the_registers_say(data: list[bytes], bits: list[int]) -> None:
    table = np.zeros((ROWS, 6))
    assert take(stream(data, bits), table) in (SOUND, SOUND_WITH_NEWS)
    ticks = [register("present_position", d) for d in data]
    np.testing.assert_allclose(table[POSITION], CALIBRATION.to_rad(ticks))
    np.testing.assert_allclose(table[VELOCITY], CALIBRATION.to_rad_s([register("present_velocity", d) for d in data]))
    signs = np.array(CALIBRATION.drive_sign)
    np.testing.assert_allclose(table[LOAD], signs * [register("present_load", d) / 1000 for d in data])
    assert table[VOLTAGE].tolist() == [register("present_voltage", d) / 10 for d in data]
    assert table[TEMPERATURE].tolist() == [register("present_temperature", d) for d in data]
    assert table[ALARMS].tolist() == [a | register("status", d) for a, d in zip(bits, data)]
    current = [protocol.decode_sign_magnitude(int.from_bytes(d[13:15], "little"), 15) * 0.0065 for d in data]
    np.testing.assert_allclose(table[CURRENT], current)
    assert table[VALID].all()


@settings(deadline=None, max_examples=30)
@given(blocks, alarms, st.data())
def test_compiled_and_plain_python_agree_on_sound_and_damaged_answers(
    data: list[bytes], bits: list[int], draw: st.DataObject
) -> None:
    whole = bytearray(stream(data, bits))
    if draw.draw(st.booleans()):
        whole[draw.draw(st.integers(0, len(whole) - 1))] ^= draw.draw(st.integers(1, 255))
    one, two = np.zeros((ROWS, 6)), np.zeros((ROWS, 6))
    with np.errstate(over="ignore"):
        assert take(bytes(whole), one) == take(bytes(whole), two, compiled=False)
    np.testing.assert_array_equal(one, two)


@settings(deadline=None)
@given(blocks, alarms, st.data())
def test_a_changed_byte_makes_the_answer_unsound_and_nothing_is_taken(
    data: list[bytes], bits: list[int], draw: st.DataObject
) -> None:
    whole = bytearray(stream(data, bits))
    whole[draw.draw(st.integers(0, len(whole) - 1))] ^= draw.draw(st.integers(1, 255))
    table = np.zeros((ROWS, 6))
    assert take(bytes(whole), table) == UNSOUND
    assert not table.any()


def test_answers_of_another_length_or_order_are_unsound() -> None:
    six = [bytes(15)] * 6
    table = np.zeros((ROWS, 6))
    assert take(stream(six, [0] * 6)[:-1], table) == UNSOUND
    assert take(stream(six, [0] * 6), table, size=14) == UNSOUND
    swapped = b"".join(protocol.status(i, 0, bytes(15)) for i in (2, 1, 3, 4, 5, 6))
    assert take(swapped, table) == UNSOUND


def test_news_are_alarms_that_changed() -> None:
    table = np.zeros((ROWS, 6))
    six = [bytes(15)] * 6
    assert take(stream(six, [0] * 6), table) == SOUND
    assert take(stream(six, [0, 32, 0, 0, 0, 0]), table) == SOUND_WITH_NEWS
    assert take(stream(six, [0, 32, 0, 0, 0, 0]), table) == SOUND
    assert take(stream(six, [0] * 6), table) == SOUND_WITH_NEWS


@settings(deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=6, max_size=6))
def test_goals_are_the_sync_write_that_the_protocol_builds(goal: list[float]) -> None:
    wanted = np.array(goal)
    ticks = CALIBRATION.to_ticks(wanted)
    reference = protocol.sync_write(42, [(i, t.to_bytes(2, "little")) for i, t in zip(IDS, ticks)])
    for function in (kernels.fill_goals, kernels.fill_goals.py_func):  # type: ignore[attr-defined]
        frame = bytearray(protocol.sync_write(42, [(i, b"\0\0") for i in IDS]))
        with np.errstate(over="ignore"):
            assert function(np.frombuffer(frame, np.uint8), wanted, SCALE)
        assert bytes(frame) == reference


def test_a_goal_that_is_not_finite_writes_nothing() -> None:
    frame = bytearray(protocol.sync_write(42, [(i, b"\0\0") for i in IDS]))
    before = bytes(frame)
    for bad in (np.nan, np.inf, -np.inf):
        assert not kernels.fill_goals(np.frombuffer(frame, np.uint8), np.array([0.1, 0, 0, 0, 0, bad]), SCALE)
    assert bytes(frame) == before


def test_the_addresses_are_the_tables() -> None:
    assert TABLE["present_position"].address == kernels.POSITION_ADDRESS
    assert TABLE["present_current"].end == kernels.SLOW_END
    assert TABLE["torque_limit"].address == kernels.LIMIT_ADDRESS
    assert TABLE["goal_position"].address == 42


def test_warming_leaves_nothing_to_compile_for_a_cycle() -> None:
    kernels.warm(SCALE)
    functions = (kernels.take_blocks, kernels.fill_goals, kernels.grow_older, kernels.store_block)
    before = [len(f.signatures) for f in functions]  # type: ignore[attr-defined]
    table = np.zeros((ROWS, 6))
    take(stream([bytes(15)] * 6, [0] * 6), table)
    kernels.fill_goals(np.frombuffer(bytearray(40), np.uint8), np.zeros(6), SCALE)
    assert [len(f.signatures) for f in functions] == before  # type: ignore[attr-defined]
