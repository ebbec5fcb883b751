"""Virtual servos alone: six of them on a pty, with joints that follow their goals and nothing around them."""

from __future__ import annotations

import enum
import gc
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steadyhand_models import settings
from steadyhand_models.cli import UserError
from steadyhand_runtime.clock import NS_PER_S, Clock, MonotonicClock
from steadyhand_runtime.sim.fault_socket import FaultSocket
from steadyhand_runtime.sim.faults import BaudRate, FaultError
from steadyhand_runtime.sim.plant import FollowingPlant
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import AfterSilent, VirtualChain

NO_LOAD_SPEED_RAD_S = 4.7  # 7.4 V, gear 1/345
FACTORY_REGISTERS = {  # what was found on new servos; position P, D, I and the rest are the table's defaults
    "return_delay": 250,
    "homing_offset": 85,
    "phase": 28,
}
DESCRIPTION = """Virtual servos alone, on a pty: prints the port's name and serves it until interrupted.

Examples:
  steadyhand sim servos --link /tmp/arm
  steadyhand sim servos --link /tmp/arm --control /tmp/faults    then: steadyhand sim fault --control /tmp/faults ...
  steadyhand sim servos --factory true                           one servo after another, as from the box
  steadyhand sim servos --usb-frame-s 0.001 --gap-s 0.0001 --after-silent mute"""


class Variant(enum.Enum):
    """The servo's two variants by their supply."""

    VOLTS_7_4 = "7.4"
    VOLTS_12 = "12"


MAX_VOLTAGE_DV = {Variant.VOLTS_7_4: 80, Variant.VOLTS_12: 140}  # register 14, 0.1 V


@dataclass(frozen=True)
class ServosSettings:
    """Virtual servos on a serial port."""

    link: Path | None = None  # a name for the port that stays the same
    control: Path | None = None  # socket on which faults are asked for
    baud: BaudRate = 1_000_000  # what every servo is set to
    ids: tuple[Annotated[int, Field(ge=0, le=253)], ...] = ()  # along the chain, may repeat; empty: 1 2 3 4 5 6
    gap_s: Annotated[float, Field(ge=0, le=0.01)] = 50e-6  # from a request's end, or a reply's, to the next reply
    usb_frame_s: Annotated[float, Field(ge=0, le=0.01)] = 0.0  # replies wait for such a frame; full speed: 0.001
    after_silent: AfterSilent = AfterSilent.ANSWER  # servos of a sync read that come after a silent one
    volts: Variant = Variant.VOLTS_7_4  # the servos' variant, and their supply
    motion_delay_s: Annotated[float, Field(ge=0, le=1)] = 0.1  # from a goal to the motion; 0.095 to 0.127 on real ones
    factory: bool = False  # registers, and without --ids also the ids, as new servos come
    priority: Annotated[int, Field(ge=0, le=99)] = 0  # real-time priority of the port's thread, where that is allowed
    spin_s: Annotated[float, Field(ge=0, le=0.001)] = 0.0  # do not sleep for that long before and after a reply
    compensate: bool = False  # measure the pty's own delay at the start and deliver replies earlier by it


def build_chain(chosen: ServosSettings, clock: Clock) -> VirtualChain:
    """The servos and joints that the settings describe. Raises UserError for a chain that is too long."""
    ids = chosen.ids or ((1,) * 6 if chosen.factory else (1, 2, 3, 4, 5, 6))
    if len(ids) > 32:
        raise UserError(f"{len(ids)} servos: at most 32 fit on one wire")
    plant = FollowingPlant(clock, len(ids), chosen.motion_delay_s, NO_LOAD_SPEED_RAD_S)
    chain = VirtualChain(plant, ids, chosen.baud, round(chosen.gap_s * NS_PER_S), chosen.after_silent)
    for servo in chain.servos:
        servo.voltage_v = float(chosen.volts.value)
        servo.eprom.burn("max_voltage", MAX_VOLTAGE_DV[chosen.volts])
        for name, value in FACTORY_REGISTERS.items() if chosen.factory else ():
            servo.eprom.burn(name, value)
    return chain


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim servos`: print the port's name and serve it until interrupted."""
    chosen = settings.parse_command_line(ServosSettings, argv, "steadyhand sim servos", DESCRIPTION)
    # Blocked before the port's thread starts, so that the signal waits for sigwait whichever thread it meets.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    clock = MonotonicClock()
    with ExitStack() as opened:
        port = opened.enter_context(
            PtyPort(
                build_chain(chosen, clock),
                chosen.link,
                clock,
                chosen.priority,
                round(chosen.usb_frame_s * NS_PER_S),
                round(chosen.spin_s * NS_PER_S),
                chosen.compensate,
            )
        )
        if chosen.control is not None:
            try:
                opened.enter_context(FaultSocket(port, chosen.control, clock))
            except FaultError as error:
                raise UserError(str(error)) from None
        gc.freeze()  # what start-up left behind must not be searched between a request and its reply
        print(port.path, flush=True)
        signal.sigwait(signals)
    return 0
