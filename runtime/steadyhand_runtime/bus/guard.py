"""The last safety check before the wire: limits, speed, acceleration and age of a goal."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Allowed = Callable[[F64], bool]

NS_PER_S = 1_000_000_000


class Refusal(str, enum.Enum):
    """Why a goal was not followed, or not exactly."""

    NOT_ARMED = "not_armed"
    STALE = "stale"
    NONFINITE = "nonfinite"
    WORKSPACE = "workspace"
    JOINT_LIMIT = "joint_limit"
    SPEED = "speed"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of commanded motion, each (J,)."""

    low_rad: F64
    high_rad: F64
    v_max_rad_s: F64
    a_max_rad_s2: F64


@dataclass(frozen=True, slots=True)
class Target:
    """A goal in force: be at `q_rad` (J,) by `arrive_ns`; worthless after `expires_ns`."""

    q_rad: F64
    arrive_ns: int
    expires_ns: int


@dataclass(frozen=True, slots=True)
class Command:
    """What goes to the servos this tick, the speed that it implies, and why it is not what was asked for."""

    q_rad: F64
    v_rad_s: F64
    reasons: tuple[Refusal, ...] = ()


def rest(q_rad: F64) -> Command:
    """Standing still at q_rad (J,)."""
    return Command(np.array(q_rad, float), np.zeros(len(q_rad)))


def check(
    target: Target | None, now_ns: int, dt_s: float, last: Command, limits: Limits, allowed: Allowed | None = None
) -> Command:
    """One bus period of motion from `last` towards `target`; without a usable target it brakes to a stand.

    Speed and acceleration never exceed the limits, and the command never leaves low..high once inside: at any speed it
    takes, it can still stop in time. `allowed` is asked about finite goals within the joint limits.
    """
    if target is None:
        return _move(last, np.zeros_like(last.v_rad_s), dt_s, limits, ())
    refusal = _refuse(target, now_ns, limits, allowed)
    if refusal is not None:
        return _move(last, np.zeros_like(last.v_rad_s), dt_s, limits, (refusal,))
    goal = np.minimum(np.maximum(target.q_rad, limits.low_rad), limits.high_rad)
    reasons: tuple[Refusal, ...] = () if (goal == target.q_rad).all() else (Refusal.JOINT_LIMIT,)
    error = goal - last.q_rad
    wanted = error / max((target.arrive_ns - now_ns) / NS_PER_S, dt_s)
    if (np.abs(wanted) > limits.v_max_rad_s).any():
        reasons += (Refusal.SPEED,)
    bound = np.minimum(limits.v_max_rad_s, stopping_speed(np.abs(error), limits.a_max_rad_s2, dt_s))
    return _move(last, np.minimum(np.maximum(wanted, -bound), bound), dt_s, limits, reasons)


def stopping_speed(distance_rad: F64, a_max_rad_s2: F64, dt_s: float) -> F64:
    """Highest speed for the next step from which braking by a_max each step stops within `distance_rad`, exactly.

    With speed v = a dt (k + f), whole k, the steps v, v - a dt, ... cover a dt^2 (k + 1)(k / 2 + f).
    """
    unit = a_max_rad_s2 * dt_s
    steps = distance_rad / (unit * dt_s)
    k = np.floor((np.sqrt(1.0 + 8.0 * steps) - 1.0) / 2.0)
    return unit * (steps / (k + 1.0) + k / 2.0)


def _refuse(target: Target, now_ns: int, limits: Limits, allowed: Allowed | None) -> Refusal | None:
    if now_ns > target.expires_ns:
        return Refusal.STALE
    if not np.isfinite(target.q_rad).all():
        return Refusal.NONFINITE
    if allowed is not None and not allowed(np.clip(target.q_rad, limits.low_rad, limits.high_rad)):
        return Refusal.WORKSPACE
    return None


def _move(last: Command, wanted_rad_s: F64, dt_s: float, limits: Limits, reasons: tuple[Refusal, ...]) -> Command:
    change = limits.a_max_rad_s2 * dt_s
    v = np.minimum(np.maximum(wanted_rad_s, last.v_rad_s - change), last.v_rad_s + change)
    free = last.q_rad + v * dt_s
    low = np.minimum(limits.low_rad, last.q_rad)  # a joint that was found outside may come back, not go further
    high = np.maximum(limits.high_rad, last.q_rad)
    q = np.minimum(np.maximum(free, low), high)
    return Command(q, np.where(q == free, v, 0.0), reasons)
