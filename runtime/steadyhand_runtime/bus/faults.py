"""When servos' own reports stop the arm or take torque from a joint: pure decisions over readings."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_runtime.bus.protocol import Alarm, alarm_names

F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FOLD_RANGE_C = 10.0  # below the highest temperature: where the torque begins to be taken back
RESTORE_C = 3.0  # below that again: where it is given back
RESTORE_CURRENT = 0.8  # of the highest current
CURRENT_S = 1.0  # a joint may draw more than the highest current for so long
LEAST_SHARE = 0.3  # of the cap; enough for most poses to be kept
DOWN_PER_S = 0.5
UP_PER_S = 0.1


class FaultReason(str, enum.Enum):
    """Why the arm was stopped."""

    SILENT = "silent"
    ALARM = "alarm"
    ENCODER = "encoder"
    HOT = "hot"
    POWER_LOST = "power_lost"
    PORT_LOST = "port_lost"


@dataclass(frozen=True, slots=True)
class Fault:
    """A reason to stop, and in words what a person looks for."""

    reason: FaultReason
    text: str


@dataclass(frozen=True, slots=True)
class Health:
    """When the servos' own reports stop the arm: silence, a lasting alarm, heat."""

    silence_s: float = 0.5
    alarm_s: float = 0.5
    max_temperature_c: float = 65.0


def find_fault(
    names: tuple[str, ...], age_s: F64, alarm_for_s: F64, alarms: Ints, temperature_c: F64, health: Health
) -> Fault | None:
    """The first reason to stop. Arrays are (J,); `alarm_for_s` is how long each alarm lasts.

    An encoder alarm stops at once: from then on nobody knows where the joint is.
    """
    if age_s.max() > health.silence_s:
        j = int(age_s.argmax())
        return Fault(FaultReason.SILENT, f"{names[j]}: no answer for {age_s[j]:.2f} s")
    lost = (alarms & int(Alarm.ENCODER)) != 0
    if lost.any():
        return Fault(FaultReason.ENCODER, f"{names[int(lost.argmax())]}: encoder")
    if alarm_for_s.max() > health.alarm_s:
        j = int(alarm_for_s.argmax())
        return Fault(FaultReason.ALARM, f"{names[j]}: {' '.join(alarm_names(int(alarms[j])))}")
    if temperature_c.max() > health.max_temperature_c:
        j = int(temperature_c.argmax())
        return Fault(FaultReason.HOT, f"{names[j]}: {temperature_c[j]:.0f} degC")
    return None


class FoldReason(str, enum.Enum):
    """Why a joint may use less torque than its cap."""

    TEMPERATURE = "temperature"
    CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Foldback:
    """Share (J,) of each joint's cap that it may use, LEAST_SHARE..1, and for how long (J,) it drew too much."""

    share: F64
    over_s: F64

    @classmethod
    def none(cls, joints: int) -> Foldback:
        return cls(np.ones(joints), np.zeros(joints))


def fold(last: Foldback, temperature_c: F64, current_a: F64, dt_s: float, max_c: float, max_a: float) -> Foldback:
    """The shares after `dt_s` more: taken back gradually near a limit, given back slowly well below it. Arrays (J,)."""
    over_s = np.where(np.abs(current_a) > max_a, last.over_s + dt_s, 0.0)
    cooling = (max_c - temperature_c) / FOLD_RANGE_C
    wanted = np.clip(LEAST_SHARE + (1.0 - LEAST_SHARE) * cooling, LEAST_SHARE, 1.0)
    wanted = np.where(over_s > CURRENT_S, LEAST_SHARE, wanted)
    restorable = (temperature_c < max_c - FOLD_RANGE_C - RESTORE_C) & (np.abs(current_a) < RESTORE_CURRENT * max_a)
    lower = np.maximum(wanted, last.share - DOWN_PER_S * dt_s)
    higher = np.where(restorable, np.minimum(1.0, last.share + UP_PER_S * dt_s), last.share)
    return Foldback(np.where(wanted < last.share, lower, higher), over_s)


def newly_folded(before: Foldback, after: Foldback) -> list[tuple[int, FoldReason]]:
    """Joints that begin to lose torque, and why."""
    began = (before.share == 1.0) & (after.share < 1.0)
    return [
        (int(j), FoldReason.CURRENT if after.over_s[j] > CURRENT_S else FoldReason.TEMPERATURE)
        for j in np.flatnonzero(began)
    ]
