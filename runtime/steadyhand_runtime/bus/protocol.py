"""The servo bus's packets as pure functions over bytes: building, splitting, checking, sign-magnitude, alarm names.

Instruction: FF FF id length instruction parameters checksum. Status: FF FF id length alarms data checksum. `length`
counts what follows it; the checksum is the inverted low byte of the sum from id on (Feetech protocol manual).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from steadyhand_firmware.control_table import Register

BROADCAST = 0xFE
HEADER = b"\xff\xff"
OVERHEAD_BYTES = 6  # header, id, length, alarms or instruction, checksum
BITS_PER_BYTE = 10  # 8N1


class Instruction(enum.IntEnum):
    """Every instruction of the protocol."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    RESET = 0x06
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


class Alarm(enum.IntFlag):
    """Bits of a status packet's error byte and of the status register. They report a condition, never a refusal."""

    VOLTAGE = 1
    ENCODER = 2
    OVER_TEMPERATURE = 4
    OVER_CURRENT = 8
    OVERLOAD = 32


class Frame(NamedTuple):
    """One packet with a good checksum; `code` is the instruction or the alarm bits."""

    id: int
    code: int
    params: bytes


def alarm_names(bits: int) -> tuple[str, ...]:
    """Names of the alarm bits that are set; unnamed bits as `bit4`."""
    names = {a.value: a.name.lower() for a in Alarm if a.name}
    return tuple(names.get(1 << i, f"bit{i}") for i in range(8) if bits >> i & 1)


def checksum(body: bytes | bytearray | memoryview) -> int:
    """Checksum of everything between header and checksum."""
    return ~sum(body) & 0xFF


def packet(servo_id: int, code: int, params: bytes = b"") -> bytes:
    """One instruction or status packet. Raises ValueError for an id or length that the protocol cannot carry."""
    if not 0 <= servo_id <= BROADCAST:
        raise ValueError(f"servo id {servo_id} is not in 0..254")
    if len(params) > 253:
        raise ValueError(f"{len(params)} parameter bytes do not fit into a packet")
    body = bytes((servo_id, len(params) + 2, code)) + params
    return HEADER + body + bytes((checksum(body),))


def ping(servo_id: int) -> bytes:
    return packet(servo_id, Instruction.PING)


def read(servo_id: int, address: int, size: int) -> bytes:
    return packet(servo_id, Instruction.READ, bytes((address, size)))


def write(servo_id: int, address: int, data: bytes) -> bytes:
    return packet(servo_id, Instruction.WRITE, bytes((address,)) + data)


def reg_write(servo_id: int, address: int, data: bytes) -> bytes:
    """A write that the servo keeps until `action`."""
    return packet(servo_id, Instruction.REG_WRITE, bytes((address,)) + data)


def action(servo_id: int = BROADCAST) -> bytes:
    return packet(servo_id, Instruction.ACTION)


def reset(servo_id: int) -> bytes:
    """Factory settings; which registers survive depends on the firmware."""
    return packet(servo_id, Instruction.RESET)


def sync_read(ids: Sequence[int], address: int, size: int) -> bytes:
    """One request that every listed servo answers, in the listed order."""
    return packet(BROADCAST, Instruction.SYNC_READ, bytes((address, size, *ids)))


def sync_write(address: int, items: Iterable[tuple[int, bytes]]) -> bytes:
    """One unanswered write of equally long data to several servos, given as (id, data)."""
    entries = list(items)
    sizes = {len(data) for _, data in entries}
    if len(sizes) != 1:
        raise ValueError("a sync write needs at least one servo and the same size for all")
    params = bytes((address, sizes.pop())) + b"".join(bytes((i,)) + data for i, data in entries)
    return packet(BROADCAST, Instruction.SYNC_WRITE, params)


def status(servo_id: int, alarms: int, data: bytes = b"") -> bytes:
    """A servo's answer."""
    return packet(servo_id, alarms, data)


def split_frames(data: bytes | bytearray) -> tuple[list[Frame], bytes]:
    """Every sound packet in a stream, and the unfinished end to prepend to what comes next.

    Anything that is not a packet is skipped a byte at a time, so that one corrupt length cannot hide what follows it.
    """
    frames: list[Frame] = []
    at = 0
    end = len(data)
    while True:
        begin, at = at, data.find(HEADER, at)
        if at < 0:
            half_header = end > begin and data[-1] == 0xFF
            return frames, b"\xff" if half_header else b""
        if at + 4 > end:
            return frames, bytes(data[at:])
        length = data[at + 3]
        if data[at + 2] == 0xFF or length < 2:
            at += 1
            continue
        stop = at + 4 + length
        if stop > end:
            later = _first_sound_packet(data, at + 1)
            if later is None:
                return frames, bytes(data[at:])
            at = later
            continue
        if sum(data[at + 2 : stop]) & 0xFF != 0xFF:
            at += 1
            continue
        frames.append(Frame(data[at + 2], data[at + 4], bytes(data[at + 5 : stop - 1])))
        at = stop


def _first_sound_packet(data: bytes | bytearray, at: int) -> int | None:
    """Where a complete packet begins behind one whose length byte promises more than has come, if there is one."""
    while (at := data.find(HEADER, at)) >= 0 and at + OVERHEAD_BYTES <= len(data):
        stop = at + 4 + data[at + 3]
        if data[at + 2] != 0xFF and data[at + 3] >= 2 and stop <= len(data) and sum(data[at + 2 : stop]) & 0xFF == 0xFF:
            return at
        at += 1
    return None


def encode_sign_magnitude(value: int, sign_bit: int) -> int:
    """Raw register value. Raises ValueError when the magnitude reaches the sign bit."""
    if abs(value) >= 1 << sign_bit:
        raise ValueError(f"magnitude {abs(value)} exceeds {(1 << sign_bit) - 1}")
    return -value | 1 << sign_bit if value < 0 else value


def decode_sign_magnitude(raw: int, sign_bit: int) -> int:
    """Signed value of a raw register; bits above the sign bit are ignored."""
    magnitude = raw & ((1 << sign_bit) - 1)
    return -magnitude if raw >> sign_bit & 1 else magnitude


def encode_register(register: Register, value: int) -> bytes:
    """A value as the register's little-endian bytes. Raises ValueError outside the register's range."""
    low = register.low if register.low is not None else -(1 << 15) if register.sign_bit is not None else 0
    high = register.high if register.high is not None else (1 << 8 * register.size) - 1
    if not low <= value <= high:
        raise ValueError(f"{register.name}: {value} is outside {low}..{high}")
    raw = value if register.sign_bit is None else encode_sign_magnitude(value, register.sign_bit)
    return raw.to_bytes(register.size, "little")


def decode_register(register: Register, data: bytes) -> int:
    """The register's value from exactly its bytes. Raises ValueError for another length."""
    if len(data) != register.size:
        raise ValueError(f"{register.name} has {register.size} bytes, got {len(data)}")
    raw = int.from_bytes(data, "little")
    return raw if register.sign_bit is None else decode_sign_magnitude(raw, register.sign_bit)
