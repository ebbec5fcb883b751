"""The port's lasting name, its back-off, and the search for another rate, on real pseudo-terminals where one opens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from steadyhand_runtime.bus.reopen import FIRST_PAUSE_NS, LONGEST_PAUSE_NS, Port, answering_baud, stable_name
from steadyhand_runtime.bus.transport import BusError, InProcessTransport, SerialTransport, Transport
from steadyhand_runtime.clock import ManualClock, MonotonicClock
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import StillPlant, VirtualChain


@pytest.fixture
def by_id(tmp_path: Path) -> Path:
    folder = tmp_path / "by-id"
    folder.mkdir()
    return folder


def opened(names: list[str], missing: set[str]) -> Transport:
    if names[-1] in missing:
        raise BusError(f"{names[-1]}: no such port")
    clock = ManualClock()
    return InProcessTransport(VirtualChain(StillPlant()), clock)


def make_port(name: str, folder: Path, missing: set[str]) -> tuple[Port, list[str]]:
    asked: list[str] = []

    def open_named(name: str) -> Transport:
        asked.append(name)
        return opened(asked, missing)

    return Port(name, open_named, folder), asked


def test_a_device_is_remembered_by_the_adapters_own_name(tmp_path: Path, by_id: Path) -> None:
    device, other = tmp_path / "ttyACM0", tmp_path / "ttyACM1"
    device.touch()
    other.touch()
    (by_id / "usb-a").symlink_to(other)
    (by_id / "usb-b").symlink_to(device)
    assert stable_name(str(device), by_id) == str(by_id / "usb-b")
    assert stable_name(str(by_id / "usb-a"), by_id) == str(by_id / "usb-a")
    assert stable_name(str(tmp_path / "pts"), by_id) == str(tmp_path / "pts")
    assert stable_name(str(device), tmp_path / "nowhere") == str(device)


def test_a_port_that_comes_back_under_another_number_is_opened_by_its_own_name(tmp_path: Path, by_id: Path) -> None:
    device = tmp_path / "ttyACM0"
    device.touch()
    (by_id / "usb-arm").symlink_to(device)
    port, asked = make_port(str(device), by_id, set())
    port.open()
    assert port.reopen(0) is not None
    assert asked == [str(device), str(by_id / "usb-arm")]


def test_a_missing_port_is_looked_for_at_growing_distances_and_at_once_after_it_was_back(by_id: Path) -> None:
    missing: set[str] = set()
    port, asked = make_port("/dev/arm", by_id, missing)
    port.open()
    missing.add("/dev/arm")
    times_ns = []
    for now_ns in range(0, 10_000_000_000, 10_000_000):
        before = len(asked)
        assert port.reopen(now_ns) is None
        if len(asked) > before:
            times_ns.append(now_ns)
    gaps = [b - a for a, b in itertools.pairwise(times_ns)]
    assert gaps == sorted(gaps) and gaps[0] == FIRST_PAUSE_NS and gaps[-1] == LONGEST_PAUSE_NS
    missing.clear()
    assert port.reopen(20_000_000_000) is not None
    port.settled()
    assert port.reopen(20_000_000_001) is not None


def test_servos_at_another_rate_are_found(tmp_path: Path) -> None:
    chain = VirtualChain(StillPlant())
    for servo in chain.servos:
        servo.memory[6] = 1
    clock = MonotonicClock()
    with PtyPort(chain, link=tmp_path / "arm") as served:
        ids = (1, 2, 3, 4, 5, 6)
        found = answering_baud(lambda baud: SerialTransport(served.path, baud, clock), clock, ids, 1_000_000)
    assert found == 500_000


def test_silence_at_every_rate_finds_none(tmp_path: Path) -> None:
    clock = ManualClock()
    chain = VirtualChain(StillPlant())
    for servo in chain.servos:
        servo.silent = True
    assert answering_baud(lambda baud: InProcessTransport(chain, clock), clock, (1, 2), 1_000_000) is None
