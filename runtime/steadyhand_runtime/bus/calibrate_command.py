"""Calibrate an arm by hand: centre it, sweep its joints, and store offsets and limits in the servos and in a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.calibration import TICKS_PER_TURN
from steadyhand_firmware.control_table import sts3215
from steadyhand_firmware.lerobot import MotorCalibration, write_motors
from steadyhand_models.cli import UserError
from steadyhand_runtime.bus import arguments, ports, provision
from steadyhand_runtime.bus.calibrator import Calibrator, Verdict, raw_position, turned
from steadyhand_runtime.bus.client import Client, NoAnswer
from steadyhand_runtime.bus.provision import Snapshot
from steadyhand_runtime.bus.provision_record import state_folder
from steadyhand_runtime.bus.transport import BusError

MOVED_TICKS = 100  # more than a limp arm sags while it is stored
DEGREES_PER_TICK = 360 / TICKS_PER_TURN
_OFFSET = sts3215()["homing_offset"]
_DESCRIPTION = """Calibrate an arm by hand. Torque goes off; nothing is stored in the servos before you agree to it.

1. Put every joint into the middle of its travel and press Enter.
2. Move every joint from end to end, in any order, until the table says good; press Enter.

Homing offsets and limits go into the servos, and into a file that LeRobot reads as well. Ctrl-C leaves the servos
as they were, without torque.

Example: steadyhand bus calibrate --port /dev/ttyACM0 --file follower.json"""


@dataclass(frozen=True)
class CalibrateSettings(arguments.ArmSettings):
    """Which arm, and where its calibration goes."""

    file: Path | None = None  # empty: ~/.local/state/steadyhand/calibration/ARM.json
    yes: bool = False  # store without asking at the end


def main(argv: Sequence[str]) -> int:
    """`steadyhand bus calibrate`."""
    chosen = arguments.parse(CalibrateSettings, argv, "calibrate", _DESCRIPTION)
    arm = chosen.load()
    path = chosen.file or state_folder() / "calibration" / f"{arm.name}.json"
    _check_writable(path)
    client = ports.open_client(ports.choose(chosen.port), chosen.baud)
    console = Console(soft_wrap=True, highlight=False)
    try:
        snapshots = provision.take_snapshots(client, arm.joints)
        provision.check_voltage(arm, snapshots)
        _let_go(client, snapshots)
        motors = _sweep(client, arm, snapshots, console)
        console.print(_outcome(arm, motors))
        replaces = f", replacing {path}" if path.exists() else f" and in {path}"
        arguments.confirm(f"store this in the servos{replaces}?", chosen.yes)
        before = read_raw(client, [s.value(_OFFSET) for s in snapshots], arm)
        store(client, snapshots, motors)
        moved = moved_joints(arm, before, read_raw(client, [m.homing_offset for m in motors], arm))
    finally:
        for joint in arm.joints:
            with suppress(BusError):
                client.write(joint.id, "torque_enable", 0)
        client.close()
    _save(path, arm, motors)
    console.print(f"stored in the servos and in {path}", markup=False)
    if moved:
        console.print(
            f"{', '.join(moved)} moved meanwhile, or the servo does not subtract its offset: "
            "look with `steadyhand bus monitor` whether its angle is right"
        )
    return 0


def store(client: Client, snapshots: Sequence[Snapshot], motors: Sequence[MotorCalibration]) -> None:
    """Write what differs; when that is interrupted or fails, put back what the servos held. Raises BusError."""
    begun: list[Snapshot] = []
    try:
        for snapshot, motor in zip(snapshots, motors):
            declared = provision.calibration_declared(motor)
            values = [(d.register, d.value) for d in declared if snapshot.value(d.register) != d.value]
            if values:
                begun.append(snapshot)
                provision.write_registers(client, snapshot.joint.id, values)
    except BaseException:
        _put_back(client, begun)
        raise


def read_raw(client: Client, offsets: Sequence[int], arm: Arm) -> list[int | None]:
    """The encoders' positions while these homing offsets stand in the servos, None where one does not answer."""
    found: list[int | None] = []
    for joint, offset in zip(arm.joints, offsets):
        try:
            found.append(raw_position(client.read(joint.id, "present_position"), offset))
        except NoAnswer:
            found.append(None)
    return found


