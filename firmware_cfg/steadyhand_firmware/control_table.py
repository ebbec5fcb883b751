"""The servo's registers as data: address, size, access, default, range and sign of each, read from `sts3215.toml`."""

from __future__ import annotations

import enum
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Access(str, enum.Enum):
    """Who may change a register, and whether the change survives a power cycle."""

    READ = "R"
    EPROM = "E"
    VOLATILE = "RW"


@dataclass(frozen=True, slots=True)
class Register:
    """One register. `default`, `low` and `high` are values after sign decoding; `sign_bit` None means unsigned."""

    name: str
    address: int
    size: int
    access: Access
    default: int
    low: int | None = None
    high: int | None = None
    sign_bit: int | None = None
    unit: str = ""
    note: str = ""

    @property
    def end(self) -> int:
        """First address after the register."""
        return self.address + self.size


class ControlTable:
    """All registers of one servo model, by name."""

    def __init__(self, model: str, model_number: int, ticks_per_turn: int, registers: tuple[Register, ...]) -> None:
        self.model = model
        self.model_number = model_number
        self.ticks_per_turn = ticks_per_turn
        self.registers = registers
        self._by_name = {r.name: r for r in registers}
        if len(self._by_name) != len(registers):
            raise ValueError(f"{model}: a register name appears twice")
        ordered = sorted(registers, key=lambda r: r.address)
        for lower, upper in itertools.pairwise(ordered):
            if lower.end > upper.address:
                raise ValueError(f"{model}: registers {lower.name} and {upper.name} overlap")

    def __getitem__(self, name: str) -> Register:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Register]:
        return iter(self.registers)

    def __len__(self) -> int:
        return len(self.registers)


def read_package_toml(*path: str) -> dict[str, Any]:
    """A TOML file that ships with this package."""
    file = resources.files(__package__).joinpath(*path)
    return tomllib.loads(file.read_text(encoding="utf-8"))


@cache
def sts3215() -> ControlTable:
    """The STS3215's table."""
    data = read_package_toml("sts3215.toml")
    registers = tuple(Register(**{**entry, "access": Access(entry["access"])}) for entry in data["register"])
    return ControlTable(data["model"], data["model_number"], data["ticks_per_turn"], registers)
