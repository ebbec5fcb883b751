"""Compare the servos' registers with what the arm declares, write what differs, and verify that it lasts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from steadyhand_firmware.arm import Arm, Joint
from steadyhand_firmware.lerobot import CalibrationError, read_motors
from steadyhand_models.cli import UserError
from steadyhand_runtime.bus import arguments, ports, provision
from steadyhand_runtime.bus.client import BAUDS, Client
from steadyhand_runtime.bus.provision import Difference, Snapshot
from steadyhand_runtime.bus.provision_record import Record, state_folder
from steadyhand_runtime.bus.transport import BusError

_PLAN = """Show how the servos' registers differ from what the arm declares. Nothing is written.

Exit codes: 0 nothing differs, 3 something does. What a power-off clears is shown and does not count.

Example: steadyhand bus plan --port /dev/ttyACM0"""
_APPLY = """Write the registers that differ from what the arm declares, read them back, and record before and after.

Example: steadyhand bus apply --port /dev/ttyACM0"""
_VERIFY = """Check that what was applied has lasted: after `bus apply`, switch the arm off and on, then run this.

Exit codes: 0 everything lasted, 3 something differs.

Example: steadyhand bus verify --port /dev/ttyACM0"""
DIFFERENT = 3


@dataclass(frozen=True)
class PlanSettings(arguments.ArmSettings):
    """What to compare."""

    joint: str = ""  # only this joint; empty: all
    calibration: Path | None = None  # also compare homing offset and limits with this calibration file


@dataclass(frozen=True)
class ApplySettings(PlanSettings):
    """What to write, and what may be done without asking."""

    yes: bool = False  # do not ask
    torque_off: bool = False  # switch torque off where it is on; support the arm first
    record: Path | None = None  # folder of the record; empty: ~/.local/state/steadyhand/provision


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found."""

    snapshots: list[Snapshot]
    differences: list[Difference]

    @property
    def lasting(self) -> list[Difference]:
        """What differs in memory that outlasts a power-off."""
        return [d for d in self.differences if d.declared.lasting]


def main_plan(argv: Sequence[str]) -> int:
    """`steadyhand bus plan`: 0 when nothing lasting differs, else 3."""
    return _compare(arguments.parse(PlanSettings, argv, "plan", _PLAN), "`steadyhand bus apply` writes them")


def main_verify(argv: Sequence[str]) -> int:
    """`steadyhand bus verify`: 0 when everything lasted, else 3."""
    advice = "they did not last, or were never written: run `steadyhand bus apply`"
    return _compare(arguments.parse(PlanSettings, argv, "verify", _VERIFY), advice)


def main_apply(argv: Sequence[str]) -> int:
    """`steadyhand bus apply`: 0 when everything declared stands in the servos."""
    chosen = arguments.parse(ApplySettings, argv, "apply", _APPLY)
    arm, port = chosen.load(), ports.choose(chosen.port)
    client = ports.open_client(port, chosen.baud)
    console = Console(soft_wrap=True, highlight=False)
    try:
        plan = make_plan(client, chosen, arm)
        show(console, arm, plan)
        if not plan.differences:
            return 0
        _refuse_torque(plan.snapshots, chosen.torque_off)
        arguments.confirm(f"write {_counted(len(plan.differences))}?", chosen.yes)
        record = Record(chosen.record or state_folder() / "provision", arm, port, plan.snapshots, plan.differences)
        console.print(f"record: {record.path}", markup=False)
        write(client, plan, record)
    finally:
        client.close()
    then = "; switch the arm off and on, then `steadyhand bus verify`" if plan.lasting else ""
    console.print(f"written and read back twice{then}")
    return 0


def make_plan(client: Client, chosen: PlanSettings, arm: Arm) -> Plan:
    """Voltage first, then every declared register of every chosen joint. Raises BusError or UserError."""
    try:
        motors = read_motors(chosen.calibration, arm) if chosen.calibration else ()
    except CalibrationError as error:
        raise UserError(str(error)) from None
    snapshots = provision.take_snapshots(client, _chosen_joints(arm, chosen.joint))
    provision.check_voltage(arm, snapshots)
    extra = {j.id: provision.calibration_declared(m) for j, m in zip(arm.joints, motors)}
    return Plan(snapshots, [d for s in snapshots for d in provision.differences(s, extra.get(s.joint.id, ()))])


