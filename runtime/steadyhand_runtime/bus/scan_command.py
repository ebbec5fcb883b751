"""Find the servos: who answers at which id and baud rate, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from steadyhand_firmware.arm import Arm
from steadyhand_runtime.bus import arguments, ports
from steadyhand_runtime.bus.client import BAUDS, Client
from steadyhand_runtime.bus.protocol import alarm_names
from steadyhand_runtime.bus.survey import ALL_IDS, Seen, findings, survey

_DESCRIPTION = """Find the servos: who answers at which id and baud rate, and what is wrong. Nothing is written.

Exit codes: 0 the arm is complete, 3 something is wrong with it.

Example: steadyhand bus scan --port /dev/ttyACM0"""


@dataclass(frozen=True)
class ScanSettings(arguments.ArmSettings):
    """Where to look."""

    all_bauds: bool = False  # every rate that a servo can be set to; takes a quarter of a minute


def main(argv: Sequence[str]) -> int:
    """`steadyhand bus scan`: 0 when the arm is complete, 3 when something blocks it."""
    chosen = arguments.parse(ScanSettings, argv, "scan", _DESCRIPTION)
    console = Console(soft_wrap=True, highlight=False)
    port = ports.choose(chosen.port)
    arm = chosen.load()
    bauds = (chosen.baud, *(b for b in BAUDS if b != chosen.baud)) if chosen.all_bauds else (chosen.baud,)
    client = ports.open_client(port, chosen.baud)
    try:
        seen = scan(client, arm, bauds)
    finally:
        client.close()
    if seen:
        console.print(table(arm, seen))
    found = findings(arm, seen, chosen.baud, bauds)
    for finding in found:
        console.print(str(finding), markup=False)
    if not found:
        console.print(f"{port}: {arm.name} is complete")
    return 3 if any(f.blocking for f in found) else 0


def scan(client: Client, arm: Arm, bauds: Sequence[int]) -> list[Seen]:
    """Everybody at each of the rates, with a progress bar on standard error."""
    seen: list[Seen] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(bauds) * len(ALL_IDS))
        for baud in bauds:
            client.use_baud(baud)
            progress.update(task, description=f"{baud} baud")
            missing = set(arm.ids) - {one.id for one in seen}
            seen += survey(client, missing, ALL_IDS, lambda _: progress.advance(task))
    return seen


def table(arm: Arm, seen: Sequence[Seen]) -> Table:
    """The servos as a person reads them."""
    names = dict(zip(arm.ids, arm.names))
    shown = Table("id", "joint", "baud", "model", "firmware", "V", "degC", "torque", "alarms", box=None, pad_edge=False)
    for one in seen:
        shown.add_row(
            str(one.id),
            names.get(one.id, "?"),
            str(one.baud),
            "?" if one.model is None else str(one.model),
            one.firmware,
            f"{one.voltage_v:.1f}",
            str(one.temperature_c),
            "on" if one.torque_on else "off",
            ", ".join(alarm_names(one.alarms)) or "-",
        )
    return shown
