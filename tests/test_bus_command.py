"""`steadyhand bus`: its dispatcher, its ports, and scanning virtual servos on a real port."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from setup_rig import bus_command, served

from steadyhand_firmware.arm import load_arm
from steadyhand_models.cli import UserError
from steadyhand_models.settings import SettingsError
from steadyhand_runtime.bus import command, ports
from steadyhand_runtime.bus.arguments import parse
from steadyhand_runtime.bus.client import BAUDS
from steadyhand_runtime.bus.ports import Port
from steadyhand_runtime.bus.scan_command import ScanSettings, scan
from steadyhand_runtime.bus.survey import findings
from steadyhand_runtime.sim.plant import StillPlant
from steadyhand_runtime.sim.servos import VirtualChain

ARM = Port("/dev/serial/by-id/usb-1a86_USB_Single_Serial-if00", "/dev/ttyACM0", "USB Single Serial")
OTHER = Port("/dev/ttyUSB3", "/dev/ttyUSB3", "printer")


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_the_subcommands_are_listed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name}" in text for name in command.COMMANDS)


def test_an_unknown_subcommand_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["scna"]) == 2
    assert "did you mean `steadyhand bus scan`?" in capsys.readouterr().err


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_subcommand_explains_itself_with_an_example(name: str) -> None:
    result = subprocess.run(bus_command(name, "--help"), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout.lower()
    assert "xample" in result.stdout
    assert f"steadyhand bus {name} " in result.stdout


def test_switches_may_stand_alone_or_carry_a_value() -> None:
    def all_bauds(*argv: str) -> bool:
        return parse(ScanSettings, argv, "scan", "").all_bauds

    assert all_bauds("--all-bauds") and all_bauds("--all-bauds", "true") and all_bauds("--all-bauds", "--port", "x")
    assert not all_bauds() and not all_bauds("--all-bauds", "false")


def test_the_only_port_is_taken_and_more_than_one_must_be_chosen_from() -> None:
    assert ports.choose("/dev/mine", list) == "/dev/mine"
    assert ports.choose("", lambda: [ARM]) == ARM.name
    with pytest.raises(UserError, match=r"several ports .*(?s:.)*now /dev/ttyACM0.*(?s:.)*printer.*(?s:.)*--port"):
        ports.choose("", lambda: [ARM, OTHER])
    with pytest.raises(UserError, match="no USB serial port found: plug the arm's adapter in"):
        ports.choose("", list)


def test_a_port_is_called_by_the_name_that_stays(tmp_path: Path) -> None:
    device, link = tmp_path / "ttyACM0", tmp_path / "by-id" / "usb-arm"
    device.touch()
    link.parent.mkdir()
    link.symlink_to(device)
    assert ports.stable_name(str(device), link.parent) == str(link)
    assert ports.stable_name("/dev/ttyACM7", link.parent) == "/dev/ttyACM7"
    assert ports.stable_name(str(device), tmp_path / "none") == str(device)


def test_a_port_that_is_not_there_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such port: plug the arm in"):
        command.main(["scan", "--port", str(tmp_path / "none")])


def test_an_impossible_baud_rate_is_refused() -> None:
    with pytest.raises(SettingsError, match="greater than or equal to 38400"):
        command.main(["scan", "--baud", "300"])


def test_a_complete_arm_is_scanned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path, VirtualChain(StillPlant())) as port:
        assert command.main(["scan", "--port", port.path]) == 0
    text = capsys.readouterr().out
    assert "wrist_roll" in text and "so101_follower is complete" in text


def test_findings_are_words_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = VirtualChain(StillPlant())
    chain.servos[1].silent = True
    chain.servos[4].eprom.burn("firmware_minor", 9)
    with served(tmp_path, chain) as port:
        assert command.main(["scan", "--port", port.path]) == 3
        assert "silent: shoulder_lift (id 2) does not answer" in capsys.readouterr().out
        chain.servos[1].silent = False
        assert command.main(["scan", "--port", port.path]) == 0
        assert "firmware mix: " in capsys.readouterr().out


def test_a_servo_at_another_rate_is_found_on_a_real_port(tmp_path: Path) -> None:
    chain, arm, bauds = VirtualChain(StillPlant()), load_arm(), (1_000_000, 76_800)
    chain.servos[2].eprom.burn("baud_rate", BAUDS.index(76_800))
    with served(tmp_path, chain) as port:
        client = ports.open_client(port.path, bauds[0])
        seen = scan(client, arm, bauds)
        client.close()
    (finding,) = findings(arm, seen, bauds[0], bauds)
    assert "elbow_flex (id 3) answers at 76800 baud" in finding.text
