"""An arm as data: its joints in order, their servo ids, gears, limits, torque caps and declared registers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_firmware.control_table import read_package_toml
from steadyhand_firmware.declaration import Declared, VoltageClass, exactly, read_declarations

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Joint:
    """One joint; `torque_limit` is the live cap as a share (0..1) of stall torque, `gear` the reduction 1/gear.

    A `full_turn` joint has no mechanical stop: its limits are soft and its zero is where the person centred it.
    `registers` are what its servo must hold, in address order.
    """

    name: str
    id: int
    gear: int
    low_rad: float
    high_rad: float
    torque_limit: float
    full_turn: bool = False
    registers: tuple[Declared, ...] = ()


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of joints in bus order. An arm that is not `energised` is moved by hand and never gets torque."""

    name: str
    servo: str
    joints: tuple[Joint, ...]
    voltage: VoltageClass = VoltageClass.V7_4
    energised: bool = True

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


def arm_names() -> list[str]:
    """Arms that ship with this package."""
    folder = resources.files(__package__).joinpath("arms")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_arm(name: str = "so101_follower", voltage: VoltageClass | None = None) -> Arm:
    """An arm that ships with this package, built from servos of `voltage` where that is not the file's own.

    Raises ValueError for an unknown name or an impossible description.
    """
    if name not in arm_names():
        raise ValueError(f"no arm named {name!r}; known: {', '.join(arm_names())}")
    data = read_package_toml("arms", f"{name}.toml")
    volts = voltage or VoltageClass(data["voltage"])
    common = read_declarations(data["registers"])
    joints = tuple(_joint(entry, common, volts) for entry in data["joint"])
    arm = Arm(data["name"], data["servo"], joints, volts, data["energised"])
    _check(arm)
    return arm


def _joint(entry: Mapping[str, Any], common: Mapping[str, Declared], voltage: VoltageClass) -> Joint:
    own = read_declarations(entry.get("registers", {}))
    fixed = {
        "id": exactly("id", entry["id"], "one id a joint"),
        "max_voltage": exactly("max_voltage", voltage.max_decivolts, f"what the {voltage.value} V servo stands"),
    }
    declared = sorted({**common, **own, **fixed}.values(), key=lambda d: d.register.address)
    return Joint(**{**entry, "registers": tuple(declared)})


def _check(arm: Arm) -> None:
    if len(set(arm.ids)) != len(arm.ids) or not all(0 <= i <= 253 for i in arm.ids):
        raise ValueError(f"{arm.name}: servo ids must differ and lie in 0..253")
    for joint in arm.joints:
        if not joint.low_rad < joint.high_rad or not 0.0 <= joint.torque_limit <= 1.0:
            raise ValueError(f"{arm.name}: {joint.name} has impossible limits")
        if arm.energised and joint.torque_limit == 0.0:
            raise ValueError(f"{arm.name}: {joint.name} cannot be energised with a torque limit of 0")
