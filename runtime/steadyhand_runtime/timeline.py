"""What the control loop measures of its inputs and outputs: ages at the moment of use, and a goal's way to the wire."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from steadyhand_models.messages import BusState, Goal
from steadyhand_runtime.clock import LatenessHistogram, runqueue_delay_ns
from steadyhand_runtime.control import Inputs

REMEMBERED_GOALS = 16


class Timeline:
    """Histograms of one control loop. `used` once a tick that sent a goal, `heard` with every bus state."""

    def __init__(self) -> None:
        self.frame_age = LatenessHistogram()  # of the oldest picture, when the tick began
        self.state_age = LatenessHistogram()  # of the joint state, when the tick began
        self.frame_to_goal = LatenessHistogram()  # from the picture to the goal on its way to the bus
        self.tick_to_wire = LatenessHistogram()  # from the tick to the servos having the goal
        self.frame_to_wire = LatenessHistogram()  # from the picture to the servos having the goal
        self.runqueue = LatenessHistogram()  # waited for a core, per tick
        self._frames: OrderedDict[int, int] = OrderedDict()  # goal's stamp -> its oldest picture's
        self._waited_ns = runqueue_delay_ns()

    def used(self, now_ns: int, inputs: Inputs, goal: Goal | None, sent_ns: int) -> None:
        """What the tick at now_ns saw, and that its goal left at sent_ns."""
        waited_ns = runqueue_delay_ns()
        if waited_ns is not None and self._waited_ns is not None:
            self.runqueue.add(waited_ns - self._waited_ns)
        self._waited_ns = waited_ns
        if goal is None or not inputs.frames or inputs.bus is None:
            return
        oldest_ns = min(frame.stamp_ns for frame in inputs.frames.values())
        self.frame_age.add(now_ns - oldest_ns)
        self.state_age.add(now_ns - inputs.bus.stamp_ns)
        self.frame_to_goal.add(sent_ns - oldest_ns)
        self._frames[goal.stamp_ns] = oldest_ns
        while len(self._frames) > REMEMBERED_GOALS:
            self._frames.popitem(last=False)

    def heard(self, bus: BusState | None) -> None:
        """What the bus says of the newest goal that it has written; each goal counts once."""
        if bus is None or not bus.goal_written_ns:
            return
        oldest_ns = self._frames.pop(bus.goal_stamp_ns, None)
        if oldest_ns is not None:
            self.tick_to_wire.add(bus.goal_written_ns - bus.goal_stamp_ns)
            self.frame_to_wire.add(bus.goal_written_ns - oldest_ns)

    def figures(self) -> dict[str, Any]:
        names = ("frame_age", "state_age", "frame_to_goal", "tick_to_wire", "frame_to_wire", "runqueue")
        return {key: value for name in names for key, value in getattr(self, name).spread(name).items()}
