"""Virtual servos alone: a real driver finds six of them on the port that the command prints."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.transport import SerialTransport
from steadyhand_runtime.clock import ManualClock, MonotonicClock
from steadyhand_runtime.sim.servos_command import FollowingPlant

RUN = "import sys; from steadyhand_runtime.sim.servos_command import main; sys.exit(main(sys.argv[1:]))"


def test_a_driver_reads_all_six_and_an_interrupt_ends_them_cleanly(tmp_path: Path) -> None:
    link = tmp_path / "arm"
    process = subprocess.Popen([sys.executable, "-c", RUN, "--link", str(link)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == str(link)
        clock = MonotonicClock()
        driver = Driver(SerialTransport(str(link), 1_000_000, clock), load_arm(), Calibration.default(), clock)
        driver.connect()
        assert driver.fresh_position() is not None
        driver.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert not link.is_symlink()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_joints_move_by_the_time_that_has_passed() -> None:
    clock = ManualClock()
    plant = FollowingPlant(clock)
    plant.drive(np.full(6, 0.5), np.ones(6, bool), np.ones(6))
    assert not plant.read().position_rad.any()
    clock.advance_s(0.05)
    np.testing.assert_allclose(plant.read().position_rad, 0.5 * (1 - np.exp(-1)), atol=1e-6)
