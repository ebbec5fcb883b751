"""The control process: the tick on the machine's clock, its ZeroMQ sockets, the recorder and the standby thread."""

from __future__ import annotations

import gc
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import zmq

from steadyhand_models import task as tasks
from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import (
    BusState,
    ControlStatus,
    Drive,
    EventReply,
    Frame,
    Goal,
    Heartbeat,
    Label,
    OperatorEvent,
    Swap,
)
from steadyhand_models.settings import SettingsError
from steadyhand_models.task import Task
from steadyhand_models.topics import TOPICS, endpoint
from steadyhand_runtime import config, model_host
from steadyhand_runtime.clock import NS_PER_S, Clock, LatenessHistogram, MonotonicClock, Rate, realtime
from steadyhand_runtime.config import RuntimeSettings
from steadyhand_runtime.control import Control, Inputs, Outputs
from steadyhand_runtime.liveness import Beat, restarts
from steadyhand_runtime.punctual import punctual_context
from steadyhand_runtime.recorder import EpisodeCounter, Recorder, StreamRecord, ThreadedRecorder
from steadyhand_runtime.spool import Spool
from steadyhand_runtime.swap import Pace
from steadyhand_runtime.telemetry import Log, StatFile
from steadyhand_runtime.timeline import Timeline

STAT_PERIOD_S = 10.0
LAST_WRITE_S = 10.0
EVENTS_PER_TICK = 32
PERCENTILE_TICKS = 10
Message = TypeVar("Message")
Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A reply that may leave when the recorder has committed `after` records."""

    after: int
    envelope: list[bytes]
    reply: EventReply


class ControlSockets:
    """Control's side of every topic on the edge. A message that is not valid is logged and dropped."""

    def __init__(self, folder: Path, cameras: Sequence[str], log: Log, priority: int = 0) -> None:
        """Raises UserError when an address cannot be bound."""
        self._log = log
        self._context = punctual_context(priority)
        self._sockets: list[Socket] = []
        self._bus = self._open(zmq.SUB, endpoint(folder, "bus.state"), connect=True)
        self._goal = self._open(zmq.PUB, endpoint(folder, "bus.goal"), connect=True)
        self._cameras = {n: self._open(zmq.SUB, endpoint(folder, "camera.frame", n), connect=True) for n in cameras}
        self._drive = self._open(zmq.SUB, endpoint(folder, "operator.drive"))
        self._heartbeat = self._open(zmq.SUB, endpoint(folder, "operator.heartbeat"))
        self._event = self._open(zmq.ROUTER, endpoint(folder, "operator.event"))
        self._status = self._open(zmq.PUB, endpoint(folder, "control.status"))
        self._newest: dict[type, Any] = {}
        self._frames: dict[str, Frame] = {}
        self._heard: list[list[bytes]] = []
        self._waiting: deque[Waiting] = deque()

    def receive(self, pace: Pace, disk: str = "") -> Inputs:
        """The newest of every stream, and every event since the last call."""
        for socket, kind in ((self._bus, BusState), (self._drive, Drive), (self._heartbeat, Heartbeat)):
            self._newest[kind] = self._decode(socket, kind) or self._newest.get(kind)
        for name, socket in self._cameras.items():
            self._frames[name] = self._decode(socket, Frame) or self._frames.get(name)  # type: ignore[assignment]
        beat = self._newest[Heartbeat]
        return Inputs(
            bus=self._newest[BusState],
            frames={name: frame for name, frame in self._frames.items() if frame is not None},
            events=self._events(),
            drive=self._newest[Drive],
            heartbeat_ns=beat.stamp_ns if beat is not None else None,
            pace=pace,
            disk=disk,
        )

    def send(self, goal: Goal | None, status: ControlStatus) -> None:
        if goal is not None:
            self._goal.send(wire.encode(goal), zmq.DONTWAIT)
        self._status.send(wire.encode(status), zmq.DONTWAIT)

    def answer(self, replies: Sequence[EventReply], written: int, committed: int) -> None:
        """Acknowledge events once what they caused is on the disk: `written` records so far, `committed` of them."""
        for envelope, reply in zip(self._heard, replies):
            self._waiting.append(Waiting(written, envelope, reply))
        self._heard = []
        while self._waiting and self._waiting[0].after <= committed:
            ready = self._waiting.popleft()
            self._event.send_multipart([*ready.envelope, wire.encode(ready.reply)], zmq.DONTWAIT)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        self._context.term()

    def _events(self) -> list[OperatorEvent]:
        events = []
        for _ in range(EVENTS_PER_TICK):
            try:
                *envelope, body = self._event.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                event = wire.decode(body, OperatorEvent)
            except wire.WireError as error:
                self._log.warn("control.rejected", every_s=1.0, what="event", reason=error)
                reply = EventReply("", False, str(error)[:200])
                self._event.send_multipart([*envelope, wire.encode(reply)], zmq.DONTWAIT)
                continue
            events.append(event)
            self._heard.append(envelope)
        return events

    def _decode(self, socket: Socket, kind: type[Message]) -> Message | None:
        try:
            return wire.decode(socket.recv(zmq.DONTWAIT), kind)
        except zmq.Again:
            return None
        except wire.WireError as error:
            self._log.warn("control.rejected", every_s=1.0, what=kind.__name__, reason=error)
            return None

    def _open(self, kind: int, address: str, connect: bool = False) -> Socket:
        socket: Socket = self._context.socket(kind)
        self._sockets.append(socket)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.CONFLATE, 1)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        elif kind == zmq.PUB:
            socket.setsockopt(zmq.SNDHWM, 2)
        else:
            socket.setsockopt(zmq.RCVHWM, TOPICS["operator.event"].bound)
        if connect:
            socket.connect(address)
            return socket
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(f"{address}: cannot be bound ({error.strerror}): choose another --sockets") from None
        return socket


