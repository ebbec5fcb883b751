"""An arm as data: its joints in order, their servo ids, gears, limits and torque caps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_firmware.control_table import read_package_toml

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Joint:
    """One joint; `torque_limit` is the live cap as a share (0..1) of stall torque, `gear` the reduction 1/gear."""

    name: str
    id: int
    gear: int
    low_rad: float
    high_rad: float
    torque_limit: float


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of joints in bus order."""

    name: str
    servo: str
    joints: tuple[Joint, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(j.name for j in self.joints)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(j.id for j in self.joints)

    @property
    def low_rad(self) -> F64:
        return np.array([j.low_rad for j in self.joints])

    @property
    def high_rad(self) -> F64:
        return np.array([j.high_rad for j in self.joints])

    @property
    def torque_limit(self) -> F64:
        return np.array([j.torque_limit for j in self.joints])


def load_arm(name: str = "so101_follower") -> Arm:
    """An arm that ships with this package. Raises ValueError for an unknown name or an impossible description."""
    try:
        data = read_package_toml("arms", f"{name}.toml")
    except FileNotFoundError:
        raise ValueError(f"no arm named {name!r}; known: so101_follower") from None
    arm = Arm(data["name"], data["servo"], tuple(Joint(**entry) for entry in data["joint"]))
    if len(set(arm.ids)) != len(arm.ids) or not all(0 <= i <= 253 for i in arm.ids):
        raise ValueError(f"{name}: servo ids must differ and lie in 0..253")
    for joint in arm.joints:
        if not joint.low_rad < joint.high_rad or not 0.0 < joint.torque_limit <= 1.0:
            raise ValueError(f"{name}: {joint.name} has impossible limits")
    return arm
