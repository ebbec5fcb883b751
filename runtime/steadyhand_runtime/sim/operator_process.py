"""The scripted operator as a process: sees ground truth and the robot's status, and sends what hotkeys send."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import zmq
from pydantic import Field

from steadyhand_models import settings, task, wire
from steadyhand_models.messages import CommandReply, ControlStatus, EventReply, SceneReply, SceneRequest, Truth
from steadyhand_models.topics import endpoint
from steadyhand_runtime.clock import NS_PER_S, Clock, MonotonicClock
from steadyhand_runtime.config import socket_folder
from steadyhand_runtime.operator.channel import Context, OperatorClient, subscribe
from steadyhand_runtime.sim.operator import OperatorSettings, OperatorTurn, ScriptedOperator
from steadyhand_runtime.telemetry import Log

M = TypeVar("M")
POLL_MS = 20
LOOK_PERIODS = 0.7  # of a control period after its tick: what is done then is still fresh at the next one
SCENE_RETRY_S = 0.5
_DESCRIPTION = """A scripted person at the keyboard of a simulated robot.

Example: steadyhand sim operator --run runs/try --seed 3"""


@dataclass(frozen=True)
class ScriptSettings:
    """The scripted operator of one run."""

    run: Path = Path("runs/latest")
    sockets: str = ""  # folder of the socket files; empty: derived from the run folder
    task: str = "lift"
    seed: Annotated[int, Field(ge=0)] = 0
    person: OperatorSettings = field(default_factory=OperatorSettings)


class SceneHand:
    """Asks the simulation to put the cube anew, again until it answers."""

    def __init__(self, context: Context, folder: Path, seed: int) -> None:
        self._socket = context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        # A request may be repeated without its reply, and a late reply to the one before is dropped.
        self._socket.setsockopt(zmq.REQ_RELAXED, 1)
        self._socket.setsockopt(zmq.REQ_CORRELATE, 1)
        self._socket.connect(endpoint(folder, "sim.control"))
        self._rng = np.random.default_rng(seed)
        self._wanted: int | None = None
        self._sent_ns = 0

    def place(self, now_ns: int) -> None:
        """Ask for the cube at a new place."""
        self._wanted = int(self._rng.integers(1 << 31))
        self._send(now_ns)

    def pump(self, now_ns: int) -> None:
        """Take the answer in, or ask again."""
        if self._wanted is None:
            return
        try:
            reply = newest(self._socket, SceneReply)
        except zmq.ZMQError:
            reply = None  # a refusal was received already: nothing is awaited until the request is repeated
        if reply is not None and reply.ok:
            self._wanted = None
        elif now_ns - self._sent_ns > SCENE_RETRY_S * NS_PER_S:
            self._send(now_ns)

    def close(self) -> None:
        self._socket.close()

    def _send(self, now_ns: int) -> None:
        self._sent_ns = now_ns
        if self._wanted is not None:
            with contextlib.suppress(zmq.Again):
                self._socket.send(wire.encode(SceneRequest(self._wanted)), zmq.DONTWAIT)


class OperatorProcess:
    """Sockets around a ScriptedOperator. It acts once per control tick, on what it sees shortly before the next one."""

    def __init__(self, chosen: ScriptSettings, log: Log, clock: Clock | None = None) -> None:
        self._clock = clock or MonotonicClock()
        self._log = log
        folder = socket_folder(chosen.sockets, chosen.run)
        self._context: Context = zmq.Context()
        self._client = OperatorClient(folder, chosen.person.who, self._context)
        self._truth_socket = subscribe(self._context, folder, "sim.truth")
        self._status_socket = subscribe(self._context, folder, "control.status")
        self._scene = SceneHand(self._context, folder, chosen.seed)
        # A person who comes back does not repeat the event ids of before.
        session = uuid.uuid4().hex[:8]
        chosen_task = task.load(chosen.task)
        self._person = ScriptedOperator(chosen_task, chosen.person, chosen.seed, session)
        self._look_after_ns = round(LOOK_PERIODS / chosen_task.rate_hz * NS_PER_S)
        self._truth: Truth | None = None
        self._status: ControlStatus | None = None
        self._tick = 0

    def turn(self) -> None:
        """Wait a moment for a status or for the time to act on it, and keep the line alive."""
        self._status_socket.poll(self._patience_ms())
        self._truth = newest(self._truth_socket, Truth) or self._truth
        self._status = newest(self._status_socket, ControlStatus) or self._status
        now_ns = self._clock.now_ns()
        status = self._status
        due = status is not None and status.tick != self._tick and now_ns >= status.stamp_ns + self._look_after_ns
        if due and status is not None and self._truth is not None:
            self._tick = status.tick
            self._carry_out(self._person.tick(now_ns, self._truth, status), now_ns)
        for reply in self._client.pump(now_ns):
            self._note(reply)
        self._scene.pump(now_ns)

    def _patience_ms(self) -> int:
        """How long to wait for news: not beyond the time to act."""
        if self._status is None or self._status.tick == self._tick:
            return POLL_MS
        left_ns = self._status.stamp_ns + self._look_after_ns - self._clock.now_ns()
        return max(1, min(POLL_MS, -(-left_ns // 1_000_000)))

    def close(self) -> None:
        self._client.close()
        self._scene.close()
        self._truth_socket.close()
        self._status_socket.close()
        self._context.term()

    def _carry_out(self, turn: OperatorTurn, now_ns: int) -> None:
        # The drive first: when the takeover begins, there is already something to follow.
        if turn.drive is not None:
            self._client.drive(turn.drive)
        for event in turn.events:
            self._log.info("operator.pressed", kind=event.kind.value, id=event.event_id, undo_of=event.undo_of)
            self._client.send(event)
        for action in turn.commands:
            self._log.info("operator.commanded", action=action.value)
            self._client.command(action, now_ns)
        if turn.place_cube:
            self._scene.place(now_ns)

    def _note(self, reply: EventReply | CommandReply) -> None:
        accepted = reply.accepted if isinstance(reply, EventReply) else reply.ok
        if not accepted:
            self._log.warn("operator.refused", every_s=1.0, reason=reply.reason)


def newest(socket: zmq.Socket[bytes], cls: type[M]) -> M | None:
    """What a socket holds, if it holds a valid message."""
    with contextlib.suppress(zmq.Again, wire.WireError):
        return wire.decode(socket.recv(zmq.DONTWAIT), cls)
    return None


def serve(chosen: ScriptSettings, log: Log, stop: Callable[[], bool]) -> None:
    """Play the person until `stop()`."""
    process = OperatorProcess(chosen, log)
    log.info("operator.ready", seed=chosen.seed, demonstrations=chosen.person.demonstrations)
    try:
        while not stop():
            process.turn()
    finally:
        process.close()


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim operator`: a scripted person at the keyboard."""
    chosen = settings.parse_command_line(ScriptSettings, argv, "steadyhand sim operator", _DESCRIPTION)
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopping.append(signum))
    serve(chosen, Log(), lambda: bool(stopping))
    return 0
