"""The bus process: the loop on the machine's clock, its ZeroMQ sockets, real-time privileges and a safe end."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zmq

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_firmware.lerobot import CalibrationError, load_calibration
from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import BusCommand, BusState, CommandReply, Goal
from steadyhand_models.settings import SettingsError
from steadyhand_models.topics import TOPICS, endpoint
from steadyhand_runtime import config
from steadyhand_runtime.bus import schedule
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.loop import BusLoop, MotionSettings
from steadyhand_runtime.bus.recording import FlightRecorder, RecordingTransport
from steadyhand_runtime.bus.reopen import Port, answering_baud
from steadyhand_runtime.bus.transport import BusError, SerialTransport, Transport
from steadyhand_runtime.bus.verify import NobodyAnswers
from steadyhand_runtime.clock import BUS_PHASE_NS, NS_PER_S, Clock, MonotonicClock, Rate, realtime
from steadyhand_runtime.liveness import Beat
from steadyhand_runtime.punctual import punctual_context
from steadyhand_runtime.telemetry import Log, write_json

COMMANDS_PER_TICK = 4
MAX_REQUEST_BYTES = 4096
RATE_TRIES = 3
RELAX_S = 0.5  # lowered torque before torque off, so that the arm sinks instead of dropping


class BusSockets:
    """Binds the bus's three topics: state out, newest goal in, acknowledged commands."""

    def __init__(self, folder: Path, log: Log, priority: int = 0) -> None:
        self._log = log
        self._context = punctual_context(priority)
        self._state = self._context.socket(zmq.PUB)
        self._goal = self._context.socket(zmq.SUB)
        self._command = self._context.socket(zmq.ROUTER)
        self._state.setsockopt(zmq.SNDHWM, 2)
        self._goal.setsockopt(zmq.CONFLATE, 1)
        self._goal.setsockopt(zmq.SUBSCRIBE, b"")
        self._command.setsockopt(zmq.RCVHWM, TOPICS["bus.command"].bound)
        topics = {"bus.state": self._state, "bus.goal": self._goal, "bus.command": self._command}
        for topic, socket in topics.items():
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
            _bind(socket, endpoint(folder, topic))

    def publish(self, state: BusState) -> None:
        self._state.send(wire.encode(state), zmq.DONTWAIT)

    def newest_goal(self) -> Goal | None:
        """The newest goal since the last call, if it is a valid one."""
        try:
            return wire.decode(self._goal.recv(zmq.DONTWAIT), Goal)
        except zmq.Again:
            return None
        except wire.WireError as error:
            self._log.warn("bus.rejected", every_s=1.0, what="goal", reason=error)
            return None

    def answer_commands(self, loop: BusLoop, clock: Clock) -> None:
        """Carry out what has been asked, from REQ and DEALER sockets alike, and reply to each."""
        for _ in range(COMMANDS_PER_TICK):
            try:
                *envelope, body = self._command.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                reply = loop.command(wire.decode(body, BusCommand), clock.now_ns())
            except wire.WireError as error:
                self._log.warn("bus.rejected", every_s=1.0, what="command", reason=error)
                reply = CommandReply(-1, False, str(error)[:200])
            self._command.send_multipart([*envelope, wire.encode(reply)], zmq.DONTWAIT)

    def close(self) -> None:
        for socket in (self._state, self._goal, self._command):
            socket.close()
        self._context.term()


class StopFlag:
    """Set by SIGTERM or SIGINT, or by hand."""

    def __init__(self) -> None:
        self.raised = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.set())

    def set(self) -> None:
        self.raised = True


class Flight:
    """The last seconds of traffic, written aside whenever the bus reports a fault that it did not report before."""

    def __init__(self, folder: Path, settings: config.BusSettings, arm: str, log: Log) -> None:
        self._recorder = FlightRecorder(folder, settings.port, settings.baud, arm)
        self._log = log
        self._fault = ""

    def over(self, transport: Transport, clock: Clock) -> Transport:
        """The transport, with everything that passes through it remembered."""
        return RecordingTransport(transport, clock, self._recorder)

    def look(self, fault: str) -> None:
        """What the bus says of itself after a tick."""
        if fault and fault != self._fault:
            self._log.warn("bus.flight_saved", path=self._recorder.save(fault))
        self._fault = fault

    def close(self) -> None:
        """Until the files are on the disk."""
        self._recorder.wait()


def run(
    settings: config.BusSettings, folder: Path, stop: StopFlag, log: Log, faults: Path, clock: Clock | None = None
) -> dict[str, Any]:
    """Serve the arm until `stop`, with sockets in `folder` and the traffic before each fault kept in `faults`.

    Returns the figures of the run.
    Raises BusError when the arm cannot be used from the start; a port that is lost later is waited for.
    """
    clock = clock or MonotonicClock()
    arm = load_arm()
    calibration = load_calibration(settings.calibration, arm) if settings.calibration else Calibration.default()
    flight = Flight(faults, settings, arm.name, log)
    port = Port(settings.port, lambda name: flight.over(SerialTransport(name, settings.baud, clock), clock))
    driver = Driver(port.open(), arm, calibration, clock, settings.baud, settings.slow_every)
    loop = BusLoop(driver, settings.rate_hz, MotionSettings(torque=settings.torque), log=log)
    try:
        sockets = BusSockets(folder, log, settings.realtime_priority)
        try:
            _start(loop, settings, clock)
            try:
                degraded = _prepare(settings.realtime_priority, log)
                _check_rate(driver, settings.rate_hz, log)
                rate = Rate(clock, settings.rate_hz, BUS_PHASE_NS)
                serve(loop, sockets, rate, clock, stop, port, flight)
            finally:
                trouble = _end(loop, clock, log)
            return {**_figures(loop, rate), "realtime_degraded": degraded, "disarm_trouble": trouble}
        finally:
            sockets.close()
    finally:
        driver.close()
        flight.close()


