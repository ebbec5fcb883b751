"""Recorded traffic in words: who was asked what, who answered, and what was odd about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.protocol import Frame, Instruction
from steadyhand_runtime.bus.recording import Event, Kind, Recording
from steadyhand_runtime.clock import NS_PER_S

LISTENING_BYTES = 1024  # a read for more than any answer only listens for what comes late

_REGISTERS = {r.address: r.name for r in sts3215()}
_READS = {Instruction.READ, Instruction.SYNC_READ}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One write and everything until the next: who answered, who did not, and what was odd about it."""

    at_s: float  # since the recording began
    took_s: float  # to the end of the last read
    request: str
    replies: tuple[Frame, ...]
    missing: tuple[int, ...]  # ids that were asked and gave no sound answer
    alarms: tuple[str, ...]  # `id 3 overload`
    notes: tuple[str, ...]  # timeouts, damaged or foreign bytes, drained bytes, a lost port, a pause before

    @property
    def troubled(self) -> bool:
        return bool(self.missing or self.alarms or self.notes)


def conversation(recording: Recording, pause_s: float = 0.1) -> Iterator[Exchange]:
    """The recording as exchanges, in order; a pause is noted where nothing happened for longer than `pause_s`."""
    start_ns = recording.header.start_ns
    traffic = [e for e in recording.events if e.kind not in (Kind.CONNECT, Kind.CYCLE)]
    ended_ns = traffic[0].stamp_ns if traffic else start_ns
    for group in _groups(traffic):
        pause_ns = group[0].stamp_ns - ended_ns
        notes = [f"pause of {pause_ns / NS_PER_S:.3f} s before"] if pause_ns > pause_s * NS_PER_S else []
        yield _exchange(group, start_ns, notes)
        ended_ns = group[-1].stamp_ns


def _groups(events: list[Event]) -> Iterator[list[Event]]:
    group: list[Event] = []
    for event in events:
        if event.kind is Kind.WRITE and group:
            yield group
            group = []
        group.append(event)
    if group:
        yield group


def _exchange(group: list[Event], start_ns: int, notes: list[str]) -> Exchange:
    first = group[0]
    requests = protocol.split_frames(first.data)[0] if first.kind is Kind.WRITE else []
    received = b"".join(e.data for e in group if e.kind is Kind.READ)
    replies, rest = protocol.split_frames(received)
    asked = _asked(requests)
    answered = {f.id for f in replies}
    stray = len(received) - sum(len(f.params) + protocol.OVERHEAD_BYTES for f in replies)
    if stray:
        notes.append(f"{stray} damaged bytes" if not rest else f"{stray} bytes of an unfinished reply")
    foreign = [str(f.id) for f in replies if f.id not in asked]
    if foreign:
        notes.append(f"answers nobody asked for, from id {', '.join(foreign)}")
    reads = [e for e in group if e.kind is Kind.READ]
    missing = tuple(i for i in asked if reads and i not in answered)
    if missing:
        notes.append(f"timeout after {len(received)} of {reads[0].asked} bytes")
    notes += _mishaps(group)
    return Exchange(
        at_s=(first.stamp_ns - start_ns) / NS_PER_S,
        took_s=(reads[-1].stamp_ns - first.stamp_ns) / NS_PER_S if reads else 0.0,
        request="; ".join(map(describe_request, requests)) or describe(first),
        replies=tuple(replies),
        missing=missing,
        alarms=tuple(f"id {f.id} {name}" for f in replies for name in protocol.alarm_names(f.code)),
        notes=tuple(notes),
    )


def _mishaps(group: list[Event]) -> list[str]:
    found = []
    for event in group:
        if event.kind is Kind.READ and event.asked >= LISTENING_BYTES:
            found += [f"{len(event.data)} bytes came late"] if event.data else []
        elif event.kind is Kind.DRAIN and event.data != b"0":
            found.append(f"{int(event.data)} late bytes drained")
        elif event.kind is Kind.PORT_LOST:
            found.append(event.data.decode("utf-8", "replace"))
        elif event.kind is Kind.LOST:
            found.append(f"the recorder dropped {int(event.data)} events here")
    return found


def _asked(requests: list[Frame]) -> tuple[int, ...]:
    """Ids that owe an answer, in order."""
    ids: list[int] = []
    for frame in requests:
        if frame.code == Instruction.SYNC_READ:
            ids += frame.params[2:]
        elif frame.id != protocol.BROADCAST:
            ids.append(frame.id)
    return tuple(ids)


def describe(event: Event) -> str:
    """One event in words."""
    if event.kind is Kind.WRITE:
        return f"write {event.data.hex(' ')}"
    if event.kind is Kind.READ:
        return f"read {event.asked} bytes"
    return event.kind.name.lower().replace("_", " ")


def describe_request(frame: Frame) -> str:
    """An instruction in words: `sync_read present_position+6 of 1 2 3`."""
    try:
        name = Instruction(frame.code).name.lower()
    except ValueError:
        return f"instruction {frame.code:#04x} to {frame.id}"
    params = frame.params
    if frame.code == Instruction.SYNC_READ and len(params) > 2:
        return f"{name} {_register(params[0])}+{params[1]} of {' '.join(map(str, params[2:]))}"
    if frame.code == Instruction.SYNC_WRITE and len(params) > 2:
        values = " ".join(f"{i}={int.from_bytes(data, 'little')}" for i, data in _sync_values(frame))
        return f"{name} {_register(params[0])} {values}"
    if frame.code in _READS and len(params) == 2:
        return f"{name} {_register(params[0])}+{params[1]} of {frame.id}"
    if params:
        return f"{name} {_register(params[0])}={int.from_bytes(params[1:], 'little')} to {frame.id}"
    return f"{name} {frame.id}"


def _sync_values(frame: Frame) -> Iterator[tuple[int, bytes]]:
    size = frame.params[1]
    for at in range(2, len(frame.params) - size, size + 1):
        yield frame.params[at], frame.params[at + 1 : at + 1 + size]


def _register(address: int) -> str:
    return _REGISTERS.get(address, str(address))
