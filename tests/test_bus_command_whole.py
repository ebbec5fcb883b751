"""Setting an arm up from end to end: every program a process of its own, the arm as it comes from the box."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from setup_rig import bus_command

from steadyhand_runtime.sim.fault_socket import ask

SIM = "import sys; from steadyhand_models.cli import main; sys.exit(main())"


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    """Six servos with their ids and everything else as delivered; the socket on which faults are asked for."""
    argv = ["sim", "servos", "--link", str(tmp_path / "arm"), "--control", str(tmp_path / "control")]
    argv += ["--factory", "True", "--ids", *"123456"]
    process = subprocess.Popen([sys.executable, "-c", SIM, *argv], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == str(tmp_path / "arm")
        yield tmp_path / "control"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def bus(folder: Path, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        bus_command(name, "--port", str(folder / "arm"), *argv),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_an_arm_from_the_box_is_set_up_and_watched(control: Path, tmp_path: Path) -> None:
    assert bus(tmp_path, "scan").returncode == 0
    assert bus(tmp_path, "plan").returncode == 3
    applied = bus(tmp_path, "apply", "--yes", "--record", str(tmp_path / "records"))
    assert applied.returncode == 0, applied.stderr
    ask(control, json.dumps({"chain": "power_cycle"}))
    verified = bus(tmp_path, "verify")
    assert verified.returncode == 0, verified.stdout

    ask(control, json.dumps({"servo": 2, "place_ticks": 1500}))
    watched = bus(tmp_path, "monitor", "--json", "--cycles", "20")
    assert watched.returncode == 0, watched.stderr
    lifts = [json.loads(line)["servos"][1] for line in watched.stdout.splitlines()]
    assert len(lifts) == 20
    assert {s["position_ticks"] for s in lifts if s["valid"]} == {1500 - 85}


def test_what_is_wrong_with_a_living_arm_is_told(control: Path, tmp_path: Path) -> None:
    ask(control, json.dumps({"servo": 4, "silent": True}))
    ask(control, json.dumps({"servo": 6, "firmware": [3, 9]}))
    scanned = bus(tmp_path, "scan")
    assert scanned.returncode == 3
    assert "silent: wrist_flex (id 4)" in scanned.stdout and "firmware mix" in scanned.stdout
    refused = bus(tmp_path, "apply", "--yes", "--record", str(tmp_path / "records"))
    assert refused.returncode == 1
    assert "wrist_flex (id 4) does not answer" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "records").exists()
