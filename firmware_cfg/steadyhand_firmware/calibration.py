"""What one assembled arm's ticks mean: homing offset, range, zero and drive sign of each joint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

TICKS_PER_TURN = 4096  # STS3215, 12-bit encoder
RAD_PER_TICK = 2.0 * math.pi / TICKS_PER_TURN
MID_TICKS = 2048


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ticks and rad of J joints: rad = drive_sign * (ticks - zero_ticks) * 2 pi / 4096.

    `homing_offset` is what the servo itself subtracts (register 31), so it does not enter the arithmetic here.
    Goals are kept within range_min..range_max, both inclusive.
    """

    homing_offset: tuple[int, ...]
    range_min: tuple[int, ...]
    range_max: tuple[int, ...]
    zero_ticks: tuple[int, ...]
    drive_sign: tuple[int, ...]
    _zero: F64 = field(init=False, repr=False, compare=False)
    _rad_per_tick: F64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        columns = (self.homing_offset, self.range_min, self.range_max, self.zero_ticks, self.drive_sign)
        if len({len(c) for c in columns}) != 1:
            raise ValueError("calibration columns differ in length")
        if not all(s in (-1, 1) for s in self.drive_sign):
            raise ValueError("drive_sign must be 1 or -1")
        if not all(abs(h) <= 2047 for h in self.homing_offset):
            raise ValueError("homing_offset must lie within +-2047 (11 bits and a sign)")
        if not all(0 <= lo < hi < TICKS_PER_TURN for lo, hi in zip(self.range_min, self.range_max)):
            raise ValueError("range must satisfy 0 <= min < max <= 4095")
        object.__setattr__(self, "_zero", np.array(self.zero_ticks, float))
        object.__setattr__(self, "_rad_per_tick", RAD_PER_TICK * np.array(self.drive_sign, float))

    @classmethod
    def default(cls, joints: int = 6) -> Calibration:
        """Mid-travel (2048) is 0 rad, the whole turn is allowed, no offset."""
        return cls(
            homing_offset=(0,) * joints,
            range_min=(0,) * joints,
            range_max=(TICKS_PER_TURN - 1,) * joints,
            zero_ticks=(MID_TICKS,) * joints,
            drive_sign=(1,) * joints,
        )

    def to_rad(self, ticks: Sequence[int] | npt.NDArray[np.int64] | F64) -> F64:
        """Joint angles (J,) in rad of servo positions (J,) in ticks."""
        return (np.asarray(ticks, float) - self._zero) * self._rad_per_tick

    def to_rad_s(self, ticks_s: Sequence[int] | npt.NDArray[np.int64] | F64) -> F64:
        """Joint speeds (J,) in rad/s of servo speeds (J,) in ticks/s."""
        return np.asarray(ticks_s, float) * self._rad_per_tick

    def nearest_ticks(self, rad: F64) -> list[int]:
        """Servo positions of joint angles (J,), wherever they are. The angles must be finite."""
        return [round(t) for t in (rad / self._rad_per_tick + self._zero).tolist()]

    def to_ticks(self, rad: F64) -> list[int]:
        """Nearest servo positions within the range, J integers. The angles must be finite."""
        wanted: list[float] = (rad / self._rad_per_tick + self._zero).tolist()
        return [min(max(round(t), lo), hi) for t, lo, hi in zip(wanted, self.range_min, self.range_max)]
