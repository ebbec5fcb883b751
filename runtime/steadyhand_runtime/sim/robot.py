"""The simulated robot as a process: physics in real time, servos on a pty, cameras, ground truth, a cube to place."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, TextIO

import numpy as np
import numpy.typing as npt
import zmq
from pydantic import Field

from steadyhand_models import contract, frames, settings, task, wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Frame, SceneReply, SceneRequest, Truth
from steadyhand_models.topics import endpoint
from steadyhand_runtime import config
from steadyhand_runtime.clock import NS_PER_S, Clock, MonotonicClock, Rate
from steadyhand_runtime.sim import light as lights
from steadyhand_runtime.sim.eye import Eye
from steadyhand_runtime.sim.light import Light
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.scene import CAMERA_NAMES, SceneSettings, SimError
from steadyhand_runtime.sim.servos import PlantState, VirtualChain
from steadyhand_runtime.sim.world import TruthState, World
from steadyhand_runtime.telemetry import Log, write_json

MAX_CATCH_UP_S = 0.25  # of a stalled machine; beyond it the world stands still instead of leaping
TRUTH_HZ = 50.0
TRUTH_ROW_HZ = 20.0
FLUSH_ROWS = 20
REALTIME_PRIORITY = 30  # below the bus and the control loop, above everything else
SWITCH_INTERVAL_S = 0.0005  # the servos' thread must not wait 5 ms for the interpreter
TRUTH_HEADER = "stamp_ns,lifted_m,grasped,success,cube_x,cube_y\n"
CAMERA_START_S = 60.0  # the first GL context of a busy machine takes seconds

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SimSettings:
    """The simulated robot.

    Example: steadyhand sim robot --run runs/try --seed 3 --light dusk
    """

    run: Path = Path("runs/latest")
    sockets: str = ""  # folder of the socket files; empty: derived from the run folder
    task: str = "lift"
    seed: Annotated[int, Field(ge=0)] = 0
    port: str = ""  # name under which the servos' port is linked; empty: <run>/edge/port
    baud: Annotated[int, Field(ge=38_400, le=1_000_000)] = 1_000_000
    physics_hz: Annotated[float, Field(ge=50, le=1000)] = 200.0
    camera_hz: Annotated[float, Field(gt=0, le=60)] = 20.0
    light: str = "steady"  # a light scenario that ships, or a .toml file; a step is a control period after the start

    @property
    def port_link(self) -> Path:
        return Path(self.port) if self.port else config.RunPaths(self.run).edge / "port"


def scene_settings(of: task.Task) -> SceneSettings:
    """The simulated table for a task. Raises SettingsError when its cameras are not the simulation's."""
    sizes = {camera.native_px for camera in of.cameras}
    unknown = {camera.name for camera in of.cameras} - set(CAMERA_NAMES)
    if len(sizes) != 1 or unknown:
        known = " and ".join(CAMERA_NAMES)
        raise settings.SettingsError(f"task {of.name}: the simulation has cameras {known}, of one native_px for both")
    return SceneSettings(
        cube_side_m=of.scene.cube_m,
        cube_area_centre_m=of.scene.cube_centre_m,
        cube_area_m=of.scene.cube_area_m,
        cube_yaw_rad=of.scene.cube_yaw_rad,
        lift_m=of.scene.success_lift_m,
        image_px=sizes.pop(),
    )


def truth_message(state: TruthState, stamp_ns: int) -> Truth:
    return Truth(
        stamp_ns=stamp_ns,
        cube_xyz_m=state.cube_xyz_m.astype(np.float32),
        tip_xyz_m=state.tip_xyz_m.astype(np.float32),
        jaw_rad=state.jaw_rad,
        lifted_m=state.lifted_m,
        grasped=state.grasped,
        success=state.success,
    )


