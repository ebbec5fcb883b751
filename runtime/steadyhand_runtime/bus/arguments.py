"""Command lines of the bus commands: the arm, its port, and what the person at the terminal says."""

from __future__ import annotations

import enum
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field

from steadyhand_firmware.arm import Arm, load_arm
from steadyhand_firmware.declaration import VoltageClass
from steadyhand_models import settings
from steadyhand_models.cli import UserError

S = TypeVar("S")
_STDIN = 0
Baud = Annotated[int, Field(ge=38_400, le=1_000_000)]


class ArmName(str, enum.Enum):
    """The arms that ship."""

    FOLLOWER = "so101_follower"
    LEADER = "so101_leader"


@dataclass(frozen=True)
class ArmSettings:
    """Which arm, and where."""

    port: str = ""  # serial port of the arm; empty: the only USB serial port there is
    baud: Baud = 1_000_000  # rate at which the servos answer
    arm: ArmName = ArmName.FOLLOWER
    voltage: VoltageClass | None = None  # the servos' variant where it is not the arm file's own

    def load(self) -> Arm:
        return load_arm(self.arm.value, self.voltage)


def parse(cls: type[S], argv: Sequence[str], command: str, text: str) -> S:
    """Settings of `steadyhand bus COMMAND`. Raises SettingsError."""
    return settings.parse_command_line(cls, argv, f"steadyhand bus {command}", text)


def confirm(question: str, yes: bool) -> None:
    """Return when the person agrees. Raises UserError when they do not, or when there is nobody to ask."""
    if yes:
        return
    if ask(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was written")


def ask(prompt: str) -> str:
    """One line from the person. Raises UserError when standard input has ended."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    return _line()


def entered() -> bool:
    """Whether the person has pressed Enter since the last line was taken. Raises UserError when input has ended."""
    if not select.select([_STDIN], [], [], 0.0)[0]:
        return False
    _line()
    return True


def _line() -> str:
    """Read byte by byte, so that what is typed ahead stays for the next question."""
    said = b""
    while not said.endswith(b"\n"):
        byte = os.read(_STDIN, 1)
        if not byte:
            raise UserError("standard input has ended: run this in a terminal, or see --help for what can be agreed to")
        said += byte
    return said.decode(errors="replace").rstrip("\r\n")
