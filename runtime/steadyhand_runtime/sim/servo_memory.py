"""A virtual servo's registers: what may be written, what EPROM keeps, and what reads wrong just after locking."""

from __future__ import annotations

from steadyhand_firmware.control_table import Access, ControlTable
from steadyhand_runtime.bus.protocol import encode_sign_magnitude

MEMORY_BYTES = 128
# After EPROM is locked again, reads of what was just written may give a plausible but wrong 0 for more than 0.2 s
# (reported of real servos; drivers wait 0.3 s).
SETTLE_NS = 250_000_000

_ID, _MAX_TORQUE, _TORQUE_LIMIT, _LOCK = 5, 16, 48, 55


class ServoMemory:
    """The register file. Nothing is ever refused: what may not be written is ignored, what is too large is limited.

    With the lock set an EPROM write takes effect at once and is lost at power-off (memory table v220328, firmware
    3.10). `registers` is the live memory; it may be changed directly, as a measurement does.
    """

    def __init__(self, table: ControlTable, servo_id: int) -> None:
        self._table = table
        self._eprom = frozenset(a for r in table if r.access is Access.EPROM for a in range(r.address, r.end))
        self._writable = frozenset(a for r in table if r.access is not Access.READ for a in range(r.address, r.end))
        self._limits = {
            a: (r.address, r.end, r.high)
            for r in table
            if r.high is not None and r.sign_bit is None
            for a in range(r.address, r.end)
        }
        self.registers = bytearray(MEMORY_BYTES)
        self._stored = b""
        self._fresh: set[int] = set()
        self._settled_ns = 0
        self.reset(servo_id)

    def read(self, address: int, size: int, now_ns: int) -> bytes:
        """The bytes that a READ returns, fewer at the end of the memory."""
        data = self.registers[address : address + size]
        if self._settled_ns:
            if now_ns >= self._settled_ns:
                self._settled_ns = 0
                self._fresh.clear()
            else:
                for i in self._fresh.intersection(range(address, address + len(data))):
                    data[i - address] = 0
        return bytes(data)

    def write(self, address: int, data: bytes, now_ns: int) -> None:
        """What a WRITE leaves in the memory."""
        unlocked = self.registers[_LOCK] == 0
        end = address + len(data)
        written = self._writable.intersection(range(address, end))
        for i in written:
            self.registers[i] = data[i - address]
        self._limit(written)
        kept = self._eprom & written
        if unlocked and kept:
            self._store(kept)
            self._fresh |= kept
        if unlocked and self.registers[_LOCK] and self._fresh:
            self._settled_ns = now_ns + SETTLE_NS

    def burn(self, name: str, value: int) -> None:
        """Set a register for good, whatever its access, as the factory does."""
        register = self._table[name]
        raw = value if register.sign_bit is None else encode_sign_magnitude(value, register.sign_bit)
        self.registers[register.address : register.end] = raw.to_bytes(register.size, "little")
        self._store(range(register.address, register.end))

    def reset(self, servo_id: int) -> None:
        """Defaults of the table with this id, as after a power cycle."""
        self.registers[:] = bytes(MEMORY_BYTES)
        for register in self._table:
            raw = register.default
            if register.sign_bit is not None:
                raw = encode_sign_magnitude(raw, register.sign_bit)
            self.registers[register.address : register.end] = raw.to_bytes(register.size, "little")
        self.registers[_ID] = servo_id
        self._stored = bytes(self.registers)
        self.power_cycle()

    def power_cycle(self) -> None:
        """Lose everything that is not in EPROM, and every EPROM write that was made under lock."""
        self.registers[:] = self._stored
        self.registers[_TORQUE_LIMIT : _TORQUE_LIMIT + 2] = self.registers[_MAX_TORQUE : _MAX_TORQUE + 2]
        self._fresh.clear()
        self._settled_ns = 0

    def _limit(self, written: frozenset[int]) -> None:
        for start, stop, high in {self._limits[i] for i in written if i in self._limits}:
            if int.from_bytes(self.registers[start:stop], "little") > high:
                self.registers[start:stop] = high.to_bytes(stop - start, "little")

    def _store(self, addresses: frozenset[int] | range) -> None:
        stored = bytearray(self._stored)
        for i in addresses:
            stored[i] = self.registers[i]
        self._stored = bytes(stored)