class SharedWorld:
    """A World between threads, one at a time; is the Plant of the servos."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.Lock()

    def read(self) -> PlantState:
        with self._lock:
            return self._world.read()

    def drive(self, goal_rad: F64, enabled: npt.NDArray[np.bool_], torque_limit: F64) -> None:
        with self._lock:
            self._world.drive(goal_rad, enabled, torque_limit)

    def advance(self, dt_s: float) -> None:
        with self._lock:
            self._world.advance(dt_s)

    def truth(self) -> TruthState:
        with self._lock:
            return self._world.truth()

    def qpos(self) -> F64:
        with self._lock:
            return self._world.qpos()

    def place_cube(self, seed: int) -> None:
        with self._lock:
            self._world.place_cube(np.random.default_rng(seed))


class Cameras:
    """Draws, prepares and publishes every camera at a fixed rate, in a thread that owns its GL context.

    The constructor returns when the first pictures can be drawn, or raises SimError saying why they cannot.
    """

    def __init__(
        self,
        world: SharedWorld,
        scene: SceneSettings,
        cameras: Sequence[contract.Camera],
        folder: Path,
        context: zmq.Context[zmq.Socket[bytes]],
        rate_hz: float,
        clock: Clock,
        light: Callable[[float], Light] | None = None,
    ) -> None:
        """light(s) is the light so many seconds after the start; None keeps the scene's."""
        self._world, self._scene, self._cameras, self._light = world, scene, cameras, light
        self._clock, self._rate_hz = clock, rate_hz
        self._sockets = {c.name: _bound(context, zmq.PUB, endpoint(folder, "camera.frame", c.name)) for c in cameras}
        self._stop = threading.Event()
        self._started = threading.Event()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)
        self._thread.start()
        if not self._started.wait(CAMERA_START_S):
            self.failure = SimError(f"no picture could be drawn within {CAMERA_START_S:.0f} s")
        if self.failure is not None:
            self.close()
            raise self.failure

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for socket in self._sockets.values():
            socket.close(linger=0)

    def _run(self) -> None:
        try:
            eye = Eye(self._scene)
            try:
                self._shoot(eye, 0)
                self._started.set()
                rate = Rate(self._clock, self._rate_hz)
                while not self._stop.is_set():
                    rate.wait()
                    self._shoot(eye, rate.ticks)
            finally:
                eye.close()
        except Exception as error:  # of whatever GL binding there is; the main thread reports it
            self.failure = error
        finally:
            self._started.set()

    def _shoot(self, eye: Eye, seq: int) -> None:
        stamp_ns = self._clock.now_ns()
        if self._light is not None:
            eye.set_light(self._light(seq / self._rate_hz))
        qpos = self._world.qpos()
        for camera in self._cameras:
            pixels = frames.prepare(eye.render(camera.name, qpos), camera)
            self._sockets[camera.name].send(wire.encode(Frame(camera.name, seq, stamp_ns, pixels)), zmq.NOBLOCK)


