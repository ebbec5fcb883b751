"""Which serial ports could be an arm, and opening the one that is meant."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serial.tools import list_ports

from steadyhand_models.cli import UserError
from steadyhand_runtime.bus.client import Client
from steadyhand_runtime.bus.transport import SerialTransport
from steadyhand_runtime.clock import MonotonicClock

BY_ID = Path("/dev/serial/by-id")


@dataclass(frozen=True, slots=True)
class Port:
    """A USB serial port: the name to open, which stays the same across reboots where there is one, and what it says."""

    name: str
    device: str
    description: str

    def __str__(self) -> str:
        return f"{self.name} ({self.description}{'' if self.name == self.device else f', now {self.device}'})"


def candidates() -> list[Port]:
    """Every USB serial port of this machine."""
    found = [p for p in list_ports.comports() if p.vid is not None]
    return sorted((Port(stable_name(p.device), p.device, p.description or "USB serial") for p in found), key=str)


def choose(port: str, list_them: Callable[[], Sequence[Port]] = candidates) -> str:
    """`port`, or the only candidate when it is empty. Raises UserError when there is none or more than one."""
    if port:
        return port
    found = list_them()
    if len(found) == 1:
        return found[0].name
    if not found:
        raise UserError(
            "no USB serial port found: plug the arm's adapter in; a virtual arm or another port is given with --port"
        )
    listed = "\n".join(f"  {p}" for p in found)
    raise UserError(f"several ports could be the arm:\n{listed}\nchoose one with --port")


def open_client(port: str, baud: int) -> Client:
    """A client on a serial port. Raises BusError naming the fix."""
    clock = MonotonicClock()
    return Client(lambda at: SerialTransport(port, at, clock), clock, baud)


def stable_name(device: str, folder: Path = BY_ID) -> str:
    """The link in `folder` that leads to a device, which outlasts replugging; the device itself where there is none."""
    try:
        links = sorted(folder.iterdir())
    except OSError:
        return device
    return next((str(link) for link in links if os.path.realpath(link) == os.path.realpath(device)), device)