def write(client: Client, plan: Plan, record: Record) -> None:
    """Write one servo after the other, and into the record what they hold afterwards, however it ends."""
    outcome = "not finished"
    try:
        busy = [s.joint for s in plan.snapshots if any(d.joint is s.joint for d in plan.differences)]
        for joint in track(busy, "writing", console=Console(stderr=True), transient=True):
            provision.torque_off(client, joint.id)
            values = [(d.declared.register, d.wanted) for d in plan.differences if d.joint is joint]
            provision.write_registers(client, joint.id, values)
        outcome = "written"
    finally:
        record.finish(_after(client, plan), outcome)


def show(console: Console, arm: Arm, plan: Plan) -> None:
    """The difference as a person reads one: joint by joint, then what every power-off clears."""
    if not plan.differences:
        console.print(f"{arm.name}: {len(plan.snapshots)} servos hold everything that is declared")
    for snapshot in plan.snapshots:
        joint = snapshot.joint
        lines = [_line(d) for d in plan.lasting if d.joint is joint]
        if lines:
            heading = f"{joint.name} (id {joint.id}, firmware {snapshot.firmware})"
            console.print("\n".join([heading, *lines]), markup=False)
    fleeting: dict[str, list[str]] = {}
    for d in plan.differences:
        if not d.declared.lasting:
            fleeting.setdefault(_line(d), []).append(d.joint.name)
    if fleeting:
        console.print("cleared by every power-off, so it does not count:")
    for line, joints in fleeting.items():
        where = "every joint" if len(joints) == len(plan.snapshots) else ", ".join(joints)
        console.print(f"{line}, at {where}", markup=False)


def _line(d: Difference) -> str:
    """`address register present -> declared unit  why`."""
    register = d.declared.register
    unit = f" [{register.unit}]" if register.unit else ""
    change = f"{_digits(d, d.present)} -> {_digits(d, d.wanted)}{unit}"
    return f"  {register.address:>3} {register.name:<20} {change:<28} {d.declared.why}"


def _compare(chosen: PlanSettings, advice: str) -> int:
    arm = chosen.load()
    client = ports.open_client(ports.choose(chosen.port), chosen.baud)
    try:
        plan = make_plan(client, chosen, arm)
    finally:
        client.close()
    console = Console(soft_wrap=True, highlight=False)
    show(console, arm, plan)
    if plan.lasting:
        console.print(f"{_counted(len(plan.lasting))} to change: {advice}")
        return DIFFERENT
    return 0


def _after(client: Client, plan: Plan) -> list[Snapshot]:
    """The servos that answer as they are now, each at the rate that it was told."""
    home_baud = client.baud
    rates = {d.joint.id: BAUDS[d.wanted] for d in plan.differences if d.declared.register.name == "baud_rate"}
    found = []
    with suppress(BusError):
        for snapshot in plan.snapshots:
            client.use_baud(rates.get(snapshot.joint.id, home_baud))
            found.append(provision.take_snapshot(client, snapshot.joint))
        client.use_baud(home_baud)
    return found


def _chosen_joints(arm: Arm, name: str) -> tuple[Joint, ...]:
    if not name:
        return arm.joints
    found = tuple(j for j in arm.joints if j.name == name)
    if not found:
        raise UserError(f"{arm.name} has no joint {name!r}; known: {', '.join(arm.names)}")
    return found


def _refuse_torque(snapshots: Sequence[Snapshot], allowed: bool) -> None:
    energised = [s.joint.name for s in snapshots if s.torque_on]
    if energised and not allowed:
        raise UserError(
            f"torque is on at {', '.join(energised)}: support the arm and add --torque-off, or stop what holds it"
        )


def _digits(difference: Difference, value: int) -> str:
    return str(value) if difference.declared.whole else f"0b{value:08b}"


def _counted(n: int) -> str:
    return "1 register" if n == 1 else f"{n} registers"