def moved_joints(arm: Arm, before: Sequence[int | None], after: Sequence[int | None]) -> list[str]:
    """Joints whose encoder is somewhere else now, or could not be read."""
    found = []
    for joint, old, new in zip(arm.joints, before, after):
        if old is None or new is None or abs(turned(old, new)) > MOVED_TICKS:
            found.append(joint.name)
    return found


def _let_go(client: Client, snapshots: Sequence[Snapshot]) -> None:
    if any(s.torque_on for s in snapshots):
        arguments.ask("Torque is on and goes off now: support the arm and press Enter: ")
    for snapshot in snapshots:
        provision.torque_off(client, snapshot.joint.id)


def _sweep(client: Client, arm: Arm, snapshots: Sequence[Snapshot], console: Console) -> tuple[MotorCalibration, ...]:
    arguments.ask("Put every joint into the middle of its travel and press Enter: ")
    offsets = [s.value(_OFFSET) for s in snapshots]
    centre = [position for position in read_raw(client, offsets, arm) if position is not None]
    if len(centre) != len(arm.joints):
        raise BusError("not every servo answers: check the cables, then start again")
    calibrator = Calibrator(arm, centre)
    console.print("Move every joint from end to end, then press Enter.")
    while True:
        with Live(_progress(calibrator), console=console, auto_refresh=False) as live:
            while not arguments.entered():
                calibrator.observe(read_raw(client, offsets, arm))
                live.update(_progress(calibrator), refresh=True)
        unfinished = calibrator.unfinished()
        if not unfinished:
            return calibrator.result()
        for sweep in unfinished:
            swept, nominal = (round(t * DEGREES_PER_TICK) for t in (sweep.span, sweep.nominal))
            console.print(
                f"{sweep.joint.name}: {swept} of about {nominal} degrees: {sweep.verdict.value}", markup=False
            )
            if sweep.verdict is Verdict.WIDE:
                calibrator.restart(sweep.joint)
        console.print("Move these again, then press Enter.")


def _progress(calibrator: Calibrator) -> Table:
    table = Table("joint", "from", "now", "to", "swept", "of about", "", title="degrees from the middle", box=None)
    for s in calibrator.sweeps():
        cells = [f"{t * DEGREES_PER_TICK:.0f}" for t in (s.low, s.now, s.high, s.span, s.nominal)]
        colour = "yellow" if s.verdict in (Verdict.SHORT, Verdict.WIDE) else "green"
        table.add_row(s.joint.name, *cells, f"[{colour}]{s.verdict.value}[/]")
    return table


def _outcome(arm: Arm, motors: Sequence[MotorCalibration]) -> Table:
    table = Table("joint", "homing offset", "range", "degrees", box=None, pad_edge=False)
    for joint, motor in zip(arm.joints, motors):
        degrees = f"{(motor.range_max - motor.range_min) * DEGREES_PER_TICK:.0f}"
        if joint.full_turn:
            degrees = f"{math.degrees(joint.high_rad - joint.low_rad):.0f} (soft limits)"
        table.add_row(joint.name, str(motor.homing_offset), f"{motor.range_min}..{motor.range_max}", degrees)
    return table


def _put_back(client: Client, snapshots: Sequence[Snapshot]) -> None:
    """Restore offsets and limits, whatever each servo says."""
    registers = [sts3215()[name] for name in ("min_position", "max_position", "homing_offset")]
    with provision.uninterrupted():
        for snapshot in snapshots:
            with suppress(BusError):
                provision.write_registers(client, snapshot.joint.id, [(r, snapshot.value(r)) for r in registers])


def _check_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(path.name + ".new")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): choose another file with --file") from None


def _save(path: Path, arm: Arm, motors: Sequence[MotorCalibration]) -> None:
    try:
        write_motors(path, arm, motors)
    except OSError as error:
        listed = ", ".join(f"{j.name} {m}" for j, m in zip(arm.joints, motors))
        raise UserError(f"{path}: not saved ({error.strerror}); the servos hold the calibration: {listed}") from None
