"""The scripted operator's process against in-test ends of its sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from steadyhand_models import wire
from steadyhand_models.messages import (
    BusAction,
    BusCommand,
    CommandReply,
    ControlStatus,
    Drive,
    EventKind,
    EventReply,
    Heartbeat,
    Mode,
    OperatorEvent,
    SceneReply,
    SceneRequest,
    Truth,
)
from steadyhand_models.topics import endpoint
from steadyhand_runtime.sim.operator_process import OperatorProcess, ScriptSettings
from steadyhand_runtime.telemetry import Log

DEADLINE_S = 10.0
PERIOD_NS = 100_000_000


class Robot:
    """The robot's and the simulation's ends; every `publish` is one control tick."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.status = self._bind(zmq.PUB, endpoint(folder, "control.status"))
        self.truth = self._bind(zmq.PUB, endpoint(folder, "sim.truth"))
        self.commands = self._bind(zmq.ROUTER, endpoint(folder, "bus.command"))
        self.events = self._bind(zmq.ROUTER, endpoint(folder, "operator.event"))
        self.scene = self._bind(zmq.REP, endpoint(folder, "sim.control"))
        self.drive = self._bind(zmq.SUB, endpoint(folder, "operator.drive"))
        self.heartbeat = self._bind(zmq.SUB, endpoint(folder, "operator.heartbeat"))
        self.tick = 0

    def publish(self, mode: Mode) -> None:
        self.tick += 1
        stamp_ns = time.monotonic_ns() - PERIOD_NS  # the time to act on it has come
        tip, cube = np.array([0.19, 0.0, 0.11], np.float32), np.array([0.2, 0.0, 0.0125], np.float32)
        self.truth.send(wire.encode(Truth(stamp_ns, cube, tip, 0.9, 0.0, False, False)))
        status = ControlStatus(
            self.tick, stamp_ns, mode, 0, 0, 0.0, 0, 0, 0.0, 0.5, 0, 0.0, 0.0, 0.0, 0.0, 0, "", ""
        )  # fmt: skip
        self.status.send(wire.encode(status))

    def _bind(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.bind(address)
        return socket


@pytest.fixture
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Robot, OperatorProcess]]:
    folder = tmp_path_factory.mktemp("s")
    robot = Robot(folder)
    process = OperatorProcess(ScriptSettings(run=folder, sockets=str(folder)), Log())
    yield robot, process
    process.close()
    robot.context.destroy(linger=0)


def turns_until(robot: Robot, process: OperatorProcess, mode: Mode, heard: Callable[[], bool], what: str) -> None:
    """Let both sides turn until something has been heard."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not heard():
        assert time.monotonic() < deadline_s, f"never heard: {what}"
        robot.publish(mode)
        process.turn()


def test_it_arms_sets_the_scene_demonstrates_and_beats(meeting: tuple[Robot, OperatorProcess]) -> None:
    robot, process = meeting
    turns_until(robot, process, Mode.IDLE, lambda: bool(robot.commands.poll(0)), "arm")
    sender, data = robot.commands.recv_multipart()
    command = wire.decode(data, BusCommand)
    assert command.action is BusAction.ARM
    robot.commands.send_multipart([sender, wire.encode(CommandReply(command.command_id, True, ""))])

    turns_until(robot, process, Mode.HOLD, lambda: bool(robot.scene.poll(0)), "a scene request")
    assert wire.decode(robot.scene.recv(), SceneRequest).seed >= 0
    robot.scene.send(wire.encode(SceneReply(True)))

    turns_until(robot, process, Mode.HOLD, lambda: bool(robot.events.poll(0)), "a takeover")
    sender, data = robot.events.recv_multipart()
    event = wire.decode(data, OperatorEvent)
    assert event.kind is EventKind.TAKEOVER_BEGIN and event.device == "script"
    robot.events.send_multipart([sender, wire.encode(EventReply(event.event_id, True, ""))])

    turns_until(robot, process, Mode.TAKEOVER, lambda: bool(robot.drive.poll(0)), "a drive")
    drive = wire.decode(robot.drive.recv(), Drive)
    assert drive.action.shape == (4,) and drive.action.any() and not drive.neutral
    turns_until(robot, process, Mode.TAKEOVER, lambda: bool(robot.heartbeat.poll(0)), "a heartbeat")
    assert wire.decode(robot.heartbeat.recv(), Heartbeat).who == "script"


def test_a_scene_request_is_repeated_until_it_is_answered(meeting: tuple[Robot, OperatorProcess]) -> None:
    robot, process = meeting
    turns_until(robot, process, Mode.HOLD, lambda: bool(robot.scene.poll(0)), "a scene request")
    first = wire.decode(robot.scene.recv(), SceneRequest)
    robot.scene.send(wire.encode(SceneReply(False)))
    turns_until(robot, process, Mode.HOLD, lambda: bool(robot.scene.poll(0)), "the request again")
    assert wire.decode(robot.scene.recv(), SceneRequest) == first


def test_two_lives_of_one_operator_never_send_the_same_event_id(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("s")
    lives = [OperatorProcess(ScriptSettings(run=folder, sockets=str(folder)), Log()) for _ in range(2)]
    ids = {life._person._fingers.event(0, EventKind.SCENE_READY).event_id for life in lives}
    for life in lives:
        life.close()
    assert len(ids) == 2