def serve(
    loop: BusLoop, sockets: BusSockets, rate: Rate, clock: Clock, stop: StopFlag, port: Port, flight: Flight
) -> None:
    """Tick until `stop`."""
    beat = Beat()
    while not stop.raised:
        beat()
        rate.wait()
        sockets.answer_commands(loop, clock)
        goal = sockets.newest_goal()
        now_ns = clock.now_ns()
        if goal is not None:
            loop.submit(goal, now_ns)
        state = loop.tick(now_ns, rate.missed, rate.lateness_ns / NS_PER_S, rate.lateness)
        sockets.publish(state)
        flight.look(state.fault)
        if loop.port_lost:
            _look_for_port(loop, port, clock)


def _look_for_port(loop: BusLoop, port: Port, clock: Clock) -> None:
    """Reopen the port if it is time and it is there, and take the arm back when it is the right one."""
    loop.driver.close()  # held on to, a device that comes back would get another name
    transport = port.reopen(clock.now_ns())
    if transport is None:
        return
    loop.driver.attach(transport)
    try:
        loop.recover()
        port.settled()
    except BusError as error:
        loop.log.warn("bus.not_back", every_s=5.0, reason=error)
        loop.driver.close()


def _start(loop: BusLoop, settings: config.BusSettings, clock: Clock) -> None:
    """Meet the servos; when none answers, say at which other rate one does. Raises BusError."""
    try:
        loop.start()
    except NobodyAnswers as error:
        loop.driver.close()
        ids = loop.driver.arm.ids
        found = answering_baud(lambda baud: SerialTransport(settings.port, baud, clock), clock, ids, settings.baud)
        if found is None:
            raise
        raise BusError(
            f"no servo answers at {settings.baud} baud, but at {found}: look with `steadyhand bus scan --all-bauds`, "
            f"then set bus.baud = {found}, or the servos' own rate with `steadyhand bus apply`"
        ) from error


def _check_rate(driver: Driver, rate_hz: float, log: Log) -> None:
    """Refuse a rate that the wire cannot carry; a busy moment of the host is not a slow wire. Raises BusError."""
    for left in reversed(range(RATE_TRIES)):
        achievable_hz = driver.measure_hz()
        if achievable_hz >= rate_hz or not left:
            break
    log.info("bus.rate", rate_hz=rate_hz, achievable_hz=achievable_hz)
    schedule.require_rate(rate_hz, achievable_hz)


def _prepare(priority: int, log: Log) -> list[str]:
    """Real-time privileges and a frozen collector, before any torque; returns what was not granted."""
    degraded = realtime(priority)
    for what in degraded:
        log.warn("bus.realtime_degraded", what=what)
    gc.collect()
    gc.freeze()
    return degraded


def _end(loop: BusLoop, clock: Clock, log: Log) -> list[str]:
    """Hold the pose with lowered torque for a moment, then torque off everywhere; returns what did not confirm."""
    try:
        loop.relax()
        if loop.energised:
            clock.sleep_until_ns(clock.now_ns() + round(RELAX_S * NS_PER_S))
        trouble = [str(t) for t in loop.release()]
    except BusError as error:
        trouble = [f"{error}; the arm holds its last goal: switch its power off"]
    for one in trouble:
        log.error("bus.disarm_failed", what=one)
    return trouble


def _figures(loop: BusLoop, rate: Rate) -> dict[str, Any]:
    late = rate.lateness
    return {
        "ticks": loop.ticks,
        "missed_ticks": rate.missed,
        "period_s": rate.period_ns / NS_PER_S,
        "late_s": {name: late.percentile_ns(p) / NS_PER_S for name, p in (("p50", 50), ("p99", 99), ("p99.9", 99.9))},
        "late_max_s": late.max_ns / NS_PER_S,
        "late_histogram": [[edge_ns / NS_PER_S, count] for edge_ns, count in late.nonzero_ns()],
        "refusals": {reason.value: count for reason, count in loop.refusals.items()},
        "cycles": loop.driver.cycles,
        "failed_reads": loop.driver.failed_reads,
        "drained_bytes": loop.driver.drained_bytes,
        "faults": {reason.value: count for reason, count in loop.faults.items()},
        "foldbacks": {reason.value: count for reason, count in loop.foldbacks.items()},
        "servos": [asdict(counters) for counters in loop.driver.counters()],
    }


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise BusError(f"{address}: cannot be bound: {error}") from None


def main(argv: Sequence[str]) -> int:
    """Run the bus process: 0 after a clean stop, 1 when a servo did not confirm torque off."""
    settings = config.from_child_arguments(argv, "steadyhand_runtime.bus.process")
    log = Log()
    stop = StopFlag()
    stop.install()
    paths = settings.paths
    paths.prepare()
    figures = run(settings.bus, config.private_folder(settings.socket_folder), stop, log, paths.faults)
    log.info(
        "bus.stopped", ticks=figures["ticks"], missed=figures["missed_ticks"], trouble=len(figures["disarm_trouble"])
    )
    write_json(paths.edge / "bus.json", figures)
    return 1 if figures["disarm_trouble"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (UserError, SettingsError, BusError, CalibrationError) as error:
        sys.exit(f"bus: {error}")
