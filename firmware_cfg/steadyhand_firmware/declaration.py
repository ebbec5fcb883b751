"""Which value a register must hold, and why; some registers are declared bit by bit."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steadyhand_firmware.control_table import Access, Register, sts3215


class VoltageClass(str, enum.Enum):
    """The two variants of the servo. They differ in the motor, so one must never run on the other's supply."""

    V7_4 = "7.4"
    V12 = "12"

    @property
    def max_decivolts(self) -> int:
        """What the variant carries in `max_voltage` (memory table v220328), in 0.1 V."""
        return 80 if self is VoltageClass.V7_4 else 140

    @classmethod
    def of(cls, max_decivolts: int) -> VoltageClass:
        """The variant that a servo's `max_voltage` stands for, in 0.1 V."""
        return cls.V7_4 if max_decivolts <= 100 else cls.V12


@dataclass(frozen=True, slots=True)
class Declared:
    """One register's declared bits: those of `value` where `mask` is set; the servo's own bits stay elsewhere."""

    register: Register
    value: int
    mask: int
    why: str

    @property
    def lasting(self) -> bool:
        """Whether a written value outlasts a power-off."""
        return self.register.access is Access.EPROM

    @property
    def whole(self) -> bool:
        """Whether every bit of the register is declared."""
        return self.mask == _all_bits(self.register)

    def wanted(self, present: int) -> int:
        """What the register should hold when it holds `present`."""
        return self.value if self.whole else (present & ~self.mask) | self.value


def _all_bits(register: Register) -> int:
    return (1 << 8 * register.size) - 1


def exactly(name: str, value: int, why: str) -> Declared:
    """A register whose whole value is declared. Raises ValueError for a value that it cannot hold."""
    register = _writable(name)
    if not (register.low or 0) <= value <= (register.high or 0):
        raise ValueError(f"register {name}: {value} is outside {register.low}..{register.high}")
    return Declared(register, value, _all_bits(register), why)


def read_declarations(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Declared]:
    """The `[registers]` table of an arm's file, by register name. Raises ValueError naming what is wrong in it.

    An entry is `{value = 1, why = "..."}`, or `{clear = 0x10, why = "..."}` and `{set = 0x10, why = "..."}` for bits.
    """
    return {name: _declared(name, entry) for name, entry in table.items()}


def _declared(name: str, entry: Mapping[str, Any]) -> Declared:
    unknown = set(entry) - {"value", "set", "clear", "why"}
    if unknown or not entry.get("why"):
        raise ValueError(f"register {name}: needs a `why` and one of value, set, clear; got {sorted(entry)}")
    if "value" in entry:
        return exactly(name, entry["value"], entry["why"])
    register = _writable(name)
    ones, zeros = entry.get("set", 0), entry.get("clear", 0)
    if not ones | zeros or ones & zeros or (ones | zeros) & ~_all_bits(register):
        raise ValueError(f"register {name}: `set` and `clear` must name different bits of {register.size} bytes")
    return Declared(register, ones, ones | zeros, entry["why"])


def _writable(name: str) -> Register:
    try:
        register = sts3215()[name]
    except KeyError:
        raise ValueError(f"no register {name!r} in the control table") from None
    if register.access is Access.READ:
        raise ValueError(f"register {name}: cannot be written")
    return register
