"""Who answers on the wire, and what is wrong with that in words a person can act on."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.declaration import VoltageClass
from steadyhand_runtime.bus.client import BAUDS, QUICK_NS, Client, NoAnswer
from steadyhand_runtime.bus.protocol import Alarm, alarm_names

ALL_IDS = range(254)
LOW_IDS = 16  # where people put their servos
LOW_NS = 20_000_000
IDENTITY_BYTES = 40  # everything kept in EPROM


@dataclass(frozen=True, slots=True)
class Seen:
    """One id that answered. `model` is None where every answer was garbled; voltages in V, temperature in degC."""

    id: int
    baud: int
    model: int | None
    firmware: str = ""
    voltage_v: float = 0.0
    min_voltage_v: float = 0.0
    max_voltage_v: float = 0.0
    temperature_c: int = 0
    alarms: int = 0
    torque_on: bool = False
    garbled: bool = False


class Problem(str, enum.Enum):
    """What can be wrong with who answers."""

    NOBODY = "nobody"
    SILENT = "silent"
    WRONG_BAUD = "wrong baud"
    WRONG_MODEL = "wrong model"
    DUPLICATE = "duplicate id"
    STRANGER = "unexpected id"
    VOLTAGE = "voltage"
    ALARM = "alarm"
    FIRMWARE = "firmware mix"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, with its fix. A `blocking` one keeps the arm from working."""

    problem: Problem
    text: str
    blocking: bool = True

    def __str__(self) -> str:
        return f"{self.problem.value}: {self.text}"


def look(client: Client, servo_id: int) -> Seen | None:
    """What stands at one id, asked patiently; None when nothing does."""
    before = client.stray_bytes
    if client.ping(servo_id) is None:
        noise = client.stray_bytes > before and client.quality(servo_id).garbled
        return Seen(servo_id, client.baud, None, garbled=True) if noise else None
    garbled = client.quality(servo_id).garbled
    try:
        return _identify(client, servo_id, garbled)
    except NoAnswer:
        return Seen(servo_id, client.baud, None, garbled=garbled)


def survey(client: Client, expected: Iterable[int], ids: Iterable[int], step: Callable[[int], None]) -> list[Seen]:
    """Everybody at the client's baud: `expected` ids asked patiently, other `ids` quickly. `step` is told each id."""
    wanted = set(expected)
    found = []
    for servo_id in sorted(wanted | set(ids)):
        step(servo_id)
        if servo_id in wanted or answers_quickly(client, servo_id):
            seen = look(client, servo_id)
            if seen is not None:
                found.append(seen)
    return found


def answers_quickly(client: Client, servo_id: int) -> bool:
    """Whether somebody answers at an id that is probably nobody's; the low ones are asked more patiently."""
    if servo_id < LOW_IDS:
        return client.ping(servo_id, LOW_NS) is not None
    return client.ping(servo_id, QUICK_NS, tries=1) is not None


def findings(arm: Arm, seen: Sequence[Seen], baud: int, tried: Sequence[int]) -> list[Finding]:
    """What is wrong with an arm that should answer at `baud`, after the rates in `tried` were asked."""
    if not seen:
        return [Finding(Problem.NOBODY, _nobody(tried))]
    found = [
        *_missing(arm, seen, baud, tried),
        *(f for one in seen for f in _of_one(arm, one)),
        *_strangers(arm, seen),
    ]
    versions = {one.firmware for one in seen if one.firmware}
    if len(versions) > 1:
        listed = ", ".join(f"{one.id}: {one.firmware}" for one in seen if one.firmware)
        text = f"{listed}. The arm works; update them with Feetech's tool if joints behave differently"
        found.append(Finding(Problem.FIRMWARE, text, blocking=False))
    return found


