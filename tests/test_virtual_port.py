"""The virtual servos' serial port: the host's speed, frames, lateness, a pulled cable."""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.protocol import Frame
from steadyhand_runtime.sim import pty_delay
from steadyhand_runtime.sim.pty_port import PtyPort, _grouped
from steadyhand_runtime.sim.servos import Reply, StillPlant, VirtualChain

GONE = (serial.SerialException, OSError, termios.error)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[PtyPort]:
    with PtyPort(VirtualChain(StillPlant()), link=tmp_path / "arm") as served:
        yield served


def receive(line: serial.Serial, size: int, within_s: float = 20.0) -> bytes:
    """That many bytes, or what had come by a deadline that only a fault reaches."""
    data = b""
    until = time.monotonic() + within_s
    while len(data) < size and time.monotonic() < until:
        select.select([line.fileno()], [], [], 0.1)
        data += line.read(size - len(data))
    return data


def ask(line: serial.Serial, request: bytes, size: int) -> list[Frame]:
    line.write(request)
    return protocol.split_frames(receive(line, size))[0]


@pytest.mark.parametrize("baud", [1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400])
def test_the_servos_hear_a_host_that_runs_at_their_speed(tmp_path: Path, baud: int) -> None:
    with (
        PtyPort(VirtualChain(StillPlant(), baud=baud), link=tmp_path / "arm") as port,
        serial.Serial(port.path, baud, timeout=0) as line,
    ):
        assert ask(line, protocol.ping(2), 6) == [Frame(2, 0, b"")]


def test_only_servos_of_the_hosts_speed_answer(port: PtyPort) -> None:
    with port.between_requests() as chain:
        chain.servos[2].eprom.burn("baud_rate", 1)
    with serial.Serial(port.path, 1_000_000, timeout=0) as line:
        assert [f.id for f in ask(line, protocol.sync_read((1, 2, 3, 4), 56, 2), 24)] == [1, 2, 4]
        line.baudrate = 500_000
        assert [f.id for f in ask(line, protocol.sync_read((1, 2, 3, 4), 56, 2), 8)] == [3]
        line.baudrate = 1_000_000
        assert [f.id for f in ask(line, protocol.sync_read((1, 2, 3, 4), 56, 2), 24)] == [1, 2, 4]


def test_a_host_that_sets_no_speed_finds_the_servos_own(port: PtyPort) -> None:
    fd = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(fd, protocol.ping(1))
        assert select.select([fd], [], [], 20)[0]
        assert os.read(fd, 6) == bytes.fromhex("ffff010200fc")
    finally:
        os.close(fd)


def test_a_late_reply_holds_up_neither_the_others_nor_the_next_request(port: PtyPort) -> None:
    with port.between_requests() as chain:
        chain.servos[1].late_ns, chain.servos[1].late_replies = 3_000_000_000, 1
    with serial.Serial(port.path, 1_000_000, timeout=0) as line:
        assert [f.id for f in ask(line, protocol.sync_read((1, 2, 3), 56, 2), 16)] == [1, 3]
        assert [f.id for f in ask(line, protocol.sync_read((1, 2, 3), 56, 4), 30)] == [1, 2, 3]
        (late,) = protocol.split_frames(receive(line, 8))[0]
        assert (late.id, len(late.params)) == (2, 2)


def test_with_usb_frames_replies_wait_for_the_next_one() -> None:
    replies = [Reply(1_200_000, b"a"), Reply(1_400_000, b"b"), Reply(2_000_000, b"c"), Reply(2_000_001, b"d")]
    assert [tuple(d) for d in _grouped(replies, 1_000_000)] == [(2_000_000, b"abc"), (3_000_000, b"d")]
    assert [tuple(d) for d in _grouped(replies, 0)] == [(2_000_001, b"abcd")]


def test_a_port_with_usb_frames_and_a_spin_answers() -> None:
    chain = VirtualChain(StillPlant())
    with (
        PtyPort(chain, usb_frame_ns=1_000_000, spin_ns=100_000) as port,
        serial.Serial(port.path, 1_000_000, timeout=0) as line,
    ):
        assert len(ask(line, protocol.sync_read((1, 2, 3, 4, 5, 6), 56, 6), 72)) == 6


def test_a_port_that_takes_its_own_delay_off_still_answers_whole_and_in_order() -> None:
    with (
        PtyPort(VirtualChain(StillPlant()), compensate=True) as port,
        serial.Serial(port.path, 1_000_000, timeout=0) as line,
    ):
        for servo in (1, 6):
            assert ask(line, protocol.read(servo, 5, 1), 7) == [Frame(servo, 0, bytes((servo,)))]


def test_measuring_a_pty_leaves_nothing_behind_in_it() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    try:
        delay = pty_delay.measure(master, slave)
        assert 0 < delay.from_host_ns < pty_delay.PATIENCE_NS
        assert 0 < delay.to_host_ns < pty_delay.PATIENCE_NS
        assert select.select([master, slave], [], [], 0)[0] == []
    finally:
        os.close(master)
        os.close(slave)


def test_a_pulled_cable_hangs_the_port_up_and_a_new_device_comes_behind_the_same_link(port: PtyPort) -> None:
    line = serial.Serial(port.path, 1_000_000, timeout=0)
    before = port.device
    assert ask(line, protocol.write(1, 41, b"\x07"), 6) == [Frame(1, 0, b"")]
    port.plug(False)
    assert not os.path.lexists(port.path)
    with pytest.raises(GONE):
        line.write(protocol.ping(1))
    with pytest.raises(GONE):
        line.reset_input_buffer()
    port.plug(True)
    assert os.readlink(port.path) == port.device != before
    with serial.Serial(port.path, 1_000_000, timeout=0) as again:
        assert ask(again, protocol.read(1, 41, 1), 7) == [Frame(1, 0, b"\x07")]
    line.close()


def test_pulling_or_plugging_twice_does_nothing_more(port: PtyPort) -> None:
    port.plug(True)
    port.plug(False)
    port.plug(False)
    port.plug(True)
    with serial.Serial(port.path, 1_000_000, timeout=0) as line:
        assert ask(line, protocol.ping(6), 6) == [Frame(6, 0, b"")]


def test_a_port_may_be_closed_while_its_cable_is_pulled(tmp_path: Path) -> None:
    port = PtyPort(VirtualChain(StillPlant()), link=tmp_path / "arm")
    port.plug(False)
    port.close()
    port.close()


def test_a_client_that_never_reads_does_not_stop_the_servos(port: PtyPort) -> None:
    request = protocol.sync_read((1, 2, 3, 4, 5, 6), 0, 100)
    with serial.Serial(port.path, 1_000_000, timeout=0, write_timeout=5) as line:
        for _ in range(100):
            line.write(request)
        line.reset_input_buffer()
    with serial.Serial(port.path, 1_000_000, timeout=0) as line:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            line.reset_input_buffer()
            if ask(line, protocol.read(6, 5, 1), 7)[-1:] == [Frame(6, 0, b"\x06")]:
                return
    pytest.fail("no answer after a flood")
