"""`bus monitor`: what it shows, that it never energises, and the runtime that holds the port."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from setup_rig import Person, served

from steadyhand_firmware.calibration import RAD_PER_TICK
from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import BusState
from steadyhand_models.topics import endpoint
from steadyhand_runtime.bus import command, protocol
from steadyhand_runtime.bus.protocol import Alarm, Instruction
from steadyhand_runtime.bus.transport import SerialTransport
from steadyhand_runtime.clock import MonotonicClock
from steadyhand_runtime.sim.plant import StillPlant
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import VirtualChain

TICKS = [2048, 2148, 1948, 3000, 1000, 2500]
LISTENING_ONLY = {Instruction.PING, Instruction.READ, Instruction.SYNC_READ}


@pytest.fixture
def chain() -> VirtualChain:
    made = VirtualChain(StillPlant())
    for index, ticks in enumerate(TICKS):
        made.place(index, ticks)
    return made


@pytest.fixture
def port(tmp_path: Path, chain: VirtualChain) -> Iterator[PtyPort]:
    with served(tmp_path, chain) as opened:
        yield opened


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def state() -> BusState:
    zeros = np.zeros(6)
    return BusState(
        tick=1,
        stamp_ns=5,
        position_rad=(np.array(TICKS) - 2048) * RAD_PER_TICK,
        velocity_rad_s=zeros,
        load=zeros,
        valid=np.array([True] * 5 + [False]),
        age_s=np.array([0.0] * 5 + [0.7]),
        alarms=np.array([0, 0, 0, 0, 0, int(Alarm.OVERLOAD)]),
        goal_rad=zeros,
        armed=True,
        estopped=False,
        fault="",
        refusals=(),
        missed_ticks=0,
        lateness_s=0.0,
        late_p50_s=0.0,
        late_p99_s=0.0,
        temperature_c=np.full(6, 33.0),
        voltage_v=np.full(6, 7.3),
        current_a=zeros,
    )


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Path]:
    """A runtime's published state, again and again; the folder of its sockets."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(endpoint(tmp_path, "bus.state"))
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.01):
            socket.send(wire.encode(state()))

    thread = threading.Thread(target=publish)
    thread.start()
    yield tmp_path
    stop.set()
    thread.join()
    socket.close()
    context.term()


def test_every_cycle_is_one_json_object(port: PtyPort, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["monitor", "--port", port.path, "--json", "--cycles", "5"]) == 0
    seen = lines(capsys)
    assert len(seen) == 5
    stamps = [s["stamp_ns"] for s in seen]
    assert stamps == sorted(set(stamps))
    # On a busy machine a reply may miss the cycle's margin; what is valid must be right.
    valid = [s for one in seen for s in one["servos"] if s["valid"]]
    assert {s["joint"] for s in valid} == {
        "shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper",
    }  # fmt: skip
    for s in valid:
        assert s["position_ticks"] == TICKS[s["id"] - 1]
        assert s["position_rad"] == pytest.approx((s["position_ticks"] - 2048) * RAD_PER_TICK)
        assert s["errors"] == [] and s["age_s"] == 0.0


def test_it_only_listens(chain: VirtualChain, port: PtyPort, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[bytes] = []
    feed = chain.feed
    chain.feed = lambda data, now_ns: heard.append(bytes(data)) or feed(data, now_ns)  # type: ignore[method-assign, func-returns-value]
    chain.servos[0].memory[40] = 1
    assert command.main(["monitor", "--port", port.path, "--json", "--cycles", "30"]) == 0
    codes = {f.code for f in protocol.split_frames(b"".join(heard))[0]}
    assert codes and codes <= LISTENING_ONLY
    assert [s.torque_on for s in chain.servos] == [True] + [False] * 5


def test_a_missing_servo_does_not_hide_the_others(
    chain: VirtualChain, port: PtyPort, capsys: pytest.CaptureFixture[str]
) -> None:
    chain.servos[3].silent = True
    chain.servos[5].trip_overload()
    assert command.main(["monitor", "--port", port.path, "--json", "--cycles", "10"]) == 0
    seen = lines(capsys)
    assert not any(one["servos"][3]["valid"] for one in seen)
    assert any(one["servos"][4]["valid"] for one in seen)
    assert any(one["servos"][5]["errors"] == ["overload"] for one in seen)


def test_a_bus_without_servos_is_an_error_with_the_fix(chain: VirtualChain, port: PtyPort) -> None:
    for servo in chain.servos:
        servo.silent = True
    with pytest.raises(UserError, match="power"):
        command.main(["monitor", "--port", port.path, "--json", "--cycles", "1"])
    SerialTransport(port.path, 1_000_000, MonotonicClock()).close()  # the port was let go


def test_the_table_shows_every_joint_and_its_errors(
    chain: VirtualChain, port: PtyPort, capsys: pytest.CaptureFixture[str]
) -> None:
    chain.servos[5].trip_overload()
    assert command.main(["monitor", "--port", port.path, "--cycles", "8"]) == 0
    text = capsys.readouterr().out
    assert "shoulder_pan" in text and "overload" in text and "3000" in text


def test_a_calibration_gives_the_angles_their_meaning(
    port: PtyPort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "follower.json"
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    entry = {"drive_mode": 0, "homing_offset": 0, "range_min": 1000, "range_max": 3000}
    path.write_text(json.dumps({n: {"id": i, **entry} for i, n in enumerate(names, 1)}))
    argv = ["monitor", "--port", port.path, "--json", "--cycles", "5", "--calibration", str(path)]
    assert command.main(argv) == 0
    pans = [one["servos"][0] for one in lines(capsys) if one["servos"][0]["valid"]]
    assert pans and all(p["position_rad"] == pytest.approx(48 * RAD_PER_TICK) for p in pans)
    assert all(p["position_ticks"] == 2048 for p in pans)


def test_a_runtime_that_holds_the_port_is_listened_to(
    port: PtyPort, publisher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = SerialTransport(port.path, 1_000_000, MonotonicClock())
    try:
        argv = ["monitor", "--port", port.path, "--json", "--cycles", "3", "--sockets", str(publisher)]
        assert command.main(argv) == 0
    finally:
        holder.close()
    captured = capsys.readouterr()
    assert "is taken; showing what the runtime of runs/latest publishes" in captured.err
    seen = [json.loads(line) for line in captured.out.splitlines()]
    assert len(seen) == 3
    gripper = seen[0]["servos"][5]
    assert (gripper["valid"], gripper["age_s"], gripper["errors"]) == (False, 0.7, ["overload"])
    assert gripper["position_ticks"] == TICKS[5]


def test_a_port_that_another_program_holds_is_called_busy(port: PtyPort, tmp_path: Path) -> None:
    holder = SerialTransport(port.path, 1_000_000, MonotonicClock())
    try:
        with pytest.raises(UserError, match="busy: another program holds it"):
            command.main(["monitor", "--port", port.path, "--sockets", str(tmp_path)])
    finally:
        holder.close()


def test_an_interrupt_ends_it_and_frees_the_port(port: PtyPort) -> None:
    with Person("monitor", "--port", port.path, "--json") as person:
        person.sees('"servos"')
        person.process.send_signal(signal.SIGINT)
        assert person.ends() == 130
        assert "Traceback" not in person.text
    SerialTransport(port.path, 1_000_000, MonotonicClock()).close()