def _identify(client: Client, servo_id: int, garbled: bool) -> Seen:
    table = client.table
    eprom = client.read_block(servo_id, 0, IDENTITY_BYTES).data
    volts, temperature = (table[n] for n in ("present_voltage", "present_temperature"))
    live = client.read_block(servo_id, volts.address, temperature.end - volts.address)
    model = table["model_number"]
    return Seen(
        id=servo_id,
        baud=client.baud,
        model=int.from_bytes(eprom[model.address : model.end], "little"),
        firmware=f"{eprom[0]}.{eprom[1]}",
        voltage_v=live.data[0] / 10,
        min_voltage_v=eprom[table["min_voltage"].address] / 10,
        max_voltage_v=eprom[table["max_voltage"].address] / 10,
        temperature_c=live.data[1],
        alarms=live.alarms,
        torque_on=client.read(servo_id, "torque_enable") != 0,
        garbled=garbled,
    )


def _nobody(tried: Sequence[int]) -> str:
    more = "" if len(tried) == len(BAUDS) else "; if that is right, try `steadyhand bus scan --all-bauds`"
    return f"no servo answers: check the arm's power supply and the cable from the adapter to the first servo{more}"


def _missing(arm: Arm, seen: Sequence[Seen], baud: int, tried: Sequence[int]) -> list[Finding]:
    found = []
    for joint in arm.joints:
        at = [one.baud for one in seen if one.id == joint.id]
        if at and baud not in at:
            text = f"{joint.name} (id {joint.id}) answers at {at[0]} baud instead of {baud}: "
            text += f"steadyhand bus apply --arm {arm.name} --baud {at[0]} --joint {joint.name}"
            found.append(Finding(Problem.WRONG_BAUD, text))
        elif not at:
            text = f"{joint.name} (id {joint.id}) does not answer: check the cables on both its sides"
            text += "" if len(tried) > 1 else ", or look at other rates with --all-bauds"
            found.append(
                Finding(Problem.SILENT, f"{text}; a servo that never had its id needs `steadyhand bus set-id`")
            )
    return found


def _of_one(arm: Arm, one: Seen) -> list[Finding]:
    where = _name(arm, one.id)
    found = []
    if one.garbled:
        text = f"{where}: answers collide, so two servos may share the id (or a plug is loose): unplug all but one of "
        text += "them and give it its own with `steadyhand bus set-id`"
        found.append(Finding(Problem.DUPLICATE, text))
    if one.model is None:
        return found
    if one.model != 777:
        found.append(Finding(Problem.WRONG_MODEL, f"{where} is model {one.model}, not an STS3215 (777): replace it"))
    if not one.min_voltage_v <= one.voltage_v <= one.max_voltage_v:
        found.append(Finding(Problem.VOLTAGE, f"{where}: {voltage_words(one)}"))
    alarms = one.alarms & ~Alarm.VOLTAGE
    if alarms:
        text = (
            f"{where}: {', '.join(alarm_names(alarms))}: let it cool and free the joint; torque off clears an overload"
        )
        found.append(Finding(Problem.ALARM, text))
    return found


def voltage_words(one: Seen) -> str:
    """Why a servo does not fit its supply, and what to do."""
    servo = VoltageClass.of(round(one.max_voltage_v * 10)).value
    if one.voltage_v > one.max_voltage_v:
        return (
            f"a {servo} V servo (at most {one.max_voltage_v:.1f} V) stands on a supply of {one.voltage_v:.1f} V: "
            "switch the power off now and use the supply that came with the servos"
        )
    return (
        f"the supply gives {one.voltage_v:.1f} V, the servo needs {one.min_voltage_v:.1f} V at least: "
        "check the power supply and its plug"
    )


def _strangers(arm: Arm, seen: Sequence[Seen]) -> list[Finding]:
    strange = [one.id for one in seen if one.id not in arm.ids]
    if not strange:
        return []
    listed = ", ".join(map(str, strange))
    text = f"{arm.name} has no id {listed}: give such a servo its joint's id with `steadyhand bus set-id`"
    return [Finding(Problem.STRANGER, text)]


def _name(arm: Arm, servo_id: int) -> str:
    return next((f"{j.name} (id {j.id})" for j in arm.joints if j.id == servo_id), f"servo {servo_id}")
