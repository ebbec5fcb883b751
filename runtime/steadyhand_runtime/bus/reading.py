"""What the servos said in one cycle, as an immutable snapshot, and the rows of the table behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# Rows of the table (ROWS, J) that the kernels fill and a reading is a copy of.
POSITION, VELOCITY, LOAD, VALID, AGE, ALARMS, CURRENT, TEMPERATURE, VOLTAGE, GOOD_NS, LIMIT = range(11)
ROWS = 11


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the servos said. A joint that is not `valid` this cycle keeps its last good values, `age_s` old.

    `load` is in -1..1 of full duty; `alarms` are the status bits of the last reply; `current_a`, `temperature_c` and
    `voltage_v` come from the slow block and are zero until its first. All arrays are (J,) and read-only.
    """

    stamp_ns: int
    table: F64

    @property
    def all_valid(self) -> bool:
        return bool(self.table[VALID].all())

    @property
    def position_rad(self) -> F64:
        return self.table[POSITION]

    @property
    def velocity_rad_s(self) -> F64:
        return self.table[VELOCITY]

    @property
    def load(self) -> F64:
        return self.table[LOAD]

    @property
    def valid(self) -> Flags:
        return self.table[VALID] != 0.0

    @property
    def age_s(self) -> F64:
        return self.table[AGE]

    @property
    def alarms(self) -> Ints:
        return self.table[ALARMS].astype(np.int64)

    @property
    def current_a(self) -> F64:
        return self.table[CURRENT]

    @property
    def temperature_c(self) -> F64:
        return self.table[TEMPERATURE]

    @property
    def voltage_v(self) -> F64:
        return self.table[VOLTAGE]

    def aged(self, now_ns: int) -> Reading:
        """The same, of which nothing is valid any more, as old as it is at `now_ns`."""
        table = self.table.copy()
        table[VALID] = 0.0
        table[AGE] = (now_ns - table[GOOD_NS]) / 1e9
        return snapshot(table, now_ns)


def never(joints: int, now_ns: int) -> Reading:
    """What is known of J servos before the first word."""
    return snapshot(np.zeros((ROWS, joints)), 0).aged(now_ns)


def snapshot(table: F64, stamp_ns: int) -> Reading:
    """A reading that keeps the table (ROWS, J) as it is now."""
    kept = table.copy()
    kept.setflags(write=False)
    return Reading(stamp_ns, kept)
