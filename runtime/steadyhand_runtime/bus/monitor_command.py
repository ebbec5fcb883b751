"""Watch an arm's servos live, without ever energising them: from the port, or from the runtime that holds it."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import zmq
from pydantic import Field
from rich.console import Console
from rich.live import Live

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_firmware.lerobot import CalibrationError, load_calibration
from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import BusState
from steadyhand_runtime.bus import arguments, ports
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.monitor import View, as_json, as_table, view
from steadyhand_runtime.bus.reading import Reading
from steadyhand_runtime.bus.transport import BusError, SerialTransport
from steadyhand_runtime.clock import NS_PER_S, MonotonicClock, Rate
from steadyhand_runtime.config import socket_folder
from steadyhand_runtime.operator.channel import subscribe

SILENT_S = 2.0
SCREEN_S = 0.1
RATE_WINDOW = 100
_DESCRIPTION = """Watch an arm's servos live: position, load, current, temperature, voltage, errors and age.

Nothing is written, so torque stays as it is. When a runtime holds the port, its published state is shown instead.

Examples: steadyhand bus monitor --port /dev/ttyACM0
          steadyhand bus monitor --json --cycles 10"""


@dataclass(frozen=True)
class MonitorSettings(arguments.ArmSettings):
    """What to watch, and how."""

    json: bool = False  # one object per cycle on standard output instead of a table
    cycles: Annotated[int, Field(ge=0)] = 0  # end after so many; 0: until Ctrl-C
    rate: Annotated[float, Field(gt=0, le=500)] = 50.0  # cycles per second
    calibration: Path | None = None  # the arm's calibration file; empty: mid-turn is 0 rad
    run: Path = Path("runs/latest")  # the run of a runtime that holds the port
    sockets: str = ""  # folder of that runtime's socket files; empty: derived from the run folder


class Source(Protocol):
    """Something that looks at the servos; `notes` are what a person should know about them."""

    name: str
    notes: tuple[str, ...]

    def look(self) -> Reading | BusState:
        """The servos now. Raises BusError when they can no longer be seen."""
        ...

    def lost(self) -> Sequence[int | None]:
        """Replies lost so far, per joint, where that is known."""
        ...

    def close(self) -> None: ...


class PortSource:
    """Reads the servos itself. A servo that is missing or strange is a note; a bus without any is a BusError."""

    def __init__(self, driver: Driver, port: str) -> None:
        self.name = port
        self.notes: tuple[str, ...] = ()
        self._driver = driver
        try:
            driver.connect()
            self.notes = tuple(str(f) for f in driver.findings)
        except BusError as error:
            if not driver.cycle(None).valid.any():
                raise
            self.notes = (str(error),)

    def look(self) -> Reading:
        return self._driver.cycle(None)

    def lost(self) -> Sequence[int | None]:
        return [c.timeouts + c.checksum_errors for c in self._driver.counters()]

    def close(self) -> None:
        self._driver.close()


class RuntimeSource:
    """Hears what a runtime publishes about the servos."""

    def __init__(self, folder: Path, name: str, joints: int) -> None:
        self.name = name
        self._joints = joints
        self.notes: tuple[str, ...] = ()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = subscribe(self._context, folder, "bus.state")

    def look(self) -> BusState:
        """The newest state, waited for. Raises BusError when none comes or it is not one."""
        if not self._socket.poll(round(SILENT_S * 1000)):
            raise BusError(f"{self.name}: nothing heard for {SILENT_S:.0f} s: is it still running?")
        try:
            state = wire.decode(self._socket.recv(), BusState)
        except wire.WireError as error:
            raise BusError(f"{self.name}: speaks another version: {error}") from None
        self.notes = (f"fault: {state.fault}",) if state.fault else ()
        return state

    def lost(self) -> Sequence[int | None]:
        return [None] * self._joints

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def main(argv: Sequence[str]) -> int:
    """`steadyhand bus monitor`: until Ctrl-C, or for so many cycles."""
    chosen = arguments.parse(MonitorSettings, argv, "monitor", _DESCRIPTION)
    arm = chosen.load()
    try:
        calibration = load_calibration(chosen.calibration, arm) if chosen.calibration else Calibration.default()
    except CalibrationError as error:
        raise UserError(str(error)) from None
    with closing(open_source(chosen, arm, calibration)) as source:
        views = look_on(source, arm, calibration, chosen.rate, chosen.cycles)
        if chosen.json:
            for shown in views:
                print(as_json(shown), flush=True)
        else:
            _show(views, source)
    return 0


def open_source(chosen: MonitorSettings, arm: Arm, calibration: Calibration) -> Source:
    """The port, or the runtime that holds it. Raises BusError or UserError naming the fix."""
    port = ports.choose(chosen.port)
    clock = MonotonicClock()
    try:
        transport = SerialTransport(port, chosen.baud, clock)
    except BusError:
        runtime = _runtime(chosen, len(arm.joints)) if os.path.exists(port) else None
        if runtime is None:
            raise
        print(f"{port} is taken; showing what the {runtime.name} publishes", file=sys.stderr, flush=True)
        return runtime
    try:
        return PortSource(Driver(transport, arm, calibration, clock, chosen.baud), port)
    except BaseException:
        transport.close()
        raise


def look_on(source: Source, arm: Arm, calibration: Calibration, rate_hz: float, cycles: int) -> Iterator[View]:
    """Views at a fixed rate, `cycles` of them or, with 0, without end."""
    rate = Rate(MonotonicClock(), rate_hz)
    stamps_ns: deque[int] = deque(maxlen=RATE_WINDOW)
    while not cycles or rate.ticks < cycles:
        rate.wait()
        told = source.look()
        stamps_ns.append(told.stamp_ns)
        passed_ns = stamps_ns[-1] - stamps_ns[0]
        measured_hz = (len(stamps_ns) - 1) * NS_PER_S / passed_ns if passed_ns > 0 else 0.0
        yield view(told, arm, calibration, source.name, measured_hz, source.lost())


def _show(views: Iterator[View], source: Source) -> None:
    console = Console(highlight=False)
    drawn_ns = 0
    with Live(console=console, auto_refresh=False) as live:
        for shown in views:
            # A screen is drawn slower than servos are read; the last view is drawn when the display ends.
            live.update(as_table(shown, source.notes))
            if shown.stamp_ns - drawn_ns > SCREEN_S * NS_PER_S:
                drawn_ns = shown.stamp_ns
                live.refresh()


def _runtime(chosen: MonitorSettings, joints: int) -> RuntimeSource | None:
    """The runtime of the chosen run, if it speaks."""
    runtime = RuntimeSource(socket_folder(chosen.sockets, chosen.run), f"runtime of {chosen.run}", joints)
    try:
        runtime.look()
        return runtime
    except BusError:
        runtime.close()
        return None
