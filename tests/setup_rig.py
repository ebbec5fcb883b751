"""Virtual servos with a set-up client, in process on an injected clock or behind a pty."""

from __future__ import annotations

import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steadyhand_runtime.bus.client import Client
from steadyhand_runtime.bus.transport import InProcessTransport
from steadyhand_runtime.clock import ManualClock
from steadyhand_runtime.sim.plant import StillPlant
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import VirtualChain

DEADLINE_S = 60.0


@dataclass
class SetupRig:
    """A client whose virtual servos answer in virtual time; `heard` is everything that was sent."""

    chain: VirtualChain
    clock: ManualClock
    client: Client
    heard: list[bytes]

    def power_cycle(self) -> None:
        self.chain.power_cycle()


class PacedTransport(InProcessTransport):
    """Takes the clock along to the wire's time, so that waits count from when answers came."""

    def __init__(self, chain: VirtualChain, clock: ManualClock) -> None:
        super().__init__(chain, clock)
        self._paced = clock

    def read(self, n: int, deadline_ns: int) -> bytes:
        data = super().read(n, deadline_ns)
        self._paced.sleep_until_ns(self._wire_ns)
        return data

    def drain(self) -> int:
        dropped = super().drain()
        self._paced.sleep_until_ns(self._wire_ns)
        return dropped


def setup_rig(ids: Sequence[int] = (1, 2, 3, 4, 5, 6), baud: int = 1_000_000, mixed_bauds: bool = False) -> SetupRig:
    """A rig. With `mixed_bauds` the servos hear only their own rate, as on a wire."""
    clock = ManualClock()
    chain = VirtualChain(StillPlant(len(ids)), ids)
    heard: list[bytes] = []
    feed = chain.feed

    def listen(data: bytes | bytearray, now_ns: int) -> list:
        heard.append(bytes(data))
        return feed(data, now_ns)

    chain.feed = listen  # type: ignore[method-assign]

    def open_at(rate: int) -> PacedTransport:
        if mixed_bauds:
            chain.listen_at(rate)
        return PacedTransport(chain, clock)

    return SetupRig(chain, clock, Client(open_at, clock, baud), heard)


def factory_registers(chain: VirtualChain) -> None:
    """What new servos hold otherwise than an arm declares."""
    for servo in chain.servos:
        servo.eprom.burn("return_delay", 250)
        servo.eprom.burn("homing_offset", 85)
        servo.eprom.burn("phase", 28)


def bus_command(*argv: str) -> list[str]:
    """What `steadyhand bus ...` runs."""
    run = "import sys; from steadyhand_models.cli import main; sys.exit(main())"
    return [sys.executable, "-c", run, "bus", *argv]


class Person:
    """Somebody at a terminal: a command with its input and output at hand."""

    def __init__(self, *argv: str) -> None:
        self.process = subprocess.Popen(
            bus_command(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.text = ""

    def sees(self, pattern: str) -> str:
        """Wait until the output holds the pattern; what came up to it is taken away and returned."""
        end_s = time.monotonic() + DEADLINE_S
        stream = self.process.stdout
        assert stream is not None
        while (match := re.search(pattern, self.text)) is None:
            ready = select.select([stream], [], [], max(0.0, end_s - time.monotonic()))[0]
            chunk = stream.read1(65536) if ready else b""  # type: ignore[attr-defined]
            assert chunk, f"{pattern!r} never came; seen: {self.text}"
            self.text += chunk.decode()
        seen, self.text = self.text[: match.end()], self.text[match.end() :]
        return seen

    def types(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ends(self) -> int:
        """Exit code; the rest of the output is left in `text`."""
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        self.text += out.decode()
        return self.process.returncode

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"never: {what}"
        time.sleep(0.005)


def served(folder: Path, chain: VirtualChain) -> PtyPort:
    return PtyPort(chain, link=folder / "arm")
