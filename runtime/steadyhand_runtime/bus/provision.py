"""What the servos' registers hold, how that differs from what the arm declares, and writing the difference.

An EPROM write is made with the lock open, left to settle, locked again, left to settle once more (servos were seen to
report a wrong 0 for more than 0.2 s after locking) and read back twice. What does not differ is never written.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from steadyhand_firmware.arm import Arm, Joint
from steadyhand_firmware.control_table import Access, Register, sts3215
from steadyhand_firmware.declaration import Declared, VoltageClass, exactly
from steadyhand_firmware.lerobot import MotorCalibration
from steadyhand_runtime.bus.client import BAUDS, Client, NoAnswer
from steadyhand_runtime.bus.protocol import decode_register
from steadyhand_runtime.bus.survey import look, voltage_words
from steadyhand_runtime.bus.transport import BusError

SETTLE_S = 0.3
READ_BACKS = 2
_TABLE = sts3215()
_BLOCKS = ((0, 40), (40, 56), (56, 73), (80, 87))  # every register, past the gaps


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All registers of one servo at one moment; `memory` is indexed by address."""

    joint: Joint
    memory: bytes
    alarms: int

    def value(self, register: Register) -> int:
        return decode_register(register, self.memory[register.address : register.end])

    @property
    def firmware(self) -> str:
        return f"{self.memory[0]}.{self.memory[1]}"

    @property
    def torque_on(self) -> bool:
        return self.value(_TABLE["torque_enable"]) != 0


@dataclass(frozen=True, slots=True)
class Difference:
    """One register of one joint that does not hold what is declared."""

    joint: Joint
    declared: Declared
    present: int

    @property
    def wanted(self) -> int:
        return self.declared.wanted(self.present)

    def __str__(self) -> str:
        return f"{self.joint.name} {self.declared.register.name}: {self.present} -> {self.wanted}"


def take_snapshots(client: Client, joints: Sequence[Joint]) -> list[Snapshot]:
    """Every register of these joints' servos. Raises BusError when one is silent, another model or not alone."""
    found = []
    for joint in joints:
        check_servo(client, joint)
        found.append(take_snapshot(client, joint))
    return found


def take_snapshot(client: Client, joint: Joint) -> Snapshot:
    """Every register of one servo. Raises NoAnswer."""
    memory = bytearray(_BLOCKS[-1][1])
    alarms = 0
    for start, end in _BLOCKS:
        answer = client.read_block(joint.id, start, end - start)
        memory[start:end] = answer.data
        alarms |= answer.alarms
    return Snapshot(joint, bytes(memory), alarms)


def check_servo(client: Client, joint: Joint) -> None:
    """Raise BusError unless exactly one STS3215 stands at the joint's id, on a supply that it stands."""
    seen = look(client, joint.id)
    where = f"{joint.name} (id {joint.id})"
    if seen is None:
        raise BusError(f"{where} does not answer at {client.baud} baud: `steadyhand bus scan --all-bauds` looks for it")
    if seen.garbled or seen.model is None:
        raise BusError(f"{where}: answers are damaged: two servos may share the id; see `steadyhand bus scan`")
    if seen.model != _TABLE.model_number:
        raise BusError(f"{where} is model {seen.model}, not an {_TABLE.model}: nothing is done to it")
    if not seen.min_voltage_v <= seen.voltage_v <= seen.max_voltage_v:
        raise BusError(f"{where}: {voltage_words(seen)}")


def check_voltage(arm: Arm, snapshots: Sequence[Snapshot]) -> None:
    """Raise BusError where a servo is not of the arm's declared voltage: its own limit is what protects it."""
    for snapshot in snapshots:
        found = VoltageClass.of(snapshot.value(_TABLE["max_voltage"]))
        if found is not arm.voltage:
            where = f"{snapshot.joint.name} (id {snapshot.joint.id})"
            raise BusError(
                f"{where} is a {found.value} V servo, but {arm.name} is declared with {arm.voltage.value} V ones: "
                f"give --voltage {found.value} if all of them are, and use the supply that belongs to them"
            )


def calibration_declared(motor: MotorCalibration) -> tuple[Declared, ...]:
    """What a calibration wants of its servo."""
    why = "the arm's calibration"
    return (
        exactly("min_position", motor.range_min, why),
        exactly("max_position", motor.range_max, why),
        exactly("homing_offset", motor.homing_offset, why),
    )


