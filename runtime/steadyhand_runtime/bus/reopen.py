"""The arm's port over its ups and downs: opening it, a name that survives replugging, reopening with back-off."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from steadyhand_runtime.bus.client import BAUDS, QUICK_NS, Client
from steadyhand_runtime.bus.transport import BusError, Transport
from steadyhand_runtime.clock import Clock

BY_ID = Path("/dev/serial/by-id")
FIRST_PAUSE_NS = 100_000_000
LONGEST_PAUSE_NS = 2_000_000_000


class Port:
    """A port by the name that it was given, and by the one under which it comes back."""

    def __init__(self, name: str, open_named: Callable[[str], Transport], folder: Path = BY_ID) -> None:
        self.name = name
        self._open_named = open_named
        self._folder = folder
        self._lasting = name
        self._pause_ns = FIRST_PAUSE_NS
        self._next_ns = 0

    def open(self) -> Transport:
        """Raises BusError naming the fix."""
        transport = self._open_named(self.name)
        self._lasting = stable_name(self.name, self._folder)
        return transport

    def reopen(self, now_ns: int) -> Transport | None:
        """The port again, once it is there and the time to look has come."""
        if now_ns < self._next_ns:
            return None
        self._next_ns = now_ns + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, LONGEST_PAUSE_NS)
        try:
            return self._open_named(self._lasting)
        except BusError:
            return None

    def settled(self) -> None:
        """The arm is back: a next loss is looked after at once."""
        self._pause_ns, self._next_ns = FIRST_PAUSE_NS, 0


def stable_name(port: str, folder: Path = BY_ID) -> str:
    """The adapter's name under /dev/serial/by-id, where it has one: the port itself may come back under another."""
    if Path(port).parent == folder:
        return port
    try:
        links = sorted(folder.iterdir())
    except OSError:
        return port
    return next((str(link) for link in links if os.path.realpath(link) == os.path.realpath(port)), port)


def answering_baud(open_at: Callable[[int], Transport], clock: Clock, ids: Sequence[int], tried: int) -> int | None:
    """Another rate of the servo's table at which one of `ids` answers. Opens and closes the port at each."""
    client: Client | None = None
    try:
        for baud in (b for b in BAUDS if b != tried):
            if client is None:
                client = Client(open_at, clock, baud)
            client.use_baud(baud)
            if any(client.ping(i, QUICK_NS, tries=1) is not None for i in ids):
                return baud
    except BusError:
        return None
    finally:
        if client is not None:
            client.close()
    return None
