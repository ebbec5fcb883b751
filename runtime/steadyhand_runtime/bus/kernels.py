"""The cycle's arithmetic, compiled: goals into a sync write, the answer of a sync read into the table of a reading.

`data` is uint8, tables are float64. A scale (SCALE_ROWS, J) turns ticks into rad; `make_scale` builds it from a
calibration. Addresses are those of memory table v220328, which `tests/test_bus_kernels.py` checks against the arm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from steadyhand_firmware.calibration import RAD_PER_TICK, Calibration
from steadyhand_runtime.bus.reading import (
    AGE,
    ALARMS,
    CURRENT,
    GOOD_NS,
    LIMIT,
    LOAD,
    POSITION,
    ROWS,
    TEMPERATURE,
    VALID,
    VELOCITY,
    VOLTAGE,
)

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

ZERO, RAD, LOW, HIGH, LOAD_SHARE = range(5)
SCALE_ROWS = 5
LIMIT_ADDRESS, POSITION_ADDRESS, SLOW_END = 48, 56, 71
FIRST_GOAL = 8  # header, id, length, instruction, address, size, first id
CURRENT_A = 0.0065  # a count of register 69
FULL_TORQUE = 1000  # load and torque limit count 0.1 %
UNSOUND, SOUND, SOUND_WITH_NEWS = 0, 1, 2


def _compiled(function: Function) -> Function:
    return cast(Function, numba.njit(cache=True)(function))


def make_scale(calibration: Calibration) -> F64:
    """The scale (SCALE_ROWS, J) of an arm."""
    signs = np.array(calibration.drive_sign, float)
    rows = (calibration.zero_ticks, RAD_PER_TICK * signs, calibration.range_min, calibration.range_max)
    return np.array([*rows, signs / FULL_TORQUE], float)


@_compiled
def fill_goals(frame: U8, goal_rad: F64, scale: F64) -> bool:
    """Write goals (J,) and the checksum into a frame that begins with a sync write of J goals; False: not finite."""
    joints = scale.shape[1]
    end = 7 + 3 * joints
    for j in range(joints):
        if not np.isfinite(goal_rad[j]):
            return False
    for j in range(joints):
        wanted = np.rint(goal_rad[j] / scale[RAD, j] + scale[ZERO, j])
        ticks = np.int64(min(max(wanted, scale[LOW, j]), scale[HIGH, j]))
        frame[FIRST_GOAL + 3 * j] = ticks & 0xFF
        frame[FIRST_GOAL + 3 * j + 1] = ticks >> 8
    total = 0
    for i in range(2, end):
        total += frame[i]
    frame[end] = ~total & 0xFF
    return True


@_compiled
def signed(low: int, high: int, sign_bit: int) -> int:
    """A little-endian sign-magnitude word; bits above the sign bit are ignored."""
    raw = np.int64(low) | np.int64(high) << 8
    magnitude = raw & ((1 << sign_bit) - 1)
    return -magnitude if raw >> sign_bit & 1 else magnitude


@_compiled
def grow_older(table: F64, stamp_ns: int) -> None:
    """Begin a cycle's table: nothing is valid, and everything as old as its last good reply."""
    for j in range(table.shape[1]):
        table[VALID, j] = 0.0
        table[AGE, j] = (stamp_ns - table[GOOD_NS, j]) / 1e9


@_compiled
def store_block(
    data: U8, at: int, alarms: int, address: int, size: int, joint: int, table: F64, scale: F64, stamp_ns: int
) -> bool:
    """Take one servo's registers address..address+size, which begin at data[at]; True when its alarms changed."""
    here = at + POSITION_ADDRESS - address
    table[POSITION, joint] = (signed(data[here], data[here + 1], 15) - scale[ZERO, joint]) * scale[RAD, joint]
    table[VELOCITY, joint] = signed(data[here + 2], data[here + 3], 15) * scale[RAD, joint]
    table[LOAD, joint] = signed(data[here + 4], data[here + 5], 10) * scale[LOAD_SHARE, joint]
    if address + size >= SLOW_END:
        table[VOLTAGE, joint] = data[here + 6] / 10.0
        table[TEMPERATURE, joint] = data[here + 7]
        alarms |= np.int64(data[here + 9])
        table[CURRENT, joint] = signed(data[here + 13], data[here + 14], 15) * CURRENT_A
    if address <= LIMIT_ADDRESS:
        table[LIMIT, joint] = signed(data[at + LIMIT_ADDRESS - address], data[at + LIMIT_ADDRESS - address + 1], 15)
    news = table[ALARMS, joint] != alarms
    table[ALARMS, joint] = alarms
    table[VALID, joint] = 1.0
    table[AGE, joint] = 0.0
    table[GOOD_NS, joint] = stamp_ns
    return news


@_compiled
def take_blocks(data: U8, layout: I64, address: int, size: int, table: F64, scale: F64, stamp_ns: int) -> int:
    """Take a whole answer, one good packet of every servo in order; UNSOUND and nothing taken when it is not that.

    `layout` (N, 2) holds joint and servo id of each packet. SOUND_WITH_NEWS when some servo's alarms changed.
    """
    stride = size + 6
    if data.shape[0] != layout.shape[0] * stride:
        return UNSOUND
    for i in range(layout.shape[0]):
        at = i * stride
        if data[at] != 0xFF or data[at + 1] != 0xFF or data[at + 2] != layout[i, 1] or data[at + 3] != size + 2:
            return UNSOUND
        total = 0
        for k in range(at + 2, at + stride):
            total += data[k]
        if total & 0xFF != 0xFF:
            return UNSOUND
    grow_older(table, stamp_ns)
    news = False
    for i in range(layout.shape[0]):
        at = i * stride
        alarms = np.int64(data[at + 4])
        news |= store_block(data, at + 5, alarms, address, size, layout[i, 0], table, scale, stamp_ns)
    return SOUND_WITH_NEWS if news else SOUND


def warm(scale: F64) -> None:
    """Compile everything, or load it from the cache, for the types that the driver uses."""
    joints = scale.shape[1]
    table = np.zeros((ROWS, joints))
    frame = np.frombuffer(bytearray(8 + 3 * joints), np.uint8)
    fill_goals(frame, np.zeros(joints), scale)
    layout = np.zeros((1, 2), np.int64)
    data = np.frombuffer(b"\0" * 12, np.uint8)
    take_blocks(data, layout, POSITION_ADDRESS, 6, table, scale, 0)
    store_block(data, 0, 0, POSITION_ADDRESS, 6, 0, table, scale, 0)
    grow_older(table, 0)
