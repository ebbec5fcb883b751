"""Virtual servos alone: six of them on a pty, with joints that follow their goals and nothing around them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models import settings
from steadyhand_runtime.clock import NS_PER_S, Clock, MonotonicClock
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import PlantState, StillPlant, VirtualChain

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ServosSettings:
    """Six virtual servos on a serial port.

    Example: steadyhand sim servos --link /tmp/arm
    """

    link: Path | None = None  # a name for the port that stays the same
    baud: Annotated[int, Field(ge=38_400, le=1_000_000)] = 1_000_000


class FollowingPlant:
    """Joints that have moved by as much time as has passed whenever somebody asks."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._plant = clock, StillPlant()
        self._last_ns = clock.now_ns()

    def read(self) -> PlantState:
        now_ns = self._clock.now_ns()
        if now_ns > self._last_ns:
            self._plant.advance((now_ns - self._last_ns) / NS_PER_S)
            self._last_ns = now_ns
        return self._plant.read()

    def drive(self, goal_rad: F64, enabled: npt.NDArray[np.bool_], torque_limit: F64) -> None:
        self.read()
        self._plant.drive(goal_rad, enabled, torque_limit)


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim servos`: print the port's name and serve it until interrupted."""
    chosen = settings.parse_command_line(ServosSettings, argv, "steadyhand sim servos", __doc__ or "")
    # Blocked before the port's thread starts, so that the signal waits for sigwait whichever thread it meets.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    clock = MonotonicClock()
    with PtyPort(VirtualChain(FollowingPlant(clock), baud=chosen.baud), chosen.link, clock) as port:
        print(port.path, flush=True)
        signal.sigwait(signals)
    return 0
