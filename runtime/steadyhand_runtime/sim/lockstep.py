"""Lockstep: the whole robot in one process on a clock that only moves when told, faster than real time.

The servo protocol, the bus loop and the control tick are the real ones; only sockets, threads and waiting are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models import frames
from steadyhand_models.messages import (
    BusAction,
    BusCommand,
    BusState,
    Drive,
    Frame,
    OperatorEvent,
    Truth,
)
from steadyhand_models.task import Task

from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.loop import BusLoop
from steadyhand_runtime.bus.transport import InProcessTransport
from steadyhand_runtime.clock import NS_PER_S, ManualClock
from steadyhand_runtime.control import Control, Inputs, Outputs
from steadyhand_runtime.sim.scene import SceneSettings
from steadyhand_runtime.sim.servos import VirtualChain
from steadyhand_runtime.sim.world import World
from steadyhand_runtime.telemetry import Log

BUS_RATE_HZ = 100.0


def scene_of(task: Task) -> SceneSettings:
    """The simulated table of a task."""
    scene = task.scene
    return SceneSettings(
        cube_side_m=scene.cube_m,
        cube_area_centre_m=scene.cube_centre_m,
        cube_area_m=scene.cube_area_m,
        cube_yaw_rad=scene.cube_yaw_rad,
        lift_m=scene.success_lift_m,
        image_px=task.cameras[0].native_px,
    )


class WireTime(InProcessTransport):
    """Virtual servos whose bytes take their time: reading moves the manual clock to when the last one is there."""

    def read(self, n: int, deadline_ns: int) -> bytes:
        arrived_ns = max((r.ready_ns for r in self._replies if r.ready_ns <= deadline_ns), default=deadline_ns)
        data = super().read(n, deadline_ns)
        self._clock.sleep_until_ns(arrived_ns)
        return data


class LockstepRobot:
    """Arm, cameras, bus and control on one manual clock. `step` is one control period."""

    def __init__(self, task: Task, control: Control, seed: int, scene: SceneSettings | None = None, log: Log | None = None) -> None:
        self.control = control
        self.clock = ManualClock()
        self.world = World(scene or scene_of(task), seed)
        transport = WireTime(VirtualChain(self.world), self.clock)
        arm = load_arm()
        driver = Driver(transport, arm, Calibration.default(len(arm.joints)), self.clock)
        self.bus = BusLoop(driver, BUS_RATE_HZ, log=log)
        self.bus.start()
        self._cameras = task.contract().cameras
        self._bus_ticks = round(BUS_RATE_HZ / task.rate_hz)
        self._state: BusState = self.bus.tick(self.clock.now_ns())
        self._next_ns = self.clock.now_ns()
        self._commands = 0
        self._pictures = 0
        self.native: dict[str, np.ndarray] = {}

    @property
    def now_ns(self) -> int:
        return self.clock.now_ns()

    def step(
        self, events: Sequence[OperatorEvent] = (), drive: Drive | None = None, commands: Sequence[BusAction] = ()
    ) -> Outputs:
        """One control tick on fresh pictures, then the bus ticks of its period. Raises SimError without GL."""
        now_ns = self.clock.now_ns()
        for action in commands:
            self._commands += 1
            self.bus.command(BusCommand(self._commands, action), now_ns)
        inputs = Inputs(self._state, self._look(now_ns), events, drive, heartbeat_ns=now_ns)
        outputs = self.control.tick(now_ns, inputs)
        if outputs.goal is not None:
            self.bus.submit(outputs.goal, now_ns)
        for _ in range(self._bus_ticks):
            self._next_ns += round(self.bus.dt_s * NS_PER_S)
            self.clock.sleep_until_ns(self._next_ns)
            self.world.advance(self.bus.dt_s)
            self._state = self.bus.tick(self.clock.now_ns())
        return outputs

    def truth(self) -> Truth:
        """What is true now, for the scripted operator and the experiment's records only."""
        true = self.world.truth()
        return Truth(
            stamp_ns=self.clock.now_ns(),
            cube_xyz_m=true.cube_xyz_m.astype(np.float32),
            tip_xyz_m=true.tip_xyz_m.astype(np.float32),
            jaw_rad=true.jaw_rad,
            lifted_m=true.lifted_m,
            grasped=true.grasped,
            success=true.success,
        )

    def close(self) -> None:
        self.world.close()

    def _look(self, now_ns: int) -> dict[str, Frame]:
        """Fresh pictures of every camera, prepared; the native ones stay in `native`."""
        self._pictures += 1
        pictures = {}
        for camera in self._cameras:
            self.native[camera.name] = self.world.render(camera.name)
            pixels = frames.prepare(self.native[camera.name], camera)
            pictures[camera.name] = Frame(camera.name, self._pictures, now_ns, pixels)
        return pictures
