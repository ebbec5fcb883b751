"""Give servos their ids: one of them, or every joint's in turn with one servo on the bus at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from pydantic import Field

from steadyhand_firmware.arm import Arm, Joint
from steadyhand_firmware.declaration import exactly
from steadyhand_models.settings import SettingsError
from steadyhand_runtime.bus import arguments, ports, provision
from steadyhand_runtime.bus.client import BAUDS, Client
from steadyhand_runtime.bus.survey import ALL_IDS, answers_quickly, look
from steadyhand_runtime.bus.transport import BusError

_DESCRIPTION = """Give servos their ids. New servos all have id 1, so only one may be connected while its id is changed.

With --all every joint is asked for in turn: connect its servo alone, press Enter, and it gets its id and baud rate.

Examples: steadyhand bus set-id --all
          steadyhand bus set-id --from 1 --to 3"""


@dataclass(frozen=True)
class SetIdSettings(arguments.ArmSettings):
    """Which servo, and which id."""

    old: Annotated[Annotated[int, Field(ge=0, le=253)] | None, tyro.conf.arg(name="from")] = None  # its present id
    new: Annotated[Annotated[int, Field(ge=0, le=253)] | None, tyro.conf.arg(name="to")] = None  # the one it is to have
    all: bool = False  # every joint of the arm, one servo after the other
    yes: bool = False  # do not ask


def main(argv: Sequence[str]) -> int:
    """`steadyhand bus set-id`."""
    chosen = arguments.parse(SetIdSettings, argv, "set-id", _DESCRIPTION)
    pair = None if chosen.old is None or chosen.new is None or chosen.old == chosen.new else (chosen.old, chosen.new)
    if (pair is None) != chosen.all:
        raise SettingsError("give either --all, or two different ids with --from and --to")
    client = ports.open_client(ports.choose(chosen.port), chosen.baud)
    try:
        if pair is None:
            walk(client, chosen.load())
        else:
            change_one(client, *pair, chosen.yes)
    finally:
        client.close()
    return 0


def change_one(client: Client, old: int, new: int, yes: bool) -> None:
    """One id to another, after asking."""
    provision.check_id_change(client, old, new)
    arguments.confirm(f"give the servo at id {old} the id {new}?", yes)
    provision.change_id(client, old, new)
    print(f"servo {old} is now {new}, locked and read back twice")


def walk(client: Client, arm: Arm) -> None:
    """Every joint from the gripper inwards, so that finished servos can stay mounted while the next is connected."""
    print(f"{len(arm.joints)} servos, one at a time. Ctrl-C leaves; finished servos keep their ids.")
    for joint in reversed(arm.joints):
        while True:
            arguments.ask(f"\nConnect only the servo of {joint.name} to the adapter and press Enter: ")
            try:
                print(f"  {prepare(client, joint)}")
                break
            except BusError as error:
                print(f"  {error}")
    print("\nAll ids are set. Connect the servos in a chain, then `steadyhand bus scan`.")


def prepare(client: Client, joint: Joint) -> str:
    """Give the only servo on the bus the joint's id and the client's baud rate; says what was done. Raises BusError."""
    home_baud = client.baud
    try:
        old = _find_only(client)
        found_baud = client.baud
        if old != joint.id:
            provision.change_id(client, old, joint.id)
        if found_baud != home_baud:
            rate = exactly("baud_rate", BAUDS.index(home_baud), "")
            provision.torque_off(client, joint.id)
            provision.write_registers(client, joint.id, [(rate.register, rate.value)])
    finally:
        client.use_baud(home_baud)
    if old == joint.id and found_baud == home_baud:
        return f"{joint.name} had id {joint.id} already"
    return f"{joint.name}: id {old} at {found_baud} baud is now id {joint.id} at {home_baud} baud"


def _find_only(client: Client) -> int:
    """The id of the only servo, at whatever rate it answers; the client stays at that rate. Raises BusError."""
    home_baud = client.baud
    for baud in (home_baud, *(b for b in BAUDS if b != home_baud)):
        print(f"  looking at {baud} baud ...", flush=True)
        client.use_baud(baud)
        found = list(_answering(client))
        if len(found) > 1:
            listed = ", ".join(map(str, found))
            raise BusError(f"ids {listed} answer: disconnect all but the one servo, then press Enter again")
        if found:
            seen = look(client, found[0])
            if seen is None or seen.garbled:
                raise BusError(f"several servos answer at id {found[0]}: disconnect all but one, press Enter again")
            return found[0]
    raise BusError("no servo answers at any rate: check its cable and the power supply, then press Enter again")


def _answering(client: Client) -> Iterator[int]:
    for servo_id in ALL_IDS:
        if answers_quickly(client, servo_id):
            yield servo_id
