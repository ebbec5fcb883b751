"""The control process on real sockets: goals out, events acknowledged after they are on the disk, models swapped in."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import zmq
from control_world import bus_state, frames_at

from steadyhand_models import wire
from steadyhand_models.artifact import Artifact
from steadyhand_models.messages import (
    ControlStatus,
    EventKind,
    EventReply,
    Goal,
    Label,
    Mode,
    OperatorEvent,
    Step,
    Swap,
)
from steadyhand_models.registry import Registry
from steadyhand_models.topics import endpoint
from steadyhand_runtime import control_process
from steadyhand_runtime.config import RuntimeSettings
from steadyhand_runtime.reset import ResetMotion
from steadyhand_runtime.spool import Spool
from steadyhand_runtime.telemetry import Log

DEADLINE_S = 20.0
CONTRACT = onnx_models.lift().contract()


@pytest.fixture
def sockets() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="shc-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Around:
    """Everything around the control process, in the test's own thread."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context = zmq.Context()
        self._folder = folder
        self._all: list[zmq.Socket] = []
        self.state = self._open(zmq.PUB, "bus.state", bind=True)
        self.goal = self._open(zmq.SUB, "bus.goal", bind=True)
        self.cameras = {n: self._open(zmq.PUB, "camera.frame", bind=True, instance=n) for n in ("front", "wrist")}
        self.status = self._open(zmq.SUB, "control.status")
        self.events = self._open(zmq.DEALER, "operator.event")
        self.q = ResetMotion(onnx_models.lift()).pose_rad.copy()
        self.goals: list[Goal] = []
        self.statuses: list[ControlStatus] = []
        self.replies: list[EventReply] = []

    def _open(self, kind: int, topic: str, bind: bool = False, instance: str = "") -> zmq.Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        if kind == zmq.SUB:
            socket.subscribe(b"")
        address = endpoint(self._folder, topic, instance)
        socket.bind(address) if bind else socket.connect(address)
        self._all.append(socket)
        return socket

    def pump(self) -> None:
        """Publish a fresh state and pictures, and take in what control says."""
        now_ns = time.monotonic_ns()
        self.state.send(wire.encode(bus_state(now_ns, self.q)))
        for name, frame in frames_at(now_ns).items():
            self.cameras[name].send(wire.encode(frame))
        for socket, kind, kept in (
            (self.goal, Goal, self.goals),
            (self.status, ControlStatus, self.statuses),
            (self.events, EventReply, self.replies),
        ):
            while socket.poll(5):
                kept.append(wire.decode(socket.recv(), kind))  # type: ignore[attr-defined]
        if self.goals:
            self.q = np.array(self.goals[-1].position_rad)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline_s, self.statuses[-1:] or "no status"
            self.pump()

    def press(self, kind: EventKind, event_id: str) -> None:
        event = OperatorEvent(event_id, kind, time.monotonic_ns(), "me", "test", 0.0)
        self.events.send(wire.encode(event))

    def mode(self) -> Mode | None:
        return self.statuses[-1].mode if self.statuses else None

    def close(self) -> None:
        for socket in self._all:
            socket.close()
        self._context.term()


class Running:
    """The process's body in a thread, without its real-time privileges."""

    def __init__(self, run: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control_process, "realtime", lambda priority: ["not in a test"])
        self.settings = RuntimeSettings(run=run, sockets=str(sockets))
        self.process = control_process.ControlProcess(self.settings, Log())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.process.serve, args=(self._stop.is_set,), daemon=True)
        self._thread.start()

    def stop(self) -> list[Step | Label | Swap]:
        """Stop it and read what it left in the spool."""
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        spool = Spool(self.settings.paths.spool)
        records = [wire.decode(r.payload, Step, Label, Swap) for r in spool.read_after(0, 10_000)]
        spool.close()
        return records


def publish(run: Path, artifact: Artifact) -> None:
    Registry(run / "edge" / "models").publish(artifact)


def test_a_published_policy_is_swapped_in_drives_and_leaves_its_records(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    around = Around(sockets)
    running = Running(run, sockets, monkeypatch)
    try:
        around.until(lambda: around.mode() is Mode.HOLD)
        publish(run, onnx_models.policy(CONTRACT, 1))
        around.until(lambda: around.mode() is Mode.POLICY)
        publish(run, onnx_models.policy(CONTRACT, 2))
        around.until(lambda: around.statuses[-1].policy_version == 2)
        around.until(lambda: around.statuses[-1].seq > 3)
        around.press(EventKind.SUCCESS, "press-1")
        around.until(lambda: bool(around.replies))
        committed = Spool(running.settings.paths.spool)
        kept = [wire.decode(r.payload, Step, Label, Swap) for r in committed.read_after(0, 1000)]
        committed.close()
        assert around.replies == [EventReply("press-1", True, "")]
        assert any(isinstance(r, Label) and r.event_id == "press-1" for r in kept)
    finally:
        records = running.stop()
        around.close()
    swaps = [r for r in records if isinstance(r, Swap)]
    assert [(s.version, s.outcome.value) for s in swaps] == [(1, "swapped"), (2, "swapped")]
    versions = [s.policy_version for s in records if isinstance(s, Step)]
    assert versions == sorted(versions) and set(versions) == {1, 2}
    assert around.goals and all(g.expires_ns > g.stamp_ns for g in around.goals)
    figures = json.loads((run / "edge" / "control.json").read_text())
    assert figures["records"] == len(records) and figures["policy_version"] == 2
    assert figures["late_histogram"] and figures["inference_s"]["p99"] > 0


def test_what_was_current_and_the_episodes_number_survive_a_restart(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    around = Around(sockets)
    publish(run, onnx_models.policy(CONTRACT, 7))
    try:
        for expected in (1, 2):
            around.pump()  # what the process before said last
            around.statuses.clear()
            running = Running(run, sockets, monkeypatch)
            around.until(lambda: around.mode() is Mode.POLICY and around.statuses[-1].seq > 0)
            assert (around.statuses[-1].policy_version, around.statuses[-1].episode) == (7, expected)
            records = running.stop()
    finally:
        around.close()
    ends = {s.episode: s.end.value for s in records if isinstance(s, Step) and s.end is not None}
    assert ends == {1: "operator", 2: "operator"}


def test_nonsense_on_every_socket_is_answered_or_dropped_and_the_loop_goes_on(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = Around(sockets)
    running = Running(tmp_path / "run", sockets, monkeypatch)
    try:
        around.until(lambda: around.mode() is Mode.HOLD)
        for socket in (around.state, around.cameras["front"], around.events):
            socket.send(b"\xc1 nonsense")
        around.until(lambda: bool(around.replies))
        before = around.statuses[-1].tick
        around.until(lambda: around.statuses[-1].tick > before + 3)
        assert around.mode() is Mode.HOLD
        assert not around.replies[0].accepted and "msgpack" in around.replies[0].reason
    finally:
        running.stop()
        around.close()