class ControlProcess:
    """Everything of the process but its signals: `serve` ticks until told to stop, then writes what is left."""

    def __init__(self, settings: RuntimeSettings, log: Log, clock: Clock | None = None) -> None:
        """Raises UserError, SettingsError or SpoolError, each naming the fix."""
        self._settings, self._log = settings, log
        self._clock = clock or MonotonicClock()
        self._task: Task = tasks.load(settings.task)
        paths = settings.paths
        paths.prepare()
        contract = self._task.contract()
        self._rate = Rate(self._clock, self._task.rate_hz)
        # Loads onnxruntime: here, because in the loop that would hold the interpreter for long.
        self._host = model_host.make(settings, contract, lambda: self._rate.missed, log)
        counter = EpisodeCounter(paths.edge / "episode")
        self.control = Control(
            self._task, settings.control, self._host.models, settings.run_id, counter.last + 1, restarts() > 0
        )
        self._sockets = ControlSockets(
            config.private_folder(settings.socket_folder),
            [c.name for c in contract.cameras],
            log,
            settings.control.realtime_priority,
        )
        self._spool = Spool(paths.spool)
        self._recorder = ThreadedRecorder(Recorder(self._spool, counter), log)
        self._stat = StatFile(paths.edge / "control.json", STAT_PERIOD_S, log)
        self._stat_due_ns = 0
        self._status: ControlStatus | None = None
        self._inference = LatenessHistogram()
        self._work = LatenessHistogram()
        self._timeline = Timeline()
        self._written = 0
        self._late_s = (0.0, 0.0)
        self._degraded: list[str] = []

    def serve(self, stop: Callable[[], bool]) -> None:
        """Tick at the task's rate until `stop()`."""
        self._host.start()
        self._prepare()
        self._rate = Rate(self._clock, self._task.rate_hz, phase_ns=0)
        beat = Beat()
        try:
            while not stop():
                self._rate.wait()
                self._turn()
                beat()
        finally:
            self._finish()

    def _turn(self) -> None:
        now_ns = self._clock.now_ns()
        inputs = self._sockets.receive(self._pace(), self._recorder.trouble)
        outputs = self.control.tick(now_ns, inputs)
        self._sockets.send(outputs.goal, outputs.status)
        self._timeline.heard(inputs.bus)
        self._timeline.used(now_ns, inputs, outputs.goal, self._clock.now_ns())
        self._record(outputs)
        self._host.slack()
        self._work.add(self._clock.now_ns() - now_ns)

    def _record(self, outputs: Outputs) -> None:
        self._recorder.put(outputs.records)
        self._written += len(outputs.records)
        self._sockets.answer(outputs.replies, self._written, self._recorder.committed)
        for record in outputs.records:
            _log_record(record, self._log)
        if outputs.status.inference_s > 0:
            self._inference.add(round(outputs.status.inference_s * NS_PER_S))
        self._status = outputs.status
        if outputs.status.stamp_ns >= self._stat_due_ns:
            self._stat_due_ns = outputs.status.stamp_ns + round(STAT_PERIOD_S * NS_PER_S)
            self._write_figures()

    def _prepare(self) -> None:
        """Real-time privileges for this thread only, and a frozen collector."""
        self._degraded = realtime(self._settings.control.realtime_priority)
        for what in self._degraded:
            self._log.warn("control.realtime_degraded", what=what)
        gc.collect()
        gc.freeze()

    def _finish(self) -> None:
        """End the episode that runs, and wait for the disk."""
        records = self.control.stop()
        self._recorder.put(records)
        self._written += len(records)
        self._write_figures()
        complete = self._recorder.close(LAST_WRITE_S)
        self._log.info("control.stopped", ticks=self._rate.ticks, missed=self._rate.missed, complete=complete)
        self._sockets.answer([], self._written, self._recorder.committed)
        self._host.stop()
        self._sockets.close()
        self._spool.close()

    def _pace(self) -> Pace:
        late = self._rate.lateness
        if self._rate.ticks % PERCENTILE_TICKS == 1:
            self._late_s = (late.percentile_ns(50) / NS_PER_S, late.percentile_ns(99) / NS_PER_S)
        lateness_s = self._rate.lateness_ns / NS_PER_S
        return Pace(self._rate.missed, lateness_s, *self._late_s, late.max_ns / NS_PER_S)

    def _write_figures(self) -> None:
        figures, now_ns = self.figures(), self._clock.now_ns()
        self._recorder.later(lambda: self._stat.write(figures, now_ns))

    def figures(self) -> dict[str, Any]:
        """What `control.json` holds."""
        status = self._status
        return {
            "ticks": self._rate.ticks,
            "missed_ticks": self._rate.missed,
            "period_s": self._rate.period_ns / NS_PER_S,
            **self._rate.lateness.spread("late"),
            **self._work.spread("work"),
            **self._inference.spread("inference"),
            **self._timeline.figures(),
            "records": self._written,
            "episode": status.episode if status is not None else 0,
            "policy_version": status.policy_version if status is not None else 0,
            "classifier_version": status.classifier_version if status is not None else 0,
            "engine": self._host.figures(),
            "realtime_degraded": self._degraded,
        }


def _log_record(record: StreamRecord, log: Log) -> None:
    """What a person wants to find in the log: swaps, labels and how episodes ended."""
    if isinstance(record, Swap):
        log.info(
            f"model.{record.outcome.value}", channel=record.channel, version=record.version, previous=record.previous,
            tick=record.tick, build_s=record.build_s, missed=record.missed_ticks, reason=record.reason or "none",
        )  # fmt: skip
    elif isinstance(record, Label):
        log.info("label", kind=record.kind, episode=record.episode, who=record.who, device=record.device)
    elif record.end is not None:
        log.info("episode.end", episode=record.episode, end=record.end, steps=record.seq, by=" ".join(record.reasons))


def main(argv: Sequence[str]) -> int:
    """Run the control process until SIGTERM or SIGINT."""
    settings = config.from_child_arguments(argv, "steadyhand_runtime.control_process")
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopping.append(signum))
    ControlProcess(settings, Log()).serve(lambda: bool(stopping))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (UserError, SettingsError) as error:
        sys.exit(f"control: {error}")
