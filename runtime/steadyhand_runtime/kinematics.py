"""Where the SO-101's tip is for given joints, and which joints put it somewhere.

Lengths in metres, angles in rad, in the arm's base frame (x forward, y left, z up). The tip is the URDF's
`gripper_frame`. Pitch is the angle of the gripper's axis below the horizontal: pi/2 points straight down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame in its parent: origin (m), then fixed-axis roll, pitch and yaw (rad), as a URDF states them."""

    xyz_m: tuple[float, float, float]
    rpy_rad: tuple[float, float, float]


JOINT_NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

# From the public SO-101 URDF ("new calib": zero is mid-travel). Every joint turns about its own +z.
JOINT_FRAMES = (
    Frame((0.0388353, 0.0, 0.0624), (math.pi, 0.0, -math.pi)),
    Frame((-0.0303992, -0.0182778, -0.0542), (-math.pi / 2, -math.pi / 2, 0.0)),
    Frame((-0.11257, -0.028, 0.0), (0.0, 0.0, math.pi / 2)),
    Frame((-0.1349, 0.0052, 0.0), (0.0, 0.0, -math.pi / 2)),
    Frame((0.0, -0.0611, 0.0181), (math.pi / 2, 0.0486795, math.pi)),
    Frame((0.0202, 0.0188, -0.0234), (math.pi / 2, 0.0, 0.0)),
)
TIP_FRAME = Frame((-0.0079, -0.000218121, -0.0981274), (0.0, math.pi, 0.0))
LIMITS_RAD: F64 = np.array(
    [
        [-1.91986, 1.91986],
        [-1.74533, 1.74533],
        [-1.69, 1.69],
        [-1.65806, 1.65806],
        [-2.74385, 2.84121],
        [-0.174533, 1.74533],
    ]
)

PITCH_DOWN_RAD = math.pi / 2
PITCH_MIN_RAD = math.radians(20.0)
# The roll that closes the jaws along the arm's sideways direction, camera on the far side of the gripper; adding the
# pan angle to it keeps the jaws closing along world y wherever the gripper points down.
ROLL_LEVEL_RAD = JOINT_FRAMES[4].rpy_rad[1] - math.pi / 2

_PITCH_STEP_RAD = math.radians(5.0)
_BISECTIONS = 14
_ROLL_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Tip:
    """Where the tip is (3,) in metres and how far below the horizontal the gripper points (rad)."""

    xyz_m: F64
    pitch_rad: float


@dataclass(frozen=True, slots=True)
class Solution:
    """Joints (5,) for a tip position, the pitch they achieve, and whether the position is met within 10 um."""

    q_rad: F64
    pitch_rad: float
    reachable: bool


def rotation(rpy_rad: tuple[float, float, float]) -> F64:
    """Rotation matrix (3, 3) of fixed-axis roll, pitch, yaw: Rz(yaw) Ry(pitch) Rx(roll)."""
    (sr, sp, sy), (cr, cp, cy) = np.sin(rpy_rad), np.cos(rpy_rad)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def chain(q_rad: npt.ArrayLike) -> tuple[F64, F64]:
    """Origins (7, 3) and rotations (7, 3, 3) of the six joints and the tip at q_rad (6,), by the URDF's table."""
    q = np.asarray(q_rad, np.float64)
    origins, rotations = np.empty((7, 3)), np.empty((7, 3, 3))
    at, turn = np.zeros(3), np.eye(3)
    for j, frame in enumerate(JOINT_FRAMES):
        at, turn = at + turn @ frame.xyz_m, turn @ rotation(frame.rpy_rad) @ rotation((0.0, 0.0, q[j]))
        origins[j], rotations[j] = at, turn
    origins[6] = origins[4] + rotations[4] @ TIP_FRAME.xyz_m
    rotations[6] = rotations[4] @ rotation(TIP_FRAME.rpy_rad)
    return origins, rotations


