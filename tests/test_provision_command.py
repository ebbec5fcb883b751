"""`bus plan`, `apply`, `verify` and `set-id` against virtual servos on a real port."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from setup_rig import Person, factory_registers, served, wait_for

from steadyhand_models.cli import UserError
from steadyhand_models.settings import SettingsError
from steadyhand_runtime.bus import command
from steadyhand_runtime.sim.plant import StillPlant
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import VirtualChain


@pytest.fixture
def chain() -> VirtualChain:
    made = VirtualChain(StillPlant())
    factory_registers(made)
    return made


@pytest.fixture
def port(tmp_path: Path, chain: VirtualChain) -> Iterator[PtyPort]:
    with served(tmp_path, chain) as opened:
        yield opened


def eprom(chain: VirtualChain) -> list[bytes]:
    return [bytes(s.memory[:40]) for s in chain.servos]


def test_a_new_arm_is_planned_applied_switched_off_and_verified(
    chain: VirtualChain, port: PtyPort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["plan", "--port", port.path]) == 3
    text = capsys.readouterr().out
    assert "gripper (id 6, firmware 3.10)" in text
    assert " 16 max_torque           1000 -> 500 [0.1 %]" in text
    assert " 18 phase                0b00011100 -> 0b00001100" in text
    assert command.main(["verify", "--port", port.path]) == 3
    before = eprom(chain)

    assert command.main(["apply", "--port", port.path, "--yes", "--record", str(tmp_path / "records")]) == 0
    with port.between_requests():
        chain.power_cycle()
    assert command.main(["verify", "--port", port.path]) == 0
    assert "cleared by every power-off" in capsys.readouterr().out

    (path,) = (tmp_path / "records").iterdir()
    record = json.loads(path.read_text())
    assert record["outcome"] == "written" and record["arm"] == "so101_follower" and record["port"] == port.path
    assert record["before"][5]["registers"]["max_torque"] == 1000
    assert record["after"][5]["registers"]["max_torque"] == 500
    assert record["before"][5]["firmware"] == "3.10"
    assert eprom(chain) != before


def test_nothing_is_written_without_a_yes(chain: VirtualChain, port: PtyPort, tmp_path: Path) -> None:
    before = eprom(chain)
    with Person("apply", "--port", port.path, "--record", str(tmp_path / "records")) as person:
        person.sees(r"write \d+ registers\? \[y/N\] ")
        person.types("n")
        assert person.ends() == 1
        assert "nothing was written" in person.text
    with pytest.raises(UserError, match="standard input has ended"):
        command.main(["apply", "--port", port.path, "--record", str(tmp_path / "records")])
    assert eprom(chain) == before
    assert not (tmp_path / "records").exists()


def test_torque_is_only_switched_off_when_that_is_allowed(chain: VirtualChain, port: PtyPort, tmp_path: Path) -> None:
    apply = ["apply", "--port", port.path, "--joint", "elbow_flex", "--yes", "--record", str(tmp_path)]
    chain.servos[2].memory[40] = 1
    before = eprom(chain)
    with pytest.raises(UserError, match=r"torque is on at elbow_flex: support the arm and add --torque-off"):
        command.main(apply)
    assert eprom(chain) == before
    assert command.main([*apply, "--torque-off"]) == 0
    assert not chain.servos[2].torque_on


def test_one_joint_is_done_alone_and_an_unknown_one_is_named(
    chain: VirtualChain, port: PtyPort, tmp_path: Path
) -> None:
    before = eprom(chain)
    common = ["--port", port.path, "--joint", "wrist_flex"]
    assert command.main(["apply", *common, "--yes", "--record", str(tmp_path)]) == 0
    assert [a != b for a, b in zip(before, eprom(chain))] == [False, False, False, True, False, False]
    assert command.main(["plan", *common]) == 0
    with pytest.raises(UserError, match="no joint 'wrist'; known: shoulder_pan"):
        command.main(["plan", "--port", port.path, "--joint", "wrist"])


def test_a_record_that_cannot_be_kept_stops_everything_before_it_begins(
    chain: VirtualChain, port: PtyPort, tmp_path: Path
) -> None:
    before = eprom(chain)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder with --record"):
        command.main(["apply", "--port", port.path, "--yes", "--record", str(tmp_path / "file" / "x")])
    assert eprom(chain) == before


def test_a_wrong_supply_is_refused_in_words(chain: VirtualChain, port: PtyPort) -> None:
    for servo in chain.servos:
        servo.voltage_v = 12.2
    for name in ("plan", "apply", "verify"):
        with pytest.raises(UserError, match=r"a 7\.4 V servo .* supply of 12\.2 V: switch the power off now"):
            command.main([name, "--port", port.path])


def test_an_interrupt_in_the_middle_leaves_every_servo_locked_and_a_record(
    chain: VirtualChain, port: PtyPort, tmp_path: Path
) -> None:
    with Person("apply", "--port", port.path, "--yes", "--record", str(tmp_path / "records")) as person:
        wait_for(lambda: chain.servos[1].memory[55] == 0, "the second servo is being written")
        person.process.send_signal(signal.SIGINT)
        assert person.ends() == 130
    assert [s.memory[55] for s in chain.servos] == [1] * 6
    (path,) = (tmp_path / "records").iterdir()
    record = json.loads(path.read_text())
    assert record["outcome"] == "not finished"
    assert len(record["before"]) == 6


def test_one_id_is_changed(port: PtyPort, chain: VirtualChain, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["set-id", "--port", port.path, "--from", "6", "--to", "9", "--yes"]) == 0
    assert "servo 6 is now 9" in capsys.readouterr().out
    assert chain.servos[5].id == 9
    with pytest.raises(UserError, match="id 5 is taken"):
        command.main(["set-id", "--port", port.path, "--from", "9", "--to", "5", "--yes"])


@pytest.mark.parametrize("argv", [[], ["--all", "--from", "1", "--to", "2"], ["--from", "3"], ["--from=3", "--to=3"]])
def test_set_id_wants_a_pair_or_all(argv: list[str]) -> None:
    with pytest.raises(SettingsError, match="either --all, or two different ids with --from and --to"):
        command.main(["set-id", *argv])


def test_new_servos_are_walked_through_one_at_a_time(tmp_path: Path) -> None:
    chain = VirtualChain(StillPlant(2), ids=(1, 1))
    chain.servos[1].eprom.burn("baud_rate", 1)
    for servo in chain.servos:
        servo.silent = True
    with served(tmp_path, chain) as port, Person("set-id", "--port", port.path, "--all") as person:
        person.sees("only the servo of gripper .*Enter: ")
        chain.servos[0].silent = False
        person.types()
        person.sees("gripper: id 1 at 1000000 baud is now id 6")
        person.sees("only the servo of wrist_roll .*Enter: ")
        chain.servos[0].silent = True
        chain.servos[1].silent = False
        person.types()
        person.sees("wrist_roll: id 1 at 500000 baud is now id 5 at 1000000 baud")
        person.sees("only the servo of wrist_flex .*Enter: ")
        chain.servos[0].silent = False
        person.types()
        person.sees("ids 5, 6 answer: disconnect all but the one servo")
        person.sees("only the servo of wrist_flex .*Enter: ")
        person.process.send_signal(signal.SIGINT)
        assert person.ends() == 130
        with port.between_requests():
            chain.power_cycle()
        assert [(s.id, s.baud) for s in chain.servos] == [(6, 1_000_000), (5, 1_000_000)]
