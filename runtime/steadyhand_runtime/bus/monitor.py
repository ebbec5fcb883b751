"""One look at an arm's servos, from its port or from its runtime, and how a person and a program read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Column, Table

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models.messages import BusState
from steadyhand_runtime.bus.protocol import alarm_names
from steadyhand_runtime.bus.reading import Reading


@dataclass(frozen=True, slots=True)
class ServoView:
    """One servo. When not `valid`, what is shown is `age_s` old; `load` is -1..1 of full duty.

    `lost` counts replies that did not come or came damaged since the start; None where that is not known.
    """

    joint: str
    id: int
    position_rad: float
    position_ticks: int
    velocity_rad_s: float
    load: float
    current_a: float
    temperature_c: float
    voltage_v: float
    valid: bool
    age_s: float
    lost: int | None
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """All servos at one moment; `stamp_ns` is monotonic, `rate_hz` how often the servos are read."""

    stamp_ns: int
    source: str
    rate_hz: float
    servos: tuple[ServoView, ...]


def view(
    told: Reading | BusState,
    arm: Arm,
    calibration: Calibration,
    source: str,
    rate_hz: float,
    lost: Sequence[int | None],
) -> View:
    """What a reading or a published state says, servo by servo in joint order."""
    ticks = calibration.nearest_ticks(told.position_rad)
    servos = tuple(
        ServoView(
            joint=joint.name,
            id=joint.id,
            position_rad=float(told.position_rad[j]),
            position_ticks=ticks[j],
            velocity_rad_s=float(told.velocity_rad_s[j]),
            load=float(told.load[j]),
            current_a=float(told.current_a[j]),
            temperature_c=float(told.temperature_c[j]),
            voltage_v=float(told.voltage_v[j]),
            valid=bool(told.valid[j]),
            age_s=float(told.age_s[j]),
            lost=lost[j],
            errors=alarm_names(int(told.alarms[j])),
        )
        for j, joint in enumerate(arm.joints)
    )
    return View(told.stamp_ns, source, rate_hz, servos)


def as_json(shown: View) -> str:
    """One object on one line."""
    return json.dumps(asdict(shown), separators=(",", ":"))


def as_table(shown: View, notes: Sequence[str] = ()) -> Table:
    """What a person watches."""
    names = ("joint", "id", "rad", "ticks", "load %", "A", "degC", "V", "age ms", "lost")
    columns = [*(Column(name, no_wrap=True) for name in names), Column("errors")]
    title, caption = f"{shown.source}, {shown.rate_hz:.0f} Hz", "\n".join(notes) or None
    table = Table(*columns, title=title, caption=caption, box=None, pad_edge=False)
    for s in shown.servos:
        errors = ", ".join(s.errors) or ("ok" if s.valid else "no answer")
        table.add_row(
            s.joint,
            str(s.id),
            f"{s.position_rad:+.3f}",
            str(s.position_ticks),
            f"{100 * s.load:+.0f}",
            f"{s.current_a:+.2f}",
            f"{s.temperature_c:.0f}",
            f"{s.voltage_v:.1f}",
            f"{1000 * s.age_s:.0f}",
            "" if s.lost is None else str(s.lost),
            errors,
            style="red" if not s.valid else "yellow" if s.errors else "",
        )
    return table