class TruthLog:
    """Appends ground truth to a CSV file for reports; nothing that learns ever reads it."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="ascii")
        self._rows: list[str] = [] if self._file.tell() else [TRUTH_HEADER]

    def add(self, truth: Truth) -> None:
        x, y = truth.cube_xyz_m[:2]
        self._rows.append(
            f"{truth.stamp_ns},{truth.lifted_m:.4f},{truth.grasped:d},{truth.success:d},{x:.4f},{y:.4f}\n"
        )
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        self._file.writelines(rows)
        self._file.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()


class Robot:
    """The whole simulated robot; `tick` is one turn of its physics loop. Use as a context manager."""

    def __init__(self, chosen: SimSettings, log: Log, clock: Clock | None = None) -> None:
        """Raises SimError, SettingsError or UserError, each naming the fix."""
        self._clock = clock or MonotonicClock()
        self._log = log
        what = task.load(chosen.task)
        paths = config.RunPaths(chosen.run)
        paths.prepare()
        folder = config.private_folder(config.socket_folder(chosen.sockets, chosen.run))
        scene = scene_settings(what)
        self.world = SharedWorld(World(scene, chosen.seed))
        self._publish_every = max(1, round(chosen.physics_hz / TRUTH_HZ))
        self._write_every = max(1, round(chosen.physics_hz / TRUTH_ROW_HZ))
        with ExitStack() as opened:  # what has been opened is closed again when a later part cannot be
            self._open(chosen, what.contract().cameras, scene, folder, opened)
            self._opened = opened.pop_all()
        self.rate = Rate(self._clock, chosen.physics_hz)
        self._last_ns = self._clock.now_ns()

    def _open(
        self,
        chosen: SimSettings,
        cameras: Sequence[contract.Camera],
        scene: SceneSettings,
        folder: Path,
        opened: ExitStack,
    ) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        opened.callback(context.term)
        self._truth = _bound(context, zmq.PUB, endpoint(folder, "sim.truth"))
        opened.callback(self._truth.close)
        self._control = _bound(context, zmq.REP, endpoint(folder, "sim.control"))
        opened.callback(self._control.close)
        self._truth_log = TruthLog(config.RunPaths(chosen.run).truth)
        opened.callback(self._truth_log.close)
        scenario, rate_hz = lights.load(chosen.light), task.load(chosen.task).rate_hz
        self._cameras = Cameras(
            self.world, scene, cameras, folder, context, chosen.camera_hz, self._clock,
            lambda passed_s: scenario.at(int(passed_s * rate_hz)),
        )  # fmt: skip
        opened.callback(self._cameras.close)
        # Threads inherit the scheduler of the one that starts them: the servos' shall, the cameras' shall not.
        self.degraded = _prefer_realtime()
        self._port = PtyPort(VirtualChain(self.world, baud=chosen.baud), chosen.port_link, self._clock)
        opened.callback(self._port.close)

    @property
    def port(self) -> str:
        """The servos' serial port."""
        return self._port.path

    def tick(self) -> None:
        """Wait for the next deadline and let the time pass that has passed. Raises what stopped the cameras."""
        self.rate.wait()
        now_ns = self._clock.now_ns()
        elapsed_s = (now_ns - self._last_ns) / NS_PER_S
        self._last_ns = now_ns
        if elapsed_s > MAX_CATCH_UP_S:
            self._log.warn("sim.stalled", every_s=5.0, for_s=elapsed_s)
        self.world.advance(min(elapsed_s, MAX_CATCH_UP_S))
        self._tell_truth(now_ns)
        if self._cameras.failure is not None:
            raise self._cameras.failure

    def _tell_truth(self, now_ns: int) -> None:
        publish, write = (self.rate.ticks % every == 0 for every in (self._publish_every, self._write_every))
        if not publish and not write:
            return
        truth = truth_message(self.world.truth(), now_ns)
        if publish:
            self._truth.send(wire.encode(truth), zmq.NOBLOCK)
            self._answer_requests()
        if write:
            self._truth_log.add(truth)

    def _answer_requests(self) -> None:
        try:
            data = self._control.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        try:
            self.world.place_cube(wire.decode(data, SceneRequest).seed)
            ok = True
        except (wire.WireError, ValueError) as error:
            self._log.warn("sim.bad_request", every_s=5.0, reason=error)
            ok = False
        self._control.send(wire.encode(SceneReply(ok)))

    def close(self) -> None:
        """Hang up the port, then free everything else; harmless when repeated."""
        self._opened.close()

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _bound(context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 2)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close()
        raise UserError(
            f"{address}: cannot be bound ({error.strerror}): choose another folder with --sockets"
        ) from None
    return socket


def _prefer_realtime() -> str:
    """Ask for SCHED_FIFO for the physics and the servos; returns why not, or nothing."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    except (AttributeError, OSError) as error:
        return str(error)
    return ""


def serve(chosen: SimSettings, log: Log, stop: Callable[[], bool]) -> None:
    """Run the robot until `stop()`, telling on stdout where its port is."""
    with Robot(chosen, log) as robot:
        if robot.degraded:
            log.warn("sim.realtime_degraded", what=robot.degraded)
        print(robot.port, flush=True)
        log.info("sim.ready", port=robot.port, seed=chosen.seed)
        while not stop():
            robot.tick()
        late = robot.rate.lateness
        figures = {
            "ticks": robot.rate.ticks,
            "missed_ticks": robot.rate.missed,
            "late_p50_s": late.percentile_ns(50) / NS_PER_S,
            "late_p99_s": late.percentile_ns(99) / NS_PER_S,
            "late_max_s": late.max_ns / NS_PER_S,
        }
    log.info("sim.stopped", **figures)
    write_json(config.RunPaths(chosen.run).edge / "sim.json", figures)


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim robot`: a simulated arm on a pty, its cameras and its table."""
    chosen = settings.parse_command_line(
        SimSettings, argv, "steadyhand sim robot", "A simulated SO-101: servos on a pty, two cameras, a table, a cube."
    )
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopping.append(signum))
    try:
        serve(chosen, Log(), lambda: bool(stopping))
    except SimError as error:
        raise UserError(str(error)) from None
    return 0
