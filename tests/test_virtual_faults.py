"""Faults that are asked for at run time: what is accepted, what each does, and the socket they come through."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyhand_models.cli import UserError
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.protocol import Frame
from steadyhand_runtime.sim import fault_command
from steadyhand_runtime.sim.fault_socket import FaultSocket, ask
from steadyhand_runtime.sim.faults import (
    MAX_REQUEST_BYTES,
    AfterSilent,
    ChainAction,
    ChainFault,
    FaultError,
    ServoFault,
    parse,
    states,
    strike,
)
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import StillPlant, VirtualChain

T0 = 1_000_000_000


@pytest.fixture
def chain() -> VirtualChain:
    return VirtualChain(StillPlant())


def hit(chain: VirtualChain, **fault: Any) -> None:
    parsed = parse(json.dumps(fault).encode())
    assert isinstance(parsed, ServoFault)
    strike(chain, parsed, T0)


def pings(chain: VirtualChain, servo_id: int) -> list[Frame]:
    return protocol.split_frames(b"".join(r.data for r in chain.feed(protocol.ping(servo_id), T0)))[0]


def memory(chain: VirtualChain, servo_id: int, address: int, size: int) -> bytes:
    replies = chain.feed(protocol.read(servo_id, address, size), T0)
    return protocol.split_frames(b"".join(r.data for r in replies))[0][0].params


def test_every_request_of_the_chain_is_understood() -> None:
    assert parse(b'{"chain": "unplug"}') == ChainFault(ChainAction.UNPLUG)
    assert parse(b'{"chain": "after_silent", "value": "mute"}') == ChainFault(
        ChainAction.AFTER_SILENT, AfterSilent.MUTE
    )
    assert parse(b'{"servo": 2, "late_s": 0.07, "late_replies": 1}') == ServoFault(2, late_s=0.07, late_replies=1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "EOF while parsing"),
        ("nonsense", "Invalid JSON"),
        ("[1]", "should be an object"),
        ("{}", 'a request names either a "servo"'),
        ('{"servo": 1, "chain": "plug"}', 'a request names either a "servo"'),
        ('{"servo": 1}', "what shall happen to it"),
        ('{"servo": 0, "silent": true}', "servo: Input should be greater than or equal to 1"),
        ('{"servo": "1", "silent": true}', "servo: Input should be a valid integer"),
        ('{"servo": 1, "silent": 1}', "silent: Input should be a valid boolean"),
        ('{"servo": 1, "silnet": true}', "unknown 'silnet'; did you mean 'silent'?"),
        ('{"servo": 1, "late_s": 1e9}', "late_s: Input should be less than or equal to 10"),
        ('{"servo": 1, "late_s": NaN}', "late_s"),
        ('{"servo": 1, "baud": 9600}', "baud: Input should be 1000000, 500000"),
        ('{"servo": 1, "id": 254}', "id: Input should be less than or equal to 253"),
        ('{"servo": 1, "firmware": [3]}', "firmware"),
        ('{"chain": "explode"}', "chain: Input should be 'after_silent'"),
        ('{"chain": "after_silent"}', '"value" ("answer" or "mute") belongs to "after_silent"'),
        ('{"chain": "plug", "value": "mute"}', '"value" ("answer" or "mute") belongs to "after_silent"'),
        ('{"servo": 1, "silent": true, "pad": "' + "x" * MAX_REQUEST_BYTES + '"}', "at most 4096 bytes"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(line: str, reason: str) -> None:
    with pytest.raises(FaultError) as refused:
        parse(line.encode())
    assert reason in str(refused.value)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(VALUES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3))


@settings(deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_noise_is_refused_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(FaultError):
        parse(noise)


@settings(deadline=None)
@given(st.sampled_from(["silent", "late_s", "id", "baud", "firmware", "place_ticks", "corrupt_replies"]), JSON)
def test_a_fault_with_any_value_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        fault = parse(json.dumps({"servo": 1, name: value}).encode())
    except FaultError:
        return
    assert isinstance(fault, ServoFault)
    strike(VirtualChain(StillPlant()), fault, T0)


def test_a_servo_that_is_not_there_is_named(chain: VirtualChain) -> None:
    with pytest.raises(FaultError, match=r"servo 7: the chain has servos 1\.\.6"):
        hit(chain, servo=7, silent=True)


def test_silence_comes_and_goes(chain: VirtualChain) -> None:
    hit(chain, servo=3, silent=True)
    assert pings(chain, 3) == []
    hit(chain, servo=3, silent=False)
    assert pings(chain, 3) == [Frame(3, 0, b"")]


def test_replies_are_late_and_damaged_as_often_as_asked(chain: VirtualChain) -> None:
    hit(chain, servo=2, late_s=0.07, late_replies=1)
    late, next_one = (chain.feed(protocol.ping(2), T0 + n * 1_000_000_000)[0].ready_ns for n in range(2))
    assert (late - T0) // 10_000_000 == 7
    assert next_one - T0 - 1_000_000_000 < 1_000_000
    hit(chain, servo=4, corrupt_replies=2)
    assert [pings(chain, 4) for _ in range(3)] == [[], [], [Frame(4, 0, b"")]]


def test_what_a_servo_measures_raises_its_own_alarms(chain: VirtualChain) -> None:
    hit(chain, servo=1, temperature_c=80)
    hit(chain, servo=2, voltage_v=12.0)
    hit(chain, servo=5, alarms=32)
    hit(chain, servo=6, overload=True)
    assert [pings(chain, i)[0].code for i in range(1, 7)] == [4, 1, 0, 0, 32, 32]
    assert memory(chain, 1, 62, 2) == bytes((74, 80))
    assert memory(chain, 2, 62, 1) == bytes((120,))
    assert [s.torque_share() for s in chain.servos] == [0.0, 1.0, 1.0, 1.0, 1.0, pytest.approx(0.2)]
    hit(chain, servo=6, overload=False)
    hit(chain, servo=5, alarms=0)
    assert [pings(chain, i)[0].code for i in (5, 6)] == [0, 0]


def test_what_a_servo_is_outlasts_its_power(chain: VirtualChain) -> None:
    hit(chain, servo=2, model_number=2825, firmware=[3, 9])
    hit(chain, servo=3, id=4)
    chain.power_cycle()
    assert memory(chain, 2, 0, 5) == bytes((3, 9, 0)) + (2825).to_bytes(2, "little")
    assert [s.id for s in chain.servos] == [1, 2, 4, 4, 5, 6]
    hit(chain, servo=3, id=3)
    assert pings(chain, 3) == [Frame(3, 0, b"")]


def test_one_servo_may_lose_its_power_alone(chain: VirtualChain) -> None:
    for servo_id in (1, 2):
        chain.feed(protocol.write(servo_id, 42, b"\x00\x09"), T0)
    hit(chain, servo=1, power_cycle=True)
    assert [s.torque_on for s in chain.servos[:2]] == [False, True]


def test_placing_by_hand_needs_a_joint_without_torque(chain: VirtualChain) -> None:
    hit(chain, servo=4, place_ticks=1000)
    assert memory(chain, 4, 56, 2) == (1000).to_bytes(2, "little")
    chain.feed(protocol.write(4, 40, b"\x01"), T0)
    with pytest.raises(FaultError, match="switch its torque off first"):
        hit(chain, servo=4, place_ticks=2000)


def test_the_state_tells_what_every_servo_is_and_holds(chain: VirtualChain) -> None:
    hit(chain, servo=3, id=4, silent=True, baud=500_000)
    state = states(chain, T0)[2]
    assert (state.servo, state.id, state.baud, state.silent) == (3, 4, 500_000, True)
    assert (state.raw_ticks, state.present_ticks, state.torque_on) == (2048, 2048, False)
    assert bytes.fromhex(state.registers)[5] == 4


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "faults"
    with PtyPort(VirtualChain(StillPlant()), link=tmp_path / "arm") as port, FaultSocket(port, path):
        yield path


def told(path: Path, request: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(path, request))
    return answer


def test_the_socket_answers_line_by_line_and_survives_nonsense(control: Path) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        line.connect(str(control))
        line.sendall(b'{"servo": 3, "silent": true}\n{"servo": 9, "silent": true}\nnonsense\n{"chain": "state"}\n')
        with line.makefile("rb") as answers:
            got = [json.loads(answers.readline()) for _ in range(4)]
    assert [a["ok"] for a in got] == [True, False, False, True]
    assert [s["silent"] for s in got[3]["servos"]] == [False, False, True, False, False, False]


def test_an_endless_line_is_refused_and_ends_the_conversation(control: Path) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        line.connect(str(control))
        line.sendall(b"x" * (MAX_REQUEST_BYTES + 1))
        with line.makefile("rb") as answers:
            assert "at most 4096 bytes" in answers.readline().decode()
            assert answers.read() == b""
    assert told(control, '{"chain": "state"}')["ok"]


def test_only_its_owner_may_use_the_socket(control: Path) -> None:
    assert stat.S_IMODE(os.stat(control).st_mode) == 0o600


def test_the_cable_is_pulled_and_plugged_through_the_socket(control: Path) -> None:
    link = control.parent / "arm"
    assert told(control, '{"chain": "unplug"}')["ok"]
    assert not os.path.lexists(link)
    assert told(control, '{"chain": "plug"}')["port"] == str(link)
    assert link.is_symlink()


def test_the_chains_ways_are_changed_through_the_socket(tmp_path: Path) -> None:
    chain = VirtualChain(StillPlant())
    chain.feed(protocol.write(1, 42, b"\x00\x09"), T0)
    with PtyPort(chain) as port, FaultSocket(port, tmp_path / "faults"):
        assert told(tmp_path / "faults", '{"chain": "after_silent", "value": "mute"}') == {"ok": True}
        assert told(tmp_path / "faults", '{"chain": "power_cycle"}') == {"ok": True}
    assert chain.after_silent is AfterSilent.MUTE
    assert not chain.servos[0].torque_on


def test_an_abandoned_socket_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "faults"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with PtyPort(VirtualChain(StillPlant())) as port:
        with FaultSocket(port, path), pytest.raises(FaultError, match="other virtual servos listen here"):
            FaultSocket(port, path)
        assert not path.exists()
        path.write_text("precious")
        with pytest.raises(FaultError, match="exists and is no socket"):
            FaultSocket(port, path)
        assert path.read_text() == "precious"
        with pytest.raises(FaultError, match="choose a shorter path"):
            FaultSocket(port, tmp_path / ("x" * 200))


def test_the_command_sends_words_and_prints_the_answer(control: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fault_command.main(["--control", str(control), "servo=3", "silent=true", "firmware=[3, 9]"]) == 0
    assert capsys.readouterr().out.strip() == '{"ok": true}'
    assert fault_command.main(["--control", str(control), "chain=after_silent", "value=mute"]) == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "what shall happen"),
        (["silent"], "say name=value"),
        (["servo=3", "silent=yes"], "silent: Input should be a valid boolean"),
    ],
)
def test_the_command_says_what_is_wrong(control: Path, words: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        fault_command.main(["--control", str(control), *words])


def test_the_command_needs_the_socket() -> None:
    with pytest.raises(UserError, match="--control PATH is missing"):
        fault_command.main(["servo=3", "silent=true"])


def test_the_command_names_the_servos_that_do_not_listen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start `steadyhand sim servos --control"):
        fault_command.main(["--control", str(tmp_path / "nobody"), "chain=state"])
