"""LeRobot's calibration files and normalised units, read and written exactly as LeRobot does.

Its conventions (`motors/motors_bus.py`, release 0.6): a turn has 4095 steps in DEGREES, which neither clamps nor heeds
the drive mode; both RANGE units clamp and mirror; the way back truncates with int().
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from steadyhand_firmware.arm import Arm, Joint
from steadyhand_firmware.calibration import RAD_PER_TICK, TICKS_PER_TURN, Calibration

DEGREE_STEPS = 4095
MAX_FILE_BYTES = 64 << 10


class CalibrationError(ValueError):
    """A calibration file that cannot be used; the message names the fix."""


class Unit(enum.Enum):
    """LeRobot's normalised units. Its followers use DEGREES or RANGE_M100_100, and RANGE_0_100 for the gripper."""

    DEGREES = "degrees"
    RANGE_M100_100 = "range_m100_100"
    RANGE_0_100 = "range_0_100"


@dataclass(frozen=True, slots=True)
class MotorCalibration:
    """One entry of a calibration file. Ticks are what the servo reports once it subtracts its `homing_offset`."""

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int

    def problem(self) -> str | None:
        """Why this entry is impossible, or None."""
        if not 0 <= self.id <= 253:
            return f"id {self.id} is not in 0..253"
        if self.drive_mode not in (0, 1):
            return f"drive_mode {self.drive_mode} is neither 0 nor 1"
        if abs(self.homing_offset) > 2047:
            return f"homing_offset {self.homing_offset} is outside +-2047"
        if not 0 <= self.range_min < self.range_max < TICKS_PER_TURN:
            return f"range {self.range_min}..{self.range_max} does not satisfy 0 <= min < max <= 4095"
        return None

    @property
    def mid(self) -> float:
        return (self.range_min + self.range_max) / 2


def normalise(ticks: int, motor: MotorCalibration, unit: Unit) -> float:
    """A servo's position in LeRobot's unit."""
    if unit is Unit.DEGREES:
        return (ticks - motor.mid) * 360 / DEGREE_STEPS
    share = (min(motor.range_max, max(motor.range_min, ticks)) - motor.range_min) / (motor.range_max - motor.range_min)
    if unit is Unit.RANGE_M100_100:
        value = share * 200 - 100
        return -value if motor.drive_mode else value
    return 100 - share * 100 if motor.drive_mode else share * 100


def unnormalise(value: float, motor: MotorCalibration, unit: Unit) -> int:
    """The servo's position of a value in LeRobot's unit, truncated towards zero. The value must be finite."""
    if unit is Unit.DEGREES:
        return int(value * DEGREE_STEPS / 360 + motor.mid)
    if unit is Unit.RANGE_M100_100:
        value = -value if motor.drive_mode else value
        share = (min(100.0, max(-100.0, value)) + 100) / 200
    else:
        value = 100 - value if motor.drive_mode else value
        share = min(100.0, max(0.0, value)) / 100
    return int(share * (motor.range_max - motor.range_min) + motor.range_min)


def read_motors(path: Path, arm: Arm) -> tuple[MotorCalibration, ...]:
    """The entries of a calibration file in the arm's joint order. Raises CalibrationError naming the fix."""
    try:
        with path.open(encoding="utf-8") as file:
            data = json.loads(file.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such calibration file: `steadyhand bus calibrate` makes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}: not a calibration file: {error}") from None
    if not isinstance(data, dict) or set(data) != set(arm.names):
        held = ", ".join(map(str, data)) if isinstance(data, dict) else "something else"
        raise CalibrationError(f"{path}: holds {held[:200]}; {arm.name} needs {', '.join(arm.names)}")
    return tuple(_motor(path, joint, data[joint.name]) for joint in arm.joints)


def write_motors(path: Path, arm: Arm, motors: Sequence[MotorCalibration]) -> None:
    """Save a calibration file aside and rename it into place: a power cut leaves the old one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    entries = {joint.name: asdict(motor) for joint, motor in zip(arm.joints, motors)}
    aside.write_text(json.dumps(entries, indent=4) + "\n", encoding="utf-8")
    aside.replace(path)


def to_calibration(arm: Arm, motors: Sequence[MotorCalibration]) -> Calibration:
    """What the driver needs, of entries in the arm's joint order.

    The middle of the calibrated range is the middle of the joint's limits, which is 0 rad for all but the gripper. A
    joint that turns all the way round has its zero in the middle of the turn and its soft limits for a range.
    """
    ranges = [_range(joint, motor) for joint, motor in zip(arm.joints, motors)]
    return Calibration(
        homing_offset=tuple(m.homing_offset for m in motors),
        range_min=tuple(low for low, _ in ranges),
        range_max=tuple(high for _, high in ranges),
        zero_ticks=tuple(_zero(j, m) for j, m in zip(arm.joints, motors)),
        drive_sign=tuple(_sign(m) for m in motors),
    )


def load_calibration(path: Path, arm: Arm) -> Calibration:
    """The driver's calibration from a file of LeRobot's format. Raises CalibrationError naming the fix."""
    return to_calibration(arm, read_motors(path, arm))


def _motor(path: Path, joint: Joint, entry: object) -> MotorCalibration:
    names = [f.name for f in fields(MotorCalibration)]
    if not isinstance(entry, Mapping) or set(entry) != set(names):
        raise CalibrationError(f"{path}: {joint.name} needs exactly {', '.join(names)}")
    if any(type(entry[name]) is not int for name in names):
        raise CalibrationError(f"{path}: {joint.name}: {', '.join(names)} must be whole numbers")
    motor = MotorCalibration(**entry)
    problem = motor.problem()
    if problem is None and motor.id != joint.id:
        problem = f"id {motor.id}, but the arm's {joint.name} has id {joint.id}"
    if problem is not None:
        raise CalibrationError(f"{path}: {joint.name}: {problem}: run `steadyhand bus calibrate`")
    return motor


def _sign(motor: MotorCalibration) -> int:
    return -1 if motor.drive_mode else 1


def _zero(joint: Joint, motor: MotorCalibration) -> int:
    if joint.full_turn:
        return int(motor.mid)
    return round(int(motor.mid) - _sign(motor) * (joint.low_rad + joint.high_rad) / 2 / RAD_PER_TICK)


def _range(joint: Joint, motor: MotorCalibration) -> tuple[int, int]:
    if not joint.full_turn:
        return motor.range_min, motor.range_max
    zero = _zero(joint, motor)
    ends = sorted(zero + _sign(motor) * limit / RAD_PER_TICK for limit in (joint.low_rad, joint.high_rad))
    return max(motor.range_min, round(ends[0])), min(motor.range_max, round(ends[1]))
