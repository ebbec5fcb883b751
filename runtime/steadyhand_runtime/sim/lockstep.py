"""Lockstep: the whole robot in one process on a clock that only moves when told, faster than real time.

The servo protocol, the bus loop and the control tick are the real ones, and so is the link to the trainer; sockets
between the robot's own processes, threads and waiting are left out.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_models import frames, settings
from steadyhand_models import task as tasks
from steadyhand_models.messages import (
    BusAction,
    BusCommand,
    BusState,
    ControlStatus,
    Drive,
    Frame,
    OperatorEvent,
    Step,
    Truth,
)
from steadyhand_models.registry import Registry
from steadyhand_models.task import Task
from steadyhand_runtime.bus.driver import Driver
from steadyhand_runtime.bus.loop import BusLoop
from steadyhand_runtime.bus.transport import InProcessTransport
from steadyhand_runtime.clock import NS_PER_S, ManualClock
from steadyhand_runtime.config import ControlSettings, LinkSettings, RunPaths
from steadyhand_runtime.control import Control, Inputs, Outputs
from steadyhand_runtime.link import Link
from steadyhand_runtime.recorder import EpisodeCounter, Recorder
from steadyhand_runtime.sim import light as lights
from steadyhand_runtime.sim.operator import OperatorSettings, ScriptedOperator
from steadyhand_runtime.sim.robot import TruthLog, scene_settings, truth_message
from steadyhand_runtime.sim.scene import SceneSettings
from steadyhand_runtime.sim.servos import VirtualChain
from steadyhand_runtime.sim.world import World
from steadyhand_runtime.spool import Spool
from steadyhand_runtime.swap import Models, Quarantine, Standby
from steadyhand_runtime.telemetry import Log, write_json

BUS_RATE_HZ = 100.0
PICTURE_LEAD_TICKS = 3  # bus ticks from a picture to the control tick that sees it: 30 ms, as 20 Hz cameras give
CREDIT_WAIT_MS = 20
REPORT_EPISODES = 10


class WireTime(InProcessTransport):
    """Virtual servos whose bytes take their time: reading moves the manual clock to when the last one is there."""

    def read(self, n: int, deadline_ns: int) -> bytes:
        arrived_ns = max((r.ready_ns for r in self._replies if r.ready_ns <= deadline_ns), default=deadline_ns)
        data = super().read(n, deadline_ns)
        self._clock.sleep_until_ns(arrived_ns)
        return data


class LockstepRobot:
    """Arm, cameras, bus and control on one manual clock. `step` is one control period.

    `native` holds the newest picture (H, W, 3) of every camera as it was before preparation, `pictures` what the next
    tick sees of them, and `pictured` what was true when they were taken.
    """

    def __init__(
        self, task: Task, control: Control, seed: int, scene: SceneSettings | None = None, log: Log | None = None
    ) -> None:
        """Raises SimError where the simulation cannot run."""
        self.control = control
        self.clock = ManualClock()
        self.world = World(scene or scene_settings(task), seed)
        self.native: dict[str, npt.NDArray[np.uint8]] = {}
        arm = load_arm()
        transport = WireTime(VirtualChain(self.world), self.clock)
        driver = Driver(transport, arm, Calibration.default(len(arm.joints)), self.clock)
        self.bus = BusLoop(driver, BUS_RATE_HZ, log=log)
        self.bus.start()
        self._state: BusState = self.bus.tick(self.clock.now_ns())
        self._cameras = task.contract().cameras
        self._bus_ticks = round(BUS_RATE_HZ / task.rate_hz)
        self._next_ns = self.clock.now_ns()
        self._commands = self._shots = 0
        self.pictured = self.truth()
        self.pictures = self._look()

    @property
    def now_ns(self) -> int:
        return self.clock.now_ns()

    def step(
        self, events: Sequence[OperatorEvent] = (), drive: Drive | None = None, commands: Sequence[BusAction] = ()
    ) -> Outputs:
        """One control tick, then the bus ticks of its period; near their end the next tick's pictures are taken."""
        now_ns = self.clock.now_ns()
        for action in commands:
            self._commands += 1
            self.bus.command(BusCommand(self._commands, action), now_ns)
        inputs = Inputs(self._state, self.pictures, events, drive, heartbeat_ns=now_ns)
        outputs = self.control.tick(now_ns, inputs)
        if outputs.goal is not None:
            self.bus.submit(outputs.goal, now_ns)
        for left in reversed(range(self._bus_ticks)):
            self._next_ns += round(self.bus.dt_s * NS_PER_S)
            self.clock.sleep_until_ns(self._next_ns)
            self.world.advance(self.bus.dt_s)
            self._state = self.bus.tick(self.clock.now_ns())
            if left == PICTURE_LEAD_TICKS:
                self.pictured, self.pictures = self.truth(), self._look()
        return outputs

    def truth(self) -> Truth:
        """What is true now, for the scripted operator and the experiment's records only."""
        return truth_message(self.world.truth(), self.clock.now_ns())

    def close(self) -> None:
        self.world.close()

    def _look(self) -> dict[str, Frame]:
        self._shots += 1
        now_ns, pictures = self.clock.now_ns(), {}
        for camera in self._cameras:
            self.native[camera.name] = self.world.render(camera.name)
            pixels = frames.prepare(self.native[camera.name], camera)
            pictures[camera.name] = Frame(camera.name, self._shots, now_ns, pixels)
        return pictures


