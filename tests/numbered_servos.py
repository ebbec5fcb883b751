"""Servos that say in which cycle they were asked, with replies that come late, damaged or never."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import MID_TICKS, RAD_PER_TICK, Calibration
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.protocol import Instruction
from steadyhand_runtime.clock import NS_PER_S, ManualClock

GAP_NS = 50_000
Fate = float | str | None


class NumberedServos:
    """Servos whose position is the number of the cycle in which they were asked, so that every value shows its age.

    `fate(id)` is asked once per reply: seconds of lateness, or None for one that never comes, or "bad" for a damaged
    one. With `mute`, who is behind a servo that gives no answer in time gives none either.
    """

    def __init__(self, clock: ManualClock, mute: bool = False) -> None:
        self.clock = clock
        self.cycle = 0
        self.fate: Callable[[int], Fate] = lambda servo_id: 0.0
        self.mute = mute
        self._wire_ns = 0
        self._coming: list[tuple[int, bytes]] = []

    def write(self, data: bytes | bytearray) -> None:
        self._wire_ns = max(self._wire_ns, self.clock.now_ns())
        self._coming = [c for c in self._coming if c[0] > self._wire_ns]
        for frame in protocol.split_frames(bytes(data))[0]:
            if frame.code == Instruction.SYNC_READ:
                self._answer(frame.params[2:], frame.params[0], frame.params[1])
            elif frame.code == Instruction.READ:
                self._answer(bytes((frame.id,)), frame.params[0], frame.params[1])

    def read(self, n: int, deadline_ns: int) -> bytes:
        until = max(deadline_ns, self._wire_ns)
        self._coming.sort()
        data = b"".join(packet for at, packet in self._coming if at <= until)
        ends = [at for at, _ in self._coming if at <= until]
        self._coming = [c for c in self._coming if c[0] > until]
        if len(data) > n:
            self._coming.insert(0, (ends[-1], data[n:]))
            data = data[:n]
        self._wire_ns = max(self._wire_ns, ends[-1] if len(data) == n else until)
        self.clock.sleep_until_ns(self._wire_ns)
        return data

    def drain(self) -> int:
        return len(self.read(1 << 20, self.clock.now_ns() + 1_000_000))

    def close(self) -> None:
        pass

    def _answer(self, ids: bytes, address: int, size: int) -> None:
        registers = bytearray(128)
        registers[56:58] = (MID_TICKS + self.cycle % 1000).to_bytes(2, "little")
        at_ns = self.clock.now_ns()
        for servo_id in ids:
            at_ns += GAP_NS + (size + 6) * 10_000
            fate = self.fate(servo_id)
            if fate is None:
                if self.mute and len(ids) > 1:
                    return
                continue
            packet = bytearray(protocol.status(servo_id, 0, bytes(registers[address : address + size])))
            if fate == "bad":
                packet[-1] ^= 0x55
                fate = 0.0
            self._coming.append((at_ns + round(float(fate) * NS_PER_S), bytes(packet)))


def make_driver(mute: bool = False) -> tuple[NumberedServos, Driver, ManualClock]:
    clock = ManualClock()
    servos = NumberedServos(clock, mute)
    return servos, Driver(servos, load_arm(), Calibration.default(), clock), clock


def cycle_and_check(servos: NumberedServos, driver: Driver, clock: ManualClock) -> np.ndarray:
    """One cycle at 100 Hz; whatever is valid must be of this cycle. Returns the flags (J,)."""
    start_ns = clock.now_ns()
    servos.cycle += 1
    reading = driver.cycle(None)
    told = np.rint(reading.position_rad / RAD_PER_TICK)
    assert (told[reading.valid] == servos.cycle % 1000).all()
    clock.sleep_until_ns(start_ns + 10_000_000)
    return reading.valid
