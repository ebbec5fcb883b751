"""The bus process: the loop on the machine's clock, its ZeroMQ sockets, real-time privileges and a safe end."""

from __future__ import annotations

import gc
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import zmq
from pydantic import Field
from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models import wire
from steadyhand_models.messages import BusCommand, BusState, CommandReply, Goal
from steadyhand_models.settings import SettingsError, parse_command_line

from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.loop import BusLoop, MotionSettings
from steadyhand_runtime.bus.transport import BusError, SerialTransport
from steadyhand_runtime.clock import NS_PER_S, Clock, MonotonicClock, Rate, realtime

log = logging.getLogger("steadyhand.bus")

COMMANDS_PER_TICK = 4
MAX_COMMAND_BYTES = 4096


@dataclass(frozen=True)
class BusSettings:
    """The bus process. It binds all three endpoints."""

    port: str = "/dev/ttyACM0"
    baud: Annotated[int, Field(ge=38_400, le=1_000_000)] = 1_000_000
    arm: str = "so101_follower"
    rate_hz: Annotated[float, Field(ge=10, le=500)] = 100.0
    slow_every: Annotated[int, Field(ge=0, le=1000)] = 20
    state_endpoint: str = "ipc:///tmp/steadyhand/bus.state"
    goal_endpoint: str = "ipc:///tmp/steadyhand/bus.goal"
    command_endpoint: str = "ipc:///tmp/steadyhand/bus.command"
    priority: Annotated[int, Field(ge=0, le=98)] = 80  # SCHED_FIFO; 0 leaves the scheduler alone
    relax_s: Annotated[float, Field(ge=0, le=5)] = 0.5  # lowered torque before torque off at the end
    motion: MotionSettings = field(default_factory=MotionSettings)


class BusSockets:
    """The three sockets: state out, newest goal in, acknowledged commands."""

    def __init__(self, settings: BusSettings) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._state = self._context.socket(zmq.PUB)
        self._goal = self._context.socket(zmq.SUB)
        self._command = self._context.socket(zmq.ROUTER)
        self.rejected = 0
        self._state.setsockopt(zmq.SNDHWM, 2)
        self._goal.setsockopt(zmq.CONFLATE, 1)
        self._goal.setsockopt(zmq.SUBSCRIBE, b"")
        endpoints = (settings.state_endpoint, settings.goal_endpoint, settings.command_endpoint)
        for socket, endpoint in zip((self._state, self._goal, self._command), endpoints):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_COMMAND_BYTES)
            _bind(socket, endpoint)

    def publish(self, state: BusState) -> None:
        self._state.send(wire.encode(state), zmq.DONTWAIT)

    def newest_goal(self) -> Goal | None:
        """The newest goal since the last call, if it is a valid one."""
        try:
            return wire.decode(self._goal.recv(zmq.DONTWAIT), Goal)
        except zmq.Again:
            return None
        except wire.WireError as error:
            self._reject("goal", error)
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
                self._reject("command", error)
                reply = CommandReply(-1, False, str(error))
            self._command.send_multipart([*envelope, wire.encode(reply)], zmq.DONTWAIT)

    def close(self) -> None:
        for socket in (self._state, self._goal, self._command):
            socket.close()
        self._context.term()

    def _reject(self, what: str, error: wire.WireError) -> None:
        self.rejected += 1
        if self.rejected.bit_count() == 1:  # the first, second, fourth, ... so that a flood cannot flood the log
            log.warning("bus.rejected what=%s count=%d error=%s", what, self.rejected, error)


class StopFlag:
    """Set by SIGTERM or SIGINT, or by hand."""

    def __init__(self) -> None:
        self.raised = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.set())

    def set(self) -> None:
        self.raised = True


def run(settings: BusSettings, stop: StopFlag, clock: Clock | None = None) -> int:
    """Serve the arm until `stop`; returns the exit code. Raises BusError when the arm cannot be used or is lost."""
    clock = clock or MonotonicClock()
    arm = load_arm(settings.arm)
    transport = SerialTransport(settings.port, settings.baud, clock)
    driver = Driver(transport, arm, Calibration.default(len(arm.joints)), clock, settings.baud, settings.slow_every)
    loop = BusLoop(driver, settings.rate_hz, settings.motion)
    try:
        sockets = BusSockets(settings)
        try:
            loop.start()
            _prepare(settings)
            try:
                serve(loop, sockets, Rate(clock, settings.rate_hz), clock, stop)
            finally:
                trouble = _end(loop, clock, settings.relax_s)
            return 1 if trouble else 0
        finally:
            sockets.close()
    finally:
        driver.close()


def serve(loop: BusLoop, sockets: BusSockets, rate: Rate, clock: Clock, stop: StopFlag) -> None:
    """Tick until `stop`."""
    while not stop.raised:
        rate.wait()
        sockets.answer_commands(loop, clock)
        goal = sockets.newest_goal()
        now_ns = clock.now_ns()
        if goal is not None:
            loop.submit(goal, now_ns)
        sockets.publish(loop.tick(now_ns, rate.missed, rate.lateness_ns / NS_PER_S, rate.lateness))


def _prepare(settings: BusSettings) -> None:
    if settings.priority:
        for degraded in realtime(settings.priority):
            log.warning("bus.realtime_degraded what=%s", degraded)
    gc.collect()
    gc.freeze()


def _end(loop: BusLoop, clock: Clock, relax_s: float) -> list[str]:
    """Hold the pose with lowered torque for a moment, then torque off everywhere; returns what did not confirm."""
    try:
        loop.relax()
        if loop.energised:
            clock.sleep_until_ns(clock.now_ns() + round(relax_s * NS_PER_S))
        trouble = [str(t) for t in loop.release()]
    except BusError as error:
        trouble = [f"{error}; the arm holds its last goal: switch its power off"]
    for one in trouble:
        log.error("bus.disarm_failed %s", one)
    log.info("bus.stopped ticks=%d refusals=%s", loop.ticks, {r.value: n for r, n in loop.refusals.items()})
    return trouble


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        if endpoint.startswith("ipc://"):
            Path(endpoint.removeprefix("ipc://")).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        raise BusError(f"{endpoint}: cannot be bound ({error}): is another bus process running?") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bus process: 0 after a clean stop, 1 when the arm failed, 2 for wrong settings."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    stop = StopFlag()
    stop.install()
    try:
        arguments = sys.argv[1:] if argv is None else argv
        settings = parse_command_line(
            BusSettings, arguments, "steadyhand-bus", "Drive the arm's servos at a fixed rate."
        )
        return run(settings, stop)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (BusError, ValueError) as error:
        log.error("bus.failed %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
