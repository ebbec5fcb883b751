"""Other people's drivers, unmodified, find the virtual servos no different from real ones."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

RUN = "import sys; from steadyhand_runtime.sim.servos_command import main; sys.exit(main(sys.argv[1:]))"
IDS = [1, 2, 3, 4, 5, 6]
GOALS = [2148, 2248, 1948, 1848, 2348, 2048]
DEADLINE_S = 60.0
PRESENT_POSITION, GOAL_POSITION, TORQUE_ENABLE, ACCELERATION = 56, 42, 40, 41

T = TypeVar("T")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Six servos in a process of their own; returns their port."""
    link = tmp_path_factory.mktemp("peers") / "arm"
    words = [sys.executable, "-c", RUN, "--link", str(link), "--motion-delay-s", "0.01"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == str(link)
        yield str(link)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def until(ready: Callable[[T], bool], ask: Callable[[], T]) -> T:
    """Ask until the answer is the one that must come in the end; a busy machine may lose some on the way."""
    end = time.monotonic() + DEADLINE_S
    answer = ask()
    while not ready(answer) and time.monotonic() < end:
        answer = ask()
    assert ready(answer), answer
    return answer


class Sdk:
    """feetech-servo-sdk on one port."""

    def __init__(self, sdk: Any, port: str) -> None:
        self.sdk = sdk
        self.port = sdk.PortHandler(port)
        assert self.port.openPort() and self.port.setBaudRate(1_000_000)
        self.handler = sdk.PacketHandler(0)

    def close(self) -> None:
        self.port.closePort()

    def drain(self) -> None:
        """Its own recovery leaves late bytes in the line; what it asks next must not meet them."""
        while select.select([self.port.ser.fileno()], [], [], 0.05)[0]:
            self.port.ser.reset_input_buffer()

    def ask(self, call: Callable[..., tuple[Any, ...]], *what: Any) -> tuple[Any, ...]:
        """One conversation, its result and error codes last in the answer."""

        def once() -> tuple[Any, ...]:
            self.drain()
            return call(self.port, *what)

        return until(lambda answer: bool(answer[-2:] == (self.sdk.COMM_SUCCESS, 0)), once)

    def sync_read_positions(self) -> list[int] | None:
        self.drain()
        group = self.sdk.GroupSyncRead(self.port, self.handler, PRESENT_POSITION, 2)
        assert all(group.addParam(i) for i in IDS)
        if group.txRxPacket() != self.sdk.COMM_SUCCESS:
            return None
        return [group.getData(i, PRESENT_POSITION, 2) for i in IDS]

    def sync_write_goals(self, goals: list[int]) -> None:
        group = self.sdk.GroupSyncWrite(self.port, self.handler, GOAL_POSITION, 2)
        assert all(group.addParam(i, [g & 0xFF, g >> 8]) for i, g in zip(IDS, goals))
        assert group.txPacket() == self.sdk.COMM_SUCCESS


@pytest.fixture
def feetech(arm: str) -> Iterator[Sdk]:
    sdk = pytest.importorskip(
        "scservo_sdk", reason="feetech-servo-sdk is not installed: pip install 'steadyhand[peers]'"
    )
    opened = Sdk(sdk, arm)
    yield opened
    opened.close()


@pytest.fixture
def rustypot(arm: str) -> Iterator[Any]:
    module = pytest.importorskip("rustypot", reason="rustypot is not installed: pip install 'steadyhand[peers]'")
    controller = module.Sts3215PyController(arm, 1_000_000, 1.0)
    yield controller
    controller.close()


def test_feetechs_own_driver_pings_reads_and_writes_one_servo(feetech: Sdk) -> None:
    model, _, _ = feetech.ask(feetech.handler.ping, 3)
    assert model == 777
    feetech.ask(feetech.handler.write1ByteTxRx, 3, ACCELERATION, 200)
    acceleration, _, _ = feetech.ask(feetech.handler.read1ByteTxRx, 3, ACCELERATION)
    assert acceleration == 200
    feetech.ask(feetech.handler.write1ByteTxRx, 3, ACCELERATION, 0)


def test_feetechs_own_driver_moves_and_reads_all_six_at_once(feetech: Sdk) -> None:
    feetech.sync_write_goals(GOALS)
    assert until(lambda seen: seen == GOALS, feetech.sync_read_positions) == GOALS
    torque, _, _ = feetech.ask(feetech.handler.read1ByteTxRx, 6, TORQUE_ENABLE)
    assert torque == 1


def test_feetechs_own_driver_misses_a_servo_that_is_not_there(feetech: Sdk) -> None:
    feetech.drain()
    _, result, _ = feetech.handler.ping(feetech.port, 9)
    assert result == feetech.sdk.COMM_RX_TIMEOUT


def test_rustypot_pings_reads_and_writes_one_servo(rustypot: Any) -> None:
    assert rustypot.ping(2)
    assert not rustypot.ping(9)
    rustypot.write_acceleration(2, 100)
    assert rustypot.read_acceleration(2)[0] == 100
    rustypot.write_acceleration(2, 0)


def test_rustypot_moves_and_reads_all_six_at_once(rustypot: Any) -> None:
    goals = GOALS[::-1]
    rustypot.sync_write_raw_goal_position(IDS, goals)
    read = rustypot.sync_read_raw_present_position
    assert until(lambda seen: seen == goals, lambda: list(read(IDS))) == goals
    assert list(rustypot.sync_read_raw_torque_enable(IDS)) == [1] * 6