@dataclass(frozen=True)
class LockstepSettings:
    """Robot and scripted operator in lockstep with a trainer.

    Example: steadyhand sim lockstep --run runs/try --steps 3000 --link.address tcp://127.0.0.1:5570
    Example: steadyhand sim lockstep --trainer False --steps 300 --light moved_lamp --light-change-step 100
    """

    run: Path = Path("runs/latest")
    task: str = "lift"
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0  # recorded steps after which to stop; 0: when interrupted
    light: str = "steady"  # a light scenario that ships, or a .toml file; its steps are recorded ones
    light_change_step: Annotated[int, Field(ge=0)] | None = None  # where its first change shall be instead
    trainer: bool = True  # false: no trainer, every step is taken at once and kept in the spool
    control: ControlSettings = field(default_factory=ControlSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    operator: OperatorSettings = field(default_factory=OperatorSettings)


class Session:
    """One run: robot, scripted operator, spool and link. Use as a context manager.

    The trainer's credit says how many steps may be recorded; models are looked for only when it was waited for, so that
    equal seeds swap at equal steps.
    """

    def __init__(self, chosen: LockstepSettings, log: Log) -> None:
        """Raises UserError, SettingsError, SpoolError or SimError, each naming the fix."""
        self._chosen, self._log = chosen, log
        task = tasks.load(chosen.task)
        paths = self._paths = RunPaths(chosen.run)
        paths.prepare()
        contract, registry, run = task.contract(), Registry(paths.models), chosen.run.resolve().name
        quarantine = Quarantine(paths.models / "quarantine.txt")
        self._standby = Standby(registry, contract, quarantine)
        counter = EpisodeCounter(paths.edge / "episode")
        models = Models(self._standby, quarantine)
        control = Control(task, chosen.control, models, run, counter.last + 1)
        self.robot = LockstepRobot(task, control, chosen.seed, log=log)
        self._light = lights.chosen(chosen.light, chosen.light_change_step)
        # A number of its own per process keeps a resumed run's events from repeating the ones before.
        self._operator = ScriptedOperator(task, chosen.operator, chosen.seed, f"s{chosen.seed}e{counter.last}")
        self._spool = Spool(paths.spool, durable=False)
        self._recorder = Recorder(self._spool, counter)
        self._link = Link(chosen.link, run, contract, self._spool, registry, log) if chosen.trainer else None
        self._truth = TruthLog(paths.truth)
        self._status: ControlStatus | None = None
        self.steps = self.episodes = self.ticks = 0
        self._ends: dict[str, int] = {}

    def turn(self, stop: Callable[[], bool] = lambda: False) -> Outputs | None:
        """One control period; None when told to stop while waiting for credit."""
        if self._link is not None and not self._may_go_on(self._link, stop):
            return None
        if self.ticks == 0:
            self._standby.look()
        truth = self.robot.truth()
        self._truth.add(truth)
        acts = self._operator.tick(self.robot.now_ns, truth, self._status)
        if acts.place_cube:
            self.robot.world.place_cube()
        self.robot.world.set_light(self._light.at(self.steps))
        outputs = self.robot.step(acts.events, acts.drive, acts.commands)
        self._status = outputs.status
        self.ticks += 1
        self._recorder.write(outputs.records)
        for record in outputs.records:
            if isinstance(record, Step):
                self._count(record, outputs.status)
        return outputs

    def serve(self, stop: Callable[[], bool]) -> None:
        """Go on until `stop()` or the wanted number of steps."""
        wanted = self._chosen.steps
        while not stop() and not (wanted and self.steps >= wanted) and self.turn(stop) is not None:
            pass

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recorder.write(self.robot.control.stop())
        complete = True
        if self._link is not None:
            complete = self._link.drain(self._chosen.link.drain_s if self._link.connected else 0.0)
            self._link.close()
        status = self._status
        figures = {
            "ticks": self.ticks,
            "missed_ticks": 0,
            "steps": self.steps,
            "episodes": self.episodes,
            "ends": self._ends,
            "policy_version": status.policy_version if status else 0,
            "classifier_version": status.classifier_version if status else 0,
        }
        self._log.info("lockstep.stopped", complete=complete, steps=self.steps, episodes=self.episodes)
        write_json(self._paths.edge / "control.json", figures)
        self._truth.close()
        self._spool.close()
        self.robot.close()

    def _may_go_on(self, link: Link, stop: Callable[[], bool]) -> bool:
        """Pump the link; when the credit is used up, wait for more and for the models that came before it."""
        link.poll(0)
        if self.steps < link.credit:
            return True
        while self.steps >= link.credit:
            if stop():
                return False
            self._log.info("lockstep.waiting", every_s=30.0, steps=self.steps, connected=link.connected)
            link.poll(CREDIT_WAIT_MS)
        self._standby.look()
        return True

    def _count(self, step: Step, status: ControlStatus) -> None:
        self.steps += 1
        if step.end is None:
            return
        self.episodes += 1
        self._ends[step.end.value] = self._ends.get(step.end.value, 0) + 1
        if self.episodes % REPORT_EPISODES == 0:
            self._log.info(
                "lockstep.progress", steps=self.steps, episodes=self.episodes, last=status.last_end,
                policy=status.policy_version, classifier=status.classifier_version,
            )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim lockstep`: robot and scripted operator, paced by the trainer's credit."""
    description = "Robot and scripted operator in one process, as fast as the trainer allows."
    chosen = settings.parse_command_line(LockstepSettings, argv, "steadyhand sim lockstep", description)
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopping.append(signum))
    with Session(chosen, Log()) as session:
        session.serve(lambda: bool(stopping))
    return 0
