"""The doctor's line to an arm: a bus process of its own with lowered torque caps, and its messages."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zmq

from steadyhand_models import settings, wire
from steadyhand_models.messages import BusAction, BusState, CommandReply, Goal
from steadyhand_models.topics import TOPICS, endpoint
from steadyhand_runtime.clock import NS_PER_S
from steadyhand_runtime.config import BusSettings, RuntimeSettings
from steadyhand_runtime.operator.channel import OperatorClient, subscribe

F64 = npt.NDArray[np.float64]

START_S = 60.0  # the first compilation of the bus's kernels on a slow host
ANSWER_S = 5.0
GOAL_HZ = 20.0
STOP_S = 12.0


class Stopped(Exception):
    """The person, or what was found, ends the walk."""


class BusLine:
    """A running bus process as its messages show it: newest state, commands with their answers, goals."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._states = subscribe(self._context, folder, "bus.state")
        self._client = OperatorClient(folder, "doctor", self._context)
        self._goals = self._context.socket(zmq.PUB)
        self._goals.setsockopt(zmq.LINGER, 0)
        self._goals.connect(endpoint(folder, "bus.goal"))
        self._sent = 0

    def state(self, timeout_s: float = ANSWER_S) -> BusState:
        """The next state. Raises Stopped when the bus is gone."""
        deadline_s = time.monotonic() + timeout_s
        while not self._states.poll(20):
            if self._process.poll() is not None:
                said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
                raise Stopped(f"the bus process ended: {said[-1]}")
            if time.monotonic() > deadline_s:
                raise Stopped(f"no state from the bus for {timeout_s:.0f} s; its log: {self._log}")
        return wire.decode(self._states.recv(), BusState)

    def command(self, action: BusAction) -> float:
        """Ask for something and return how long the answer took. Raises Stopped when it is refused."""
        start_s = time.monotonic()
        number = self._client.command(action, time.monotonic_ns())
        while time.monotonic() - start_s < ANSWER_S:
            self._client.sockets[1].poll(5)
            for reply in self._client.pump(time.monotonic_ns()):
                if isinstance(reply, CommandReply) and reply.command_id == number:
                    if not reply.ok:
                        raise Stopped(f"{action.value} was refused: {reply.reason}")
                    return time.monotonic() - start_s
        raise Stopped(f"the bus did not answer {action.value}")

    def send(self, q_rad: F64) -> None:
        """One goal, valid for a few periods of this sender."""
        self._sent += 1
        now_ns = time.monotonic_ns()
        valid_ns = round(TOPICS["bus.goal"].stale_periods / GOAL_HZ * NS_PER_S)
        self._goals.send(wire.encode(Goal(self._sent, now_ns, now_ns + valid_ns, q_rad)), zmq.DONTWAIT)

    def close(self) -> None:
        self._client.close()
        self._states.close()
        self._goals.close()
        self._context.destroy(linger=0)


@contextmanager
def bus_line(chosen: BusSettings, torque: float) -> Iterator[BusLine]:
    """A bus process with lowered torque caps; however this ends, torque is lowered first and then off."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="steadyhand-doctor-")))
        run = RuntimeSettings(run=folder / "run", sockets=str(folder / "s"), bus=replace(chosen, torque=torque))
        config_file = folder / "runtime.toml"
        config_file.write_text(settings.to_toml(run), encoding="utf-8")
        log = folder / "bus.log"
        output = opened.enter_context(log.open("wb"))
        command = [sys.executable, "-m", "steadyhand_runtime.bus.process", "--config", str(config_file)]
        # A session of its own: Ctrl-C is for the walk, which then stops the arm in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        opened.callback(_end, process)
        line = BusLine(folder / "s", process, log)
        opened.callback(line.close)
        line.state(START_S)
        yield line


def _end(process: subprocess.Popen[bytes]) -> None:
    """The bus process's own end lowers the torque, waits for the arm to sink, and switches torque off."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