def differences(snapshot: Snapshot, extra: Sequence[Declared] = ()) -> list[Difference]:
    """What a servo holds otherwise than its joint declares, in address order."""
    declared = sorted((*snapshot.joint.registers, *extra), key=lambda d: d.register.address)
    found = [Difference(snapshot.joint, d, snapshot.value(d.register)) for d in declared]
    return [d for d in found if d.present != d.wanted]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block, so that no servo is left half written. Only the main thread gets one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def torque_off(client: Client, servo_id: int) -> None:
    """Switch the torque off and see that it is. Raises BusError."""
    client.write(servo_id, "torque_enable", 0)
    if client.read(servo_id, "torque_enable") != 0:
        raise BusError(f"servo {servo_id} keeps its torque on: switch the arm's power off and on again")


def write_registers(client: Client, servo_id: int, values: Sequence[tuple[Register, int]]) -> None:
    """Write registers of a servo without torque so that they last, and read them back. Raises BusError.

    The baud rate comes last, because it acts at once; the client follows it and then returns to its own.
    """
    lock, home_baud = _TABLE["lock"], client.baud
    lasting = any(register.access is Access.EPROM for register, _ in values)
    with uninterrupted():
        try:
            if lasting:
                _write_unlocked(client, servo_id, values)
            else:
                _write_in_order(client, servo_id, values)
            read_back(client, servo_id, [*values, (lock, 1)] if lasting else values)
        finally:
            client.use_baud(home_baud)


def read_back(client: Client, servo_id: int, values: Sequence[tuple[Register, int]]) -> None:
    """Raise BusError unless every register holds its value, twice over."""
    for _ in range(READ_BACKS):
        for register, value in values:
            held = client.read(servo_id, register.name)
            if held != value:
                raise BusError(
                    f"servo {servo_id}: {register.name} holds {held} after {value} was written: run this again; "
                    "if it stays so, the servo's memory is worn out or write protected"
                )


def check_id_change(client: Client, old: int, new: int) -> None:
    """Raise BusError unless exactly one servo has the id `old` and none has `new`."""
    seen = look(client, old)
    if seen is None:
        raise BusError(f"no servo answers at id {old} and {client.baud} baud: `steadyhand bus scan` says who does")
    if seen.garbled:
        raise BusError(f"several servos answer at id {old}: leave only one of them on the bus")
    if seen.model is not None and not seen.min_voltage_v <= seen.voltage_v <= seen.max_voltage_v:
        raise BusError(f"servo {old}: {voltage_words(seen)}")
    if look(client, new) is not None:
        raise BusError(f"id {new} is taken: leave only the servo that is to be changed on the bus")


def change_id(client: Client, old: int, new: int) -> None:
    """Give the one servo at `old` the id `new`, so that it lasts. Raises BusError, as `check_id_change` does."""
    check_id_change(client, old, new)
    torque_off(client, old)
    with uninterrupted():
        try:
            client.write(old, "lock", 0)
            client.tell(old, "id", new)
        finally:
            _lock(client, new if client.ping(new) is not None else old)
        read_back(client, new, [(_TABLE["id"], new), (_TABLE["lock"], 1)])
    if client.ping(old) is not None:
        raise BusError(f"a servo still answers at id {old}: there was more than one")


def _write_unlocked(client: Client, servo_id: int, values: Sequence[tuple[Register, int]]) -> None:
    try:
        client.write(servo_id, "lock", 0)
        _write_in_order(client, servo_id, values)
    finally:
        _lock(client, servo_id)


def _write_in_order(client: Client, servo_id: int, values: Sequence[tuple[Register, int]]) -> None:
    """Write every register, the baud rate last; the client is left at the servo's new rate."""
    baud = _TABLE["baud_rate"]
    for register, value in values:
        if register is not baud:
            client.write(servo_id, register.name, value)
    for value in (v for r, v in values if r is baud):
        client.tell(servo_id, "baud_rate", value)
        client.use_baud(BAUDS[value])


def _lock(client: Client, servo_id: int) -> None:
    """Close the EPROM, also where the servo has become hard to talk to."""
    client.settle(SETTLE_S)
    with suppress(NoAnswer):
        client.write(servo_id, "lock", 1)
    client.settle(SETTLE_S)
