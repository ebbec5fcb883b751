"""Recordings run again: a driver that notes what it was told, and one that does it again on the recorded replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_runtime.bus.driver import MARGIN_NS, Driver, Reading
from steadyhand_runtime.bus.recording import Event, Kind, Recording, RecordingTransport, Sink
from steadyhand_runtime.bus.traffic import describe
from steadyhand_runtime.bus.transport import BusError, Transport
from steadyhand_runtime.clock import Clock, ManualClock

F64 = npt.NDArray[np.float64]

_CALLS = (Kind.CONNECT, Kind.CYCLE)


class RecordedDriver(Driver):
    """A driver that notes each call of `connect` and `cycle`, so that a recording of its port can be run again."""

    def __init__(
        self,
        transport: Transport,
        arm: Arm,
        calibration: Calibration,
        clock: Clock,
        sink: Sink,
        baud: int = 1_000_000,
        slow_every: int = 20,
    ) -> None:
        """`transport` is an ordinary one; the driver's is a RecordingTransport around it, with the same sink."""
        super().__init__(RecordingTransport(transport, clock, sink), arm, calibration, clock, baud, slow_every)
        self._sink = sink
        self._within = False

    def attach(self, transport: Transport) -> None:
        super().attach(RecordingTransport(transport, self._clock, self._sink))

    def connect(self) -> None:
        with self._noted(Kind.CONNECT, b"", 0):
            super().connect()

    def cycle(self, goal_rad: F64 | None, slow: bool = False, margin_ns: int = MARGIN_NS) -> Reading:
        goal = b"" if goal_rad is None else np.asarray(goal_rad, "<f8").tobytes()
        with self._noted(Kind.CYCLE, goal, margin_ns):
            return super().cycle(goal_rad, slow, margin_ns)

    @contextmanager
    def _noted(self, kind: Kind, data: bytes, asked: int) -> Iterator[None]:
        """Note a call from outside; what it calls in turn happens by itself when it is run again."""
        outermost, self._within = not self._within, True
        if outermost:
            self._sink.add(Event(kind, self._clock.now_ns(), data, asked))
        try:
            yield
        finally:
            self._within = not outermost


class ReplayEnded(Exception):
    """The recording holds nothing more; raised where the driver asks on."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing the driver did that it had not done then. `at` counts events from 0."""

    at: int
    stamp_ns: int
    recorded: str
    now: str

    def __str__(self) -> str:
        return f"event {self.at}: the recording has {self.recorded}, the driver now does {self.now}"


class ReplayDiffers(Exception):
    """The driver left the recorded conversation."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


class ReplayTransport:
    """Answers a driver with the recorded replies, and moves an injected clock to the recorded stamps."""

    def __init__(self, recording: Recording, clock: ManualClock) -> None:
        self._events = tuple(e for e in recording.events if e.kind is not Kind.LOST)
        self._clock = clock
        self.at = 0

    def next_call(self) -> Event | None:
        """What the driver was told next, at the time it was; None at the end. Raises ReplayDiffers."""
        event = self._event()
        if event is None:
            return None
        if event.kind not in _CALLS:
            raise ReplayDiffers(Difference(self.at, event.stamp_ns, describe(event), "nothing more in this call"))
        self.at += 1
        self._clock.sleep_until_ns(event.stamp_ns)
        return event

    def write(self, data: bytes | bytearray) -> None:
        event = self._next(Kind.WRITE, lambda: f"write {bytes(data).hex(' ')}", bytes(data))
        self._clock.sleep_until_ns(event.stamp_ns)
        self._raise_if_lost()

    def read(self, n: int, deadline_ns: int) -> bytes:
        event = self._next(Kind.READ, lambda: f"read {n} bytes", asked=n)
        self._clock.sleep_until_ns(event.stamp_ns)
        return event.data

    def drain(self) -> int:
        event = self._next(Kind.DRAIN, lambda: "drain")
        self._clock.sleep_until_ns(event.stamp_ns)
        return int(event.data)

    def close(self) -> None:
        pass

    def _event(self) -> Event | None:
        return self._events[self.at] if self.at < len(self._events) else None

    def _next(self, kind: Kind, now: Callable[[], str], data: bytes | None = None, asked: int = 0) -> Event:
        event = self._event()
        if event is None:
            raise ReplayEnded
        if event.kind is Kind.PORT_LOST and kind is not Kind.WRITE:
            self._raise_if_lost()
        if event.kind is not kind or event.asked != asked or (data is not None and event.data != data):
            raise ReplayDiffers(Difference(self.at, event.stamp_ns, describe(event), now()))
        self.at += 1
        return event

    def _raise_if_lost(self) -> None:
        event = self._event()
        if event is not None and event.kind is Kind.PORT_LOST:
            self.at += 1
            self._clock.sleep_until_ns(event.stamp_ns)
            raise BusError(event.data.decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Rerun:
    """What the driver made of a recording: its readings in order, and why it stopped before the end, if it did."""

    readings: tuple[Reading, ...]
    difference: Difference | None
    error: str


def rerun(recording: Recording, arm: Arm, calibration: Calibration, slow_every: int = 20) -> Rerun:
    """Let a driver connect and cycle as it was told then, on the replies it got then. `slow_every` is its own of then.

    A recording that is not whole begins in the middle of a conversation, where no driver can join: nothing is run.
    Stamps are the recorder's, which is microseconds off the driver's own; on an injected clock they are the same.
    """
    if not recording.header.whole:
        return Rerun((), None, "it begins in the middle of a conversation, so no driver can take part")
    clock = ManualClock(recording.header.start_ns)
    transport = ReplayTransport(recording, clock)
    driver = Driver(transport, arm, calibration, clock, recording.header.baud, slow_every=slow_every)
    readings: list[Reading] = []
    try:
        while (call := transport.next_call()) is not None:
            if call.kind is Kind.CONNECT:
                driver.connect()
            else:
                goal = np.frombuffer(call.data, "<f8") if call.data else None
                readings.append(driver.cycle(goal, margin_ns=call.asked))
    except ReplayEnded:
        return Rerun(tuple(readings), None, "")
    except ReplayDiffers as differs:
        return Rerun(tuple(readings), differs.difference, "")
    except BusError as error:
        return Rerun(tuple(readings), None, str(error))
    return Rerun(tuple(readings), None, "")