@dataclass(frozen=True, slots=True)
class _Planar:
    """The arm at zero joints, seen from its side: (along x, up z) pairs from joint to joint, in metres."""

    pan_x: float
    shoulder: tuple[float, float]
    upper: tuple[float, float]
    fore: tuple[float, float]
    hand: tuple[float, float]
    axis_side: float
    tip_side: float
    tip_up: float

    @staticmethod
    def measure() -> _Planar:
        o, _ = chain(np.zeros(6))

        def pair(a: int, b: int) -> tuple[float, float]:
            return float(o[b, 0] - o[a, 0]), float(o[b, 2] - o[a, 2])

        return _Planar(
            pan_x=float(o[0, 0]),
            shoulder=(float(o[1, 0] - o[0, 0]), float(o[1, 2])),
            upper=pair(1, 2),
            fore=pair(2, 3),
            hand=(float(o[6, 0] - o[3, 0]), float(o[4, 2] - o[3, 2])),
            axis_side=float(o[4, 1]),
            tip_side=float(o[6, 1] - o[4, 1]),
            tip_up=float(o[6, 2] - o[4, 2]),
        )


_ARM = _Planar.measure()
_UPPER_M, _FORE_M = math.hypot(*_ARM.upper), math.hypot(*_ARM.fore)
_UPPER_RISE_RAD = math.atan2(_ARM.upper[1], _ARM.upper[0])
_FORE_RISE_RAD = math.atan2(_ARM.fore[1], _ARM.fore[0])
_LO = LIMITS_RAD[:, 0].tolist()
_HI = LIMITS_RAD[:, 1].tolist()


def tip_pose(q_rad: npt.ArrayLike) -> Tip:
    """Tip position and pitch at joints (5,) or (6,); the gripper joint moves no tip."""
    pan, lift, elbow, wrist, roll = (float(v) for v in np.asarray(q_rad)[:5])
    side, up = _tip_about_roll(roll)
    r, z = _reach((lift, elbow, wrist), up)
    c, s = math.cos(pan), math.sin(pan)
    return Tip(np.array([_ARM.pan_x + c * r + s * side, c * side - s * r, z]), lift + elbow + wrist)


def solve(xyz_m: npt.ArrayLike, pitch_rad: float = PITCH_DOWN_RAD) -> Solution:
    """Joints (5,) that bring the tip to xyz_m (3,) at pitch_rad, or at the steepest pitch below it that can be held.

    Five joints cannot hold every pitch: it is lowered to no less than 20 degrees, to the boundary of what is feasible,
    so that joints follow a moving position without jumps. Wrist roll follows the pan so that the jaws keep their yaw
    in the world. A position out of reach gives a pose near it, inside all limits, with `reachable` false.
    """
    x, y, z = (float(v) for v in np.asarray(xyz_m))
    pan, roll, r, side_met = _aim(x, y)
    up = _tip_about_roll(roll)[1]
    pitch = _steepest(r, z, up, pitch_rad)
    if pitch is None:
        lift, elbow, wrist = _nearest(r, z, up, pitch_rad)
    else:
        lift, elbow, wrist, _ = _bend(r, z, up, pitch)
    q = np.array([pan, lift, elbow, wrist, roll])
    return Solution(q, lift + elbow + wrist, pitch is not None and side_met)


def _tip_about_roll(roll: float) -> tuple[float, float]:
    """How far the tip lies left of the arm's plane, and above the roll axis when the gripper is level (m)."""
    c, s = math.cos(roll), math.sin(roll)
    return _ARM.axis_side + c * _ARM.tip_side + s * _ARM.tip_up, c * _ARM.tip_up - s * _ARM.tip_side


