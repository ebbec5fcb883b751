"""Record the bus's raw traffic to a file, and replay such a file: decoded, and through the driver again."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models.cli import UserError
from steadyhand_runtime.bus import arguments, ports
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.recording import (
    SUFFIX,
    Header,
    Recording,
    RecordingError,
    RecordingFile,
    read_recording,
)
from steadyhand_runtime.bus.replay import RecordedDriver, Rerun, rerun
from steadyhand_runtime.bus.traffic import Exchange, conversation
from steadyhand_runtime.bus.transport import BusError, SerialTransport
from steadyhand_runtime.clock import NS_PER_S, Clock, MonotonicClock, Rate


@dataclass(frozen=True)
class RecordSettings(arguments.ArmSettings):
    """Read every servo at a steady rate, energising none, and keep every byte.

    Example: steadyhand bus record --port /dev/ttyACM0 --out fault.bus --seconds 60
    """

    out: Path = Path(f"recording{SUFFIX}")  # the file to write; an existing one is replaced
    rate_hz: Annotated[float, Field(gt=0, le=500)] = 100.0
    cycles: Annotated[int, Field(ge=0)] = 0  # stop after so many; 0: until --seconds or Ctrl-C
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0  # stop after so long; 0: until --cycles or Ctrl-C


@dataclass(frozen=True)
class ReplaySettings:
    """Show a recorded conversation and run the driver on it again.

    Example: steadyhand bus replay fault.bus --decode
    """

    recording: tyro.conf.Positional[Path]  # written by `steadyhand bus record`, or by the runtime when a fault happened
    decode: bool = False  # every exchange, not only those with something odd about them
    json: bool = False  # one JSON object for programs instead of tables


class _Interrupt:
    """Turns the first Ctrl-C into a request, so that the file is closed whole; a second one interrupts."""

    def __init__(self) -> None:
        self.raised = False
        self._before: Any = None

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main_record(argv: Sequence[str]) -> int:
    """`steadyhand bus record`: 0 when done, 130 after Ctrl-C; the file is whole either way."""
    chosen = arguments.parse(RecordSettings, argv, "record", _doc(RecordSettings))
    clock = MonotonicClock()
    try:
        with _Interrupt() as interrupt:
            done = record(chosen, clock, interrupt)
    except (BusError, RecordingError) as error:
        raise UserError(str(error)) from None
    dropped = f", {done.lost_events} events lost to a slow disk" if done.lost_events else ""
    print(f"{chosen.out}: {done.cycles} cycles, {done.failed_reads} with a reply missing or damaged{dropped}")
    print(f"`steadyhand bus replay {chosen.out}` shows it", file=sys.stderr)
    return 130 if interrupt.raised else 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a recording."""

    cycles: int
    failed_reads: int
    lost_events: int


def record(chosen: RecordSettings, clock: Clock, interrupt: _Interrupt) -> Recorded:
    """Connect and cycle until the end.

    Raises BusError, RecordingError or UserError.
    A connection that fails is in the file too: it may be what the recording is for.
    """
    arm = chosen.load()
    name = ports.choose(chosen.port)
    port = SerialTransport(name, chosen.baud, clock)
    try:
        header = Header(name, chosen.baud, arm.name, time.time(), clock.now_ns(), whole=True)
        out = RecordingFile(chosen.out, header)
        try:
            calibration = Calibration.default(len(arm.joints))
            driver = RecordedDriver(port, arm, calibration, clock, out, chosen.baud)
            driver.connect()
            cycles = _cycle(driver, chosen, clock, interrupt)
        finally:
            out.close()
    finally:
        port.close()
    return Recorded(cycles, driver.failed_reads, out.lost)


def _cycle(driver: Driver, chosen: RecordSettings, clock: Clock, interrupt: _Interrupt) -> int:
    """Read-only cycles until the end; how many."""
    rate = Rate(clock, chosen.rate_hz)
    end_ns = clock.now_ns() + round(chosen.seconds * NS_PER_S) if chosen.seconds else None
    cycles = 0
    while not interrupt.raised and not (chosen.cycles and cycles >= chosen.cycles):
        due_ns = rate.wait()
        if end_ns is not None and due_ns >= end_ns:
            break
        driver.cycle(None)
        cycles += 1
    return cycles


def main_replay(argv: Sequence[str]) -> int:
    """`steadyhand bus replay`: 0 when the driver did as it did then, 3 when it did something else."""
    chosen = tyro.cli(
        ReplaySettings,
        args=list(argv),
        prog="steadyhand bus replay",
        description=_doc(ReplaySettings),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        recording = read_recording(chosen.recording)
    except RecordingError as error:
        raise UserError(str(error)) from None
    try:
        arm = load_arm(recording.header.arm)
    except ValueError as error:
        raise UserError(f"{chosen.recording}: {error}") from None
    again = rerun(recording, arm, Calibration.default(len(arm.joints)))
    exchanges = list(conversation(recording))
    if chosen.json:
        print(json.dumps(_report(recording, exchanges, again)))
    else:
        _show(recording, exchanges, again, chosen.decode)
    return 3 if again.difference is not None else 0


def _report(recording: Recording, exchanges: list[Exchange], again: Rerun) -> dict[str, Any]:
    return {
        "header": asdict(recording.header),
        "torn": recording.torn,
        "exchanges": [_exchange_json(e) for e in exchanges],
        "readings": [
            {
                "stamp_ns": r.stamp_ns,
                "position_rad": np.round(r.position_rad, 6).tolist(),
                "valid": r.valid.tolist(),
                "age_s": np.round(r.age_s, 6).tolist(),
                "alarms": r.alarms.tolist(),
            }
            for r in again.readings
        ],
        "difference": asdict(again.difference) if again.difference else None,
        "error": again.error,
    }


def _exchange_json(exchange: Exchange) -> dict[str, Any]:
    replies = [{"id": f.id, "alarms": f.code, "data": f.params.hex()} for f in exchange.replies]
    return {**asdict(exchange), "replies": replies}


def _show(recording: Recording, exchanges: list[Exchange], again: Rerun, everything: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    header = recording.header
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.start_unix_s))
    odd = [e for e in exchanges if e.troubled]
    console.print(f"{header.arm} on {header.port} at {header.baud} baud, from {when}", highlight=False)
    console.print(f"{len(exchanges)} exchanges, {len(odd)} with something odd about them", highlight=False)
    if recording.torn:
        console.print("the file ends within an event: the recorder was killed or the disk was full")
    shown = exchanges if everything else odd
    if shown:
        console.print(_table(shown))
    console.print(_verdict(again), highlight=False)


def _table(exchanges: list[Exchange]) -> Table:
    table = Table("at s", "took ms", "request", "answered", "missing", "remarks")
    for e in exchanges:
        table.add_row(
            f"{e.at_s:.4f}",
            f"{e.took_s * 1e3:.2f}",
            e.request,
            " ".join(str(f.id) for f in e.replies),
            " ".join(map(str, e.missing)),
            "; ".join((*e.notes, *e.alarms)),
        )
    return table


def _verdict(again: Rerun) -> str:
    if again.difference is not None:
        return f"driver run again: {len(again.readings)} readings, then it did something else: {again.difference}"
    if again.error:
        return f"driver run again: {len(again.readings)} readings, then: {again.error}"
    return f"driver run again: {len(again.readings)} readings, every request as recorded"


def _doc(cls: type) -> str:
    return cls.__doc__ or ""
