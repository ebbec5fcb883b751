"""One table that names every topic with its message, rate, queue bound and what a full queue drops."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadyhand_models import messages as m


class Drop(str, enum.Enum):
    """What happens when a queue is full."""

    OLD = "the newest replaces the older"
    NEVER = "acknowledged, kept until then"


@dataclass(frozen=True)
class Topic:
    """One stream. A stream with a rate is stale after `stale_periods` of it; one without cannot be."""

    name: str
    message: type[Any]
    rate_hz: float | None
    bound: int
    drop: Drop
    stale_periods: float = 10.0

    @property
    def stale_after_s(self) -> float:
        """Age at which the stream counts as dead; infinite for event streams."""
        return self.stale_periods / self.rate_hz if self.rate_hz else float("inf")


TOPICS: dict[str, Topic] = {
    t.name: t
    for t in (
        Topic("bus.state", m.BusState, 100.0, 1, Drop.OLD),
        Topic("bus.goal", m.Goal, 10.0, 1, Drop.OLD, stale_periods=2.5),
        Topic("bus.command", m.BusCommand, None, 16, Drop.NEVER),
        Topic("camera.frame", m.Frame, 20.0, 1, Drop.OLD, stale_periods=6.0),
        Topic("operator.drive", m.Drive, 10.0, 1, Drop.OLD, stale_periods=3.0),
        Topic("operator.event", m.OperatorEvent, None, 256, Drop.NEVER),
        Topic("operator.heartbeat", m.Heartbeat, 10.0, 1, Drop.OLD, stale_periods=5.0),
        Topic("control.status", m.ControlStatus, 10.0, 1, Drop.OLD),
        Topic("link.records", m.Records, None, 64, Drop.NEVER),
        Topic("link.models", m.ModelNotice, None, 16, Drop.NEVER),
        Topic("trainer.status", m.TrainerStatus, 1.0, 1, Drop.OLD),
        Topic("sim.truth", m.Truth, 100.0, 1, Drop.OLD),
        Topic("sim.control", m.SceneRequest, None, 16, Drop.NEVER),
    )
}


def endpoint(folder: Path, topic: str, instance: str = "") -> str:
    """Address of a topic on one machine: a socket file in the edge's private folder, one per instance (camera)."""
    if topic not in TOPICS:
        raise KeyError(topic)
    return f"ipc://{folder}/{topic}{'-' + instance if instance else ''}"