def _aim(x: float, y: float) -> tuple[float, float, float, bool]:
    """Pan, roll, the radius the arm must reach, and whether pan and roll are within their limits."""
    dx = x - _ARM.pan_x
    reach = math.hypot(dx, y)
    bearing = math.atan2(y, dx)
    pan, side = -bearing, 0.0
    for _ in range(_ROLL_ROUNDS):
        side = _tip_about_roll(pan + ROLL_LEVEL_RAD)[0]
        last, pan = pan, math.asin(max(-1.0, min(1.0, side / max(reach, 1e-9)))) - bearing
        if abs(pan - last) < 1e-12:
            break
    roll = pan + ROLL_LEVEL_RAD
    clipped_pan, clipped_roll = min(max(pan, _LO[0]), _HI[0]), min(max(roll, _LO[4]), _HI[4])
    met = clipped_pan == pan and clipped_roll == roll and reach > abs(side)
    return clipped_pan, clipped_roll, math.sqrt(max(reach * reach - side * side, 0.0)), met


def _bend(r: float, z: float, up: float, pitch: float) -> tuple[float, float, float, bool]:
    """Lift, elbow and wrist, elbow up, for the tip at (r, z) with this pitch; and whether limits and lengths allow."""
    c, s = math.cos(pitch), math.sin(pitch)
    hand_x, hand_z = _ARM.hand[0], _ARM.hand[1] + up
    wx = r - _ARM.shoulder[0] - (c * hand_x + s * hand_z)
    wz = z - _ARM.shoulder[1] - (c * hand_z - s * hand_x)
    d2 = wx * wx + wz * wz
    cosine = (d2 - _UPPER_M * _UPPER_M - _FORE_M * _FORE_M) / (2.0 * _UPPER_M * _FORE_M)
    bend = math.acos(max(-1.0, min(1.0, cosine)))
    rise = math.atan2(wz, wx) + math.atan2(_FORE_M * math.sin(bend), _UPPER_M + _FORE_M * math.cos(bend))
    # Angles of the joints turn the links downwards, hence the signs.
    lift = _UPPER_RISE_RAD - rise
    elbow = bend - (_UPPER_RISE_RAD - _FORE_RISE_RAD)
    wrist = pitch - lift - elbow
    fits = (
        -1.0 <= cosine <= 1.0 and _LO[1] <= lift <= _HI[1] and _LO[2] <= elbow <= _HI[2] and _LO[3] <= wrist <= _HI[3]
    )
    return lift, elbow, wrist, fits


def _steepest(r: float, z: float, up: float, wanted: float) -> float | None:
    """The largest feasible pitch in [20 degrees, wanted], or None."""
    if _bend(r, z, up, wanted)[3]:
        return wanted
    bad, good = wanted, wanted
    while not _bend(r, z, up, good)[3]:
        if good <= PITCH_MIN_RAD:
            return None
        bad, good = good, max(good - _PITCH_STEP_RAD, PITCH_MIN_RAD)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (good + bad)
        if _bend(r, z, up, middle)[3]:
            good = middle
        else:
            bad = middle
    return good


def _nearest(r: float, z: float, up: float, wanted: float) -> tuple[float, float, float]:
    """Lift, elbow and wrist inside their limits whose tip is nearest to (r, z), among the pitches that may be tried."""
    best, best_error = (0.0, 0.0, 0.0), math.inf
    pitch = wanted
    while True:
        lift, elbow, wrist, _ = _bend(r, z, up, pitch)
        bent = (
            min(max(lift, _LO[1]), _HI[1]),
            min(max(elbow, _LO[2]), _HI[2]),
            min(max(wrist, _LO[3]), _HI[3]),
        )
        got_r, got_z = _reach(bent, up)
        error = math.hypot(got_r - r, got_z - z)
        if error < best_error:
            best, best_error = bent, error
        if pitch <= PITCH_MIN_RAD:
            return best
        pitch = max(pitch - _PITCH_STEP_RAD, PITCH_MIN_RAD)


def _reach(bent: tuple[float, float, float], up: float) -> tuple[float, float]:
    """Radius from the pan axis and height of the tip for lift, elbow and wrist (m)."""
    r, z = _ARM.shoulder
    angle = 0.0
    for (x, y), turn in zip((_ARM.upper, _ARM.fore, (_ARM.hand[0], _ARM.hand[1] + up)), bent):
        angle += turn
        c, s = math.cos(angle), math.sin(angle)
        r, z = r + c * x + s * y, z - s * x + c * y
    return r, z
