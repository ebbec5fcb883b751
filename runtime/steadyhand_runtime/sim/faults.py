"""Faults of the virtual servos at run time: requests as data, strictly checked, and what each does to a chain."""

from __future__ import annotations

import dataclasses
import difflib
import enum
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import ConfigDict, Field

from steadyhand_runtime.clock import NS_PER_S
from steadyhand_runtime.sim.servos import BAUDS, AfterSilent, VirtualChain, VirtualServo

MAX_REQUEST_BYTES = 4096
BaudRate = Literal[1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400]


class FaultError(Exception):
    """A request that cannot be carried out; the message names the fix."""


class ChainAction(str, enum.Enum):
    """What can happen to the chain as a whole."""

    AFTER_SILENT = "after_silent"
    UNPLUG = "unplug"
    PLUG = "plug"
    POWER_CYCLE = "power_cycle"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class ServoFault:
    """What happens to one servo; `servo` counts along the chain from 1, whatever the ids are. None changes nothing."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    servo: Annotated[int, Field(ge=1, le=253)]
    silent: bool | None = None
    corrupt_replies: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    late_s: Annotated[float, Field(ge=0, le=10)] | None = None
    late_replies: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    alarms: Annotated[int, Field(ge=0, le=255)] | None = None
    overload: bool | None = None
    voltage_v: Annotated[float, Field(ge=0, le=25)] | None = None
    temperature_c: Annotated[float, Field(ge=0, le=200)] | None = None
    id: Annotated[int, Field(ge=0, le=253)] | None = None
    baud: BaudRate | None = None
    model_number: Annotated[int, Field(ge=0, le=65535)] | None = None
    firmware: tuple[Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]] | None = None
    place_ticks: Annotated[int, Field(ge=-32767, le=32767)] | None = None
    blocked: bool | None = None
    power_cycle: Literal[True] | None = None


@dataclass(frozen=True, slots=True)
class ChainFault:
    """What happens to the whole chain; `value` belongs to `after_silent` alone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    chain: ChainAction
    value: AfterSilent | None = None


Fault = ServoFault | ChainFault
_OBJECT: pydantic.TypeAdapter[dict[str, Any]] = pydantic.TypeAdapter(dict[str, Any])
_SERVO: pydantic.TypeAdapter[Fault] = pydantic.TypeAdapter(ServoFault)
_CHAIN: pydantic.TypeAdapter[Fault] = pydantic.TypeAdapter(ChainFault)


@dataclass(frozen=True, slots=True)
class ServoState:
    """One servo as it is now. `raw_ticks` is the joint's own angle, `registers` the memory in hexadecimal."""

    servo: int
    id: int
    baud: int
    torque_on: bool
    torque_share: float
    raw_ticks: int
    present_ticks: int
    goal_ticks: int
    temperature_c: int
    voltage_v: float
    alarms: int
    silent: bool
    registers: str


def parse(line: bytes) -> Fault:
    """One request from one line of JSON. Raises FaultError naming what is wrong with it."""
    if len(line) > MAX_REQUEST_BYTES:
        raise FaultError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
    try:
        kind = _kind_of(_OBJECT.validate_json(line))
        fault = (_SERVO if kind is ServoFault else _CHAIN).validate_json(line, strict=True)
    except pydantic.ValidationError as error:
        raise FaultError("; ".join(_explain(e["loc"], e["msg"]) for e in error.errors(include_url=False))) from None
    _check_complete(fault)
    return fault


def strike(chain: VirtualChain, fault: ServoFault, now_ns: int) -> None:
    """Let it happen. Raises FaultError when it cannot, with nothing changed by what comes after the culprit."""
    if fault.servo > len(chain.servos):
        raise FaultError(f"servo {fault.servo}: the chain has servos 1..{len(chain.servos)}")
    servo = chain.servos[fault.servo - 1]
    chain.refresh(now_ns)
    _move(chain, fault)
    _answer_badly(servo, fault)
    _measure_wrongly(servo, fault)
    _become(servo, fault)
    chain.refresh(now_ns)


def states(chain: VirtualChain, now_ns: int) -> list[ServoState]:
    """Every servo as it is now."""
    chain.refresh(now_ns)
    return [_state(index, servo) for index, servo in enumerate(chain.servos, 1)]


def _kind_of(data: dict[str, Any]) -> type[ServoFault] | type[ChainFault]:
    if ("servo" in data) == ("chain" in data):
        raise FaultError('a request names either a "servo", counted from 1, or an action of the "chain"')
    kind = ServoFault if "servo" in data else ChainFault
    known = [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise FaultError(f"unknown {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {known}"))
    return kind


def _check_complete(fault: Fault) -> None:
    if isinstance(fault, ServoFault):
        if all(getattr(fault, f.name) is None for f in dataclasses.fields(fault)[1:]):
            raise FaultError(f'servo {fault.servo}: what shall happen to it? For example {{"silent": true}}')
    elif (fault.chain is ChainAction.AFTER_SILENT) != (fault.value is not None):
        raise FaultError('"value" ("answer" or "mute") belongs to "after_silent", and only to it')


def _explain(where: tuple[int | str, ...], problem: str) -> str:
    return f"{'.'.join(map(str, where))}: {problem}" if where else problem


def _move(chain: VirtualChain, fault: ServoFault) -> None:
    try:
        if fault.blocked is not None:
            chain.block(fault.servo - 1, fault.blocked)
        if fault.place_ticks is not None:
            chain.place(fault.servo - 1, fault.place_ticks)
    except ValueError as error:
        raise FaultError(str(error)) from None


def _answer_badly(servo: VirtualServo, fault: ServoFault) -> None:
    if fault.silent is not None:
        servo.silent = fault.silent
    if fault.corrupt_replies is not None:
        servo.corrupt_replies = fault.corrupt_replies
    if fault.late_s is not None:
        servo.late_ns, servo.late_replies = round(fault.late_s * NS_PER_S), -1
    if fault.late_replies is not None:
        servo.late_replies = fault.late_replies


def _measure_wrongly(servo: VirtualServo, fault: ServoFault) -> None:
    if fault.alarms is not None:
        servo.forced_alarms = fault.alarms
    if fault.voltage_v is not None:
        servo.voltage_v = fault.voltage_v
    if fault.temperature_c is not None:
        servo.temperature_c = fault.temperature_c
    if fault.overload is not None:
        if fault.overload:
            servo.trip_overload()
        else:
            servo.release()


def _become(servo: VirtualServo, fault: ServoFault) -> None:
    """What is a fact of the servo and outlasts its power."""
    if fault.id is not None:
        servo.eprom.burn("id", fault.id)
    if fault.baud is not None:
        servo.eprom.burn("baud_rate", BAUDS.index(fault.baud))
    if fault.model_number is not None:
        servo.eprom.burn("model_number", fault.model_number)
    if fault.firmware is not None:
        servo.eprom.burn("firmware_major", fault.firmware[0])
        servo.eprom.burn("firmware_minor", fault.firmware[1])
    if fault.power_cycle:
        servo.power_cycle()


def _state(index: int, servo: VirtualServo) -> ServoState:
    return ServoState(
        servo=index,
        id=servo.id,
        baud=servo.baud,
        torque_on=servo.torque_on,
        torque_share=servo.torque_share(),
        raw_ticks=servo.raw_ticks,
        present_ticks=servo.present_ticks,
        goal_ticks=servo.goal_ticks(),
        temperature_c=servo.memory[63],
        voltage_v=servo.voltage_v,
        alarms=servo.alarms,
        silent=servo.silent,
        registers=servo.memory.hex(),
    )
