"""What control needs around it in a test: states, frames, models and an arm that obeys at once; no simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx_models import lift

from steadyhand_models.artifact import Manifest
from steadyhand_models.messages import (
    BusState,
    Channel,
    Drive,
    EventKind,
    Frame,
    Label,
    Mode,
    OperatorEvent,
    Step,
    Swap,
)
from steadyhand_models.registry import Registry
from steadyhand_models.task import Task
from steadyhand_runtime.config import ControlSettings
from steadyhand_runtime.control import Control, Inputs, Outputs
from steadyhand_runtime.inference import ModelFailure
from steadyhand_runtime.reset import ResetMotion
from steadyhand_runtime.swap import Models, Pace, Quarantine, Staged, Standby

PERIOD_NS = 100_000_000
Z6 = np.zeros(6)


def bus_state(stamp_ns: int, q: np.ndarray, **changes: Any) -> BusState:
    fields: dict[str, Any] = {
        "tick": 1,
        "stamp_ns": stamp_ns,
        "position_rad": q,
        "velocity_rad_s": Z6,
        "load": Z6,
        "valid": np.ones(6, bool),
        "age_s": Z6,
        "alarms": np.zeros(6, np.int64),
        "goal_rad": q,
        "armed": True,
        "estopped": False,
        "fault": "",
        "refusals": (),
        "missed_ticks": 0,
        "lateness_s": 0.0,
        "late_p50_s": 0.0,
        "late_p99_s": 0.0,
        "temperature_c": Z6,
        "voltage_v": Z6,
        "current_a": Z6,
    }
    return BusState(**(fields | changes))


def frames_at(stamp_ns: int, front: int = 0, wrist: int = 0, size: int = 64) -> dict[str, Frame]:
    values = {"front": front, "wrist": wrist}
    return {n: Frame(n, 1, stamp_ns, np.full((size, size, 3), v, np.uint8)) for n, v in values.items()}


class FakeModel:
    """A model whose answer is a value; NaN makes it fail as a real one does."""

    def __init__(self, channel: Channel, version: int, value: float | Sequence[float], **manifest: Any) -> None:
        self.value: Any = value
        self.last_s = 0.001
        self.encoder = None
        self.noises: list[np.ndarray] = []
        fields: dict[str, Any] = {
            "channel": channel,
            "version": version,
            "parent": 0,
            "contract_hash": "",
            "sha256": f"{channel.value}{version}",
            "training_step": 0,
            "created_unix_s": 0.0,
            "boundary": "tick",
            "tolerance": 1e-4,
            "debounce_frames": 2,
        }
        self.manifest = Manifest(**(fields | manifest))

    @property
    def version(self) -> int:
        return self.manifest.version

    def run(self, frames: np.ndarray, state: Any = None, noise: Any = None) -> np.ndarray:
        if noise is not None:
            self.noises.append(noise)
        values = np.atleast_1d(np.asarray(self.value, np.float32))
        if not np.isfinite(values).all():
            raise ModelFailure(f"{self.manifest.channel.value} v{self.version}: output is not finite")
        width = 4 if self.manifest.channel is Channel.POLICY else 3
        return np.broadcast_to(values, (width,)).copy()

    def warm(self, runs: int) -> float:
        return 0.001


class Bench:
    """Control with an arm that is where it was told to be a tick later; time moves by one period per `tick`."""

    def __init__(
        self, settings: ControlSettings | None = None, task: Task | None = None, first_episode: int = 1
    ) -> None:
        self.task = task or lift()
        self.quarantine = Quarantine()
        self.standby = Standby(Registry(Path("nowhere")), self.task.contract(), self.quarantine)
        self.models = Models(self.standby, self.quarantine)
        chosen = settings or ControlSettings()
        self.control = Control(self.task, chosen, self.models, "run", first_episode)
        self.now_ns = 10_000_000_000
        self.q = ResetMotion(self.task).pose_rad.copy()
        self.light = 0
        self.records: list[Step | Label | Swap] = []
        self.events = 0
        self.last: Outputs | None = None

    @property
    def mode(self) -> Mode:
        return self.control.mode

    @property
    def steps(self) -> list[Step]:
        return [r for r in self.records if isinstance(r, Step)]

    @property
    def labels(self) -> list[Label]:
        return [r for r in self.records if isinstance(r, Label)]

    @property
    def swaps(self) -> list[Swap]:
        return [r for r in self.records if isinstance(r, Swap)]

    def stage(self, model: FakeModel, missed_before: int = 0) -> None:
        self.standby._staged[model.manifest.channel] = Staged(model, 0.01, missed_before)

    def tick(
        self,
        *presses: EventKind | OperatorEvent,
        drive: Sequence[float] | Drive | None = None,
        obey: bool = True,
        inputs: dict[str, Any] | None = None,
        **bus: Any,
    ) -> Outputs:
        self.now_ns += PERIOD_NS
        events = [p if isinstance(p, OperatorEvent) else self.event(p) for p in presses]
        if drive is not None and not isinstance(drive, Drive):
            drive = Drive(self.now_ns, np.array(drive, np.float32), neutral=False)
        given = Inputs(
            bus_state(self.now_ns, self.q, **bus),
            frames_at(self.now_ns, self.light, self.light),
            events,
            drive,
            self.now_ns,
            Pace(),
        )
        self.last = self.control.tick(self.now_ns, replace(given, **(inputs or {})))
        self.records += self.last.records
        if obey and self.last.goal is not None:
            self.q = np.array(self.last.goal.position_rad)
        return self.last

    def event(self, kind: EventKind, event_id: str = "", reaction_s: float = 0.0, undo_of: str = "") -> OperatorEvent:
        self.events += 1
        name = event_id or f"e{self.events}"
        return OperatorEvent(name, kind, self.now_ns, "me", "test", reaction_s, undo_of)

    def until(self, mode: Mode, limit: int = 100) -> None:
        for _ in range(limit):
            if self.mode is mode:
                return
            self.tick()
        raise AssertionError(f"still {self.mode} after {limit} ticks: {self.last.status.message if self.last else ''}")
