"""Virtual servos alone: a real driver finds six of them on the port that the command prints."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models.settings import SettingsError, validate
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.transport import BusError, SerialTransport
from steadyhand_runtime.clock import ManualClock, MonotonicClock
from steadyhand_runtime.sim import fault_command
from steadyhand_runtime.sim.servos import VirtualChain
from steadyhand_runtime.sim.servos_command import ServosSettings, build_chain

RUN = "import sys; from steadyhand_runtime.sim.servos_command import main; sys.exit(main(sys.argv[1:]))"


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once its port is there; it is ended, and must end cleanly, when the block does."""
    words = [sys.executable, "-c", RUN, "--link", str(folder / "arm"), "--control", str(folder / "faults"), *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == str(folder / "arm")
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def open_driver(folder: Path) -> Driver:
    clock = MonotonicClock()
    transport = SerialTransport(str(folder / "arm"), 1_000_000, clock)
    return Driver(transport, load_arm(), Calibration.default(), clock)


def chain_of(**chosen: object) -> VirtualChain:
    return build_chain(validate(ServosSettings, chosen, "test"), ManualClock())


def test_a_driver_reads_all_six_and_an_interrupt_ends_them_cleanly(tmp_path: Path) -> None:
    with running(tmp_path):
        driver = open_driver(tmp_path)
        driver.connect()
        assert driver.fresh_position() is not None
        driver.close()
    assert list(tmp_path.iterdir()) == []


def test_a_fault_reaches_the_running_servos(tmp_path: Path) -> None:
    with running(tmp_path):
        assert fault_command.main(["--control", str(tmp_path / "faults"), "servo=3", "silent=true"]) == 0
        driver = open_driver(tmp_path)
        with pytest.raises(BusError, match="elbow_flex"):
            driver.connect()
        driver.close()


def test_the_options_describe_the_chain() -> None:
    chain = chain_of(ids=(4, 4, 7), volts="12", after_silent="mute", baud=500_000)
    assert [s.id for s in chain.servos] == [4, 4, 7]
    assert chain.servos[0].voltage_v == 12.0
    assert chain.servos[0].memory[14] == 140
    assert chain.servos[0].baud == 500_000
    chain.refresh(1)
    assert chain.servos[0].alarms == 0


def test_new_servos_all_have_the_same_id_and_an_offset() -> None:
    chain = chain_of(factory=True)
    assert [(s.id, s.offset_ticks(), s.memory[7]) for s in chain.servos] == [(1, 85, 250)] * 6
    chain.power_cycle()
    assert [s.offset_ticks() for s in chain.servos] == [85] * 6
    assert [s.id for s in chain_of(factory=True, ids=(1, 2)).servos] == [1, 2]


@pytest.mark.parametrize("wrong", [{"ids": (254,)}, {"baud": 9600}, {"volts": "5"}, {"gap_s": -1.0}])
def test_what_no_servo_can_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        chain_of(**wrong)
