"""Recordings of the bus's raw traffic: the file format, a transport that records, and a ring for what led to a fault.

A recording is a stream of msgpack objects, appended to and never rewritten. The first is the header, a map:
`steadyhand_bus_recording` (version, 1), `port`, `baud`, `arm`, `start_unix_s`, `start_ns` (monotonic) and `whole`
(it begins with the driver's first request). Every other is an event, an array `[kind, after_ns, data, asked]`:
`after_ns` is the time since the event before it (the first: since `start_ns`), `asked` how many bytes a read wanted,
else 0. `Kind` says what the data is.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgpack

from steadyhand_runtime.bus.transport import BusError, Transport
from steadyhand_runtime.clock import NS_PER_S, Clock

VERSION = 1
SUFFIX = ".bus"
MAX_FILE_BYTES = 256 << 20  # an hour of six servos at 500 Hz is about 200 MB
MAX_DATA_BYTES = 4096
MAX_TEXT_CHARS = 256
MAX_ASKED = 1 << 40
MAX_PAUSE_NS = 24 * 3600 * NS_PER_S
MAX_WAITING = 200_000  # events that a stuck disk may hold up before they are dropped and counted
FLUSH_S = 0.25


class RecordingError(Exception):
    """A recording that cannot be read or written; the message names the fix."""


class Kind(enum.IntEnum):
    """What happened on the port, and what the driver was told to do.

    The data of DRAIN and LOST is a decimal count, that of PORT_LOST the error's text. CYCLE holds the goal in rad as
    little-endian float64, nothing without a goal, and the margin in ns where a read says what it asked.
    """

    WRITE = 0
    READ = 1
    DRAIN = 2
    PORT_LOST = 3
    LOST = 4  # events that the recorder had to drop
    CONNECT = 5
    CYCLE = 6


class Event(NamedTuple):
    """One thing that happened: writes and calls at the moment they began, anything else when it was over."""

    kind: Kind
    stamp_ns: int
    data: bytes
    asked: int


@dataclass(frozen=True, slots=True)
class Header:
    """Where a recording comes from. `start_ns` is the recorder's monotonic clock at `start_unix_s`."""

    port: str
    baud: int
    arm: str
    start_unix_s: float
    start_ns: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that was read. `torn` means that the file ends within an event, as after a power cut."""

    header: Header
    events: tuple[Event, ...]
    torn: bool


class Sink(Protocol):
    """Takes events in order, within microseconds."""

    def add(self, event: Event) -> None: ...


class RecordingTransport:
    """Any transport, with everything that passes through it given to a sink. Errors are recorded and passed on."""

    def __init__(self, inner: Transport, clock: Clock, sink: Sink) -> None:
        self._inner = inner
        self._now_ns = clock.now_ns
        self._add = sink.add

    def write(self, data: bytes | bytearray) -> None:
        self._add(Event(Kind.WRITE, self._now_ns(), bytes(data), 0))  # a copy: drivers reuse their buffers
        try:
            self._inner.write(data)
        except BusError as error:
            self._lost_port(error)
            raise

    def read(self, n: int, deadline_ns: int) -> bytes:
        try:
            data = self._inner.read(n, deadline_ns)
        except BusError as error:
            self._lost_port(error)
            raise
        self._add(Event(Kind.READ, self._now_ns(), bytes(data), n))
        return data

    def drain(self) -> int:
        try:
            dropped = self._inner.drain()
        except BusError as error:
            self._lost_port(error)
            raise
        self._add(Event(Kind.DRAIN, self._now_ns(), b"%d" % dropped, 0))
        return dropped

    def close(self) -> None:
        self._inner.close()

    def _lost_port(self, error: BusError) -> None:
        self._add(Event(Kind.PORT_LOST, self._now_ns(), str(error).encode()[:MAX_DATA_BYTES], 0))


class RecordingFile:
    """A sink that appends to a file from a thread of its own, so that no cycle waits for the disk. Use `close`."""

    def __init__(self, path: Path, header: Header) -> None:
        """Raises RecordingError where the file cannot be written; an existing one is replaced."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("wb")
            self._file.write(encode_header(header))
            self._file.flush()
        except OSError as error:
            raise RecordingError(f"{path}: cannot be written: {error.strerror}; give another file") from None
        self.path = path
        self.lost = 0
        self.failure = ""
        self._last_ns = header.start_ns
        self._reported = 0
        self._waiting: deque[Event] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="bus-recording", daemon=True)
        self._thread.start()

    def add(self, event: Event) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(event)
        else:
            self.lost += 1

    def close(self) -> None:
        """Write what is left. Raises RecordingError when the disk had refused some of it."""
        self._stop.set()
        self._thread.join()
        self._write_waiting()
        self._file.close()
        if self.failure:
            raise RecordingError(f"{self.path}: incomplete: {self.failure}; free some space and record again")

    def _serve(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._write_waiting()

    def _write_waiting(self) -> None:
        events = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if self.lost > self._reported and events:
            count = self.lost - self._reported
            self._reported = self.lost
            events.append(Event(Kind.LOST, events[-1].stamp_ns, b"%d" % count, 0))
        if not events or self.failure:
            return
        try:
            self._file.write(encode_events(events, self._last_ns))
            self._file.flush()
        except OSError as error:
            self.failure = error.strerror or str(error)
        self._last_ns = events[-1].stamp_ns


class FlightRecorder:
    """A sink that keeps the last seconds in memory; `save` writes them aside, from a thread of its own.

    What it holds begins in the middle of a conversation, so it can be read and decoded, but not run again. Bounded by
    `keep_s` and `max_events`; at most `max_files` are ever written, the first faults being the ones worth reading.
    """

    def __init__(
        self,
        folder: Path,
        port: str,
        baud: int,
        arm: str,
        keep_s: float = 10.0,
        max_events: int = 50_000,
        max_files: int = 20,
    ) -> None:
        self._folder, self._port, self._baud, self._arm = folder, port, baud, arm
        self._keep_ns = round(keep_s * NS_PER_S)
        self._ring: deque[Event] = deque(maxlen=max_events)
        self._files_left = max_files
        self._threads: list[threading.Thread] = []
        self.failure = ""

    def add(self, event: Event) -> None:
        ring = self._ring
        ring.append(event)
        oldest_ns = event.stamp_ns - self._keep_ns
        while ring[0].stamp_ns < oldest_ns:
            ring.popleft()

    def save(self, reason: str) -> Path | None:
        """Write what is held to `<folder>/<reason>-<UTC time>.bus`; its path, or None with nothing to write.

        Returns at once. `failure` says why the last write failed, `wait` waits for it.
        """
        if not self._ring or not self._files_left:
            return None
        self._files_left -= 1
        events = list(self._ring)
        stamp_s = time.time()
        # The clock of the stamps has no zero: the newest event is now.
        start_unix_s = stamp_s - (events[-1].stamp_ns - events[0].stamp_ns) / NS_PER_S
        header = Header(self._port, self._baud, self._arm, start_unix_s, events[0].stamp_ns, False)
        path = self._folder / f"{_file_name(reason)}-{_utc(stamp_s)}-{self._files_left}{SUFFIX}"
        thread = threading.Thread(target=self._write, args=(path, header, events), name="bus-flight", daemon=True)
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        thread.start()
        return path

    def wait(self) -> None:
        """Until everything saved so far is on the disk, or has failed."""
        for thread in self._threads:
            thread.join()

    def _write(self, path: Path, header: Header, events: list[Event]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_header(header) + encode_events(events, header.start_ns))
        except OSError as error:
            self.failure = f"{path}: cannot be written: {error.strerror}"


def encode_header(header: Header) -> bytes:
    fields: dict[str, Any] = {
        "steadyhand_bus_recording": VERSION,
        "port": header.port[:MAX_TEXT_CHARS],
        "baud": header.baud,
        "arm": header.arm[:MAX_TEXT_CHARS],
        "start_unix_s": header.start_unix_s,
        "start_ns": header.start_ns,
        "whole": header.whole,
    }
    return bytes(msgpack.packb(fields))


def encode_events(events: list[Event], last_ns: int) -> bytes:
    """The events as the file holds them; `last_ns` is the stamp of the one before. Longer data is cut."""
    packer = msgpack.Packer(autoreset=False)
    for event in events:
        packer.pack((int(event.kind), event.stamp_ns - last_ns, event.data[:MAX_DATA_BYTES], event.asked))
        last_ns = event.stamp_ns
    return bytes(packer.bytes())


def read_recording(path: Path) -> Recording:
    """A recording from its file. Raises RecordingError naming what is wrong with it, and where."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RecordingError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MB: record a shorter time with --seconds")
        data = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return decode_recording(data)
    except RecordingError as error:
        raise RecordingError(f"{path}: {error}") from None


def decode_recording(data: bytes) -> Recording:
    """A recording from its bytes. Raises RecordingError for anything that a recorder does not write."""
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(len(data), 1),
        max_bin_len=MAX_DATA_BYTES,
        max_str_len=MAX_TEXT_CHARS * 4,
        max_array_len=4,
        max_map_len=7,
        max_ext_len=0,
    )
    unpacker.feed(data)
    objects = _objects(unpacker)
    first, end = next(objects, (None, 0))
    header = _header(first)
    events: list[Event] = []
    stamp_ns = header.start_ns
    for number, (item, item_end) in enumerate(objects, 1):
        event = _event(item, stamp_ns, number)
        stamp_ns, end = event.stamp_ns, item_end
        events.append(event)
    return Recording(header, tuple(events), torn=end < len(data))


def _objects(unpacker: msgpack.Unpacker) -> Iterator[tuple[Any, int]]:
    """Each complete object and where it ends."""
    try:
        for item in unpacker:
            yield item, unpacker.tell()
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RecordingError(f"damaged at byte {unpacker.tell()}: {error or type(error).__name__}") from None


def _header(item: Any) -> Header:
    if not isinstance(item, dict) or "steadyhand_bus_recording" not in item:
        raise RecordingError("not a recording of `steadyhand bus record`")
    version = item.pop("steadyhand_bus_recording")
    if version != VERSION:
        raise RecordingError(f"written as version {version!r}, this program reads version {VERSION}")
    kinds: dict[str, type] = {
        "port": str,
        "baud": int,
        "arm": str,
        "start_unix_s": float,
        "start_ns": int,
        "whole": bool,
    }
    if set(item) != set(kinds) or any(type(item[name]) is not kind for name, kind in kinds.items()):
        raise RecordingError("its header lacks a field or has a wrong one")
    header = Header(**item)
    if not 0 < header.baud <= 10_000_000 or not 0 <= header.start_ns < 1 << 62:
        raise RecordingError(f"its header is impossible: baud {header.baud}, start_ns {header.start_ns}")
    return header


def _event(item: Any, last_ns: int, number: int) -> Event:
    if type(item) is not list or [type(part) for part in item] != [int, int, bytes, int]:
        raise RecordingError(f"event {number} is not [kind, after_ns, data, asked]")
    kind, after_ns, data, asked = item
    if kind not in Kind.__members__.values() or not 0 <= after_ns <= MAX_PAUSE_NS or not 0 <= asked <= MAX_ASKED:
        raise RecordingError(f"event {number} is impossible: kind {kind}, after_ns {after_ns}, asked {asked}")
    if kind in (Kind.DRAIN, Kind.LOST) and not (data.isdigit() and len(data) < 16):
        raise RecordingError(f"event {number} holds no count")
    if kind == Kind.CYCLE and len(data) % 8:
        raise RecordingError(f"event {number} holds no goal")
    return Event(Kind(kind), last_ns + after_ns, data, asked)


def _file_name(reason: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in reason.lower())[:60].strip("-") or "fault"


def _utc(unix_s: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(unix_s))
