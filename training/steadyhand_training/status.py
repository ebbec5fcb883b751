"""The trainer's telemetry: a status about once a second on a socket, and every status and event in metrics.jsonl."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from steadyhand_models import wire
from steadyhand_models.messages import TrainerStatus
from steadyhand_training.ingest import Counters, bind
from steadyhand_training.memory import Tally
from steadyhand_training.metric_writers import MetricWriter
from steadyhand_training.metrics import JsonLines

PERIOD_S = 1.0
WARNING = "warning"  # name under which a status carries a sentence for the operator


@dataclass(frozen=True)
class View:
    """What a status is made of."""

    phase: str
    message: str
    tally: Tally
    arrived: Counters
    updates: int
    steps_learning: int
    policy_version: int
    classifier_version: int
    q_bound: float
    learner: Mapping[str, float]
    correction: Mapping[str, float]
    versions: Mapping[str, float] = field(default_factory=dict)
    attention: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # sentences for an operator

    @property
    def metrics(self) -> dict[str, float]:
        """Everything measured, by name."""
        return {
            **self.learner,
            **{f"classifier_{k}": v for k, v in self.correction.items()},
            **self.versions,
            **self.attention,
        }


@dataclass(frozen=True)
class Candidate:
    """A classifier candidate that begins to grow, and the episodes of which the one in force is wrong."""

    episodes: tuple[int, ...]


class Reporter:
    """Publishes statuses and keeps them; nobody need listen."""

    def __init__(self, address: str, metrics: Path, writers: Sequence[MetricWriter] = ()) -> None:
        """Raises UserError when the address is taken."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        bind(self._socket, address, "status")
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._lines = JsonLines(metrics)
        self._writers = writers
        self._last: tuple[float, int] | None = None  # (time, updates) of the last status
        self._updates_per_s = 0.0

    def close(self) -> None:
        self._context.destroy(linger=0)
        self._lines.close()
        for writer in self._writers:
            writer.close()

    def due(self, now_s: float) -> bool:
        return self._last is None or now_s - self._last[0] >= PERIOD_S

    def report(self, view: View, now_s: float) -> None:
        """Send and keep one status."""
        self._measure(view.updates, now_s)
        status = build(view, self._updates_per_s, time.monotonic_ns())
        self._socket.send(wire.encode(status), zmq.NOBLOCK)
        row = dataclasses.asdict(status)
        row["metrics"] = view.metrics
        row["warnings"] = view.warnings
        row["arrived"] = dataclasses.asdict(view.arrived)
        row["tally"] = dataclasses.asdict(view.tally)
        self._lines.write({"kind": "status", "unix_s": time.time(), **row})
        for writer in self._writers:
            writer.write(status.steps, scalars(view, status))

    def event(self, kind: str, what: Any) -> None:
        """Keep something that happened once: a publication, a promotion, a swap."""
        row = {"kind": kind, "unix_s": time.time(), "stamp_ns": time.monotonic_ns()}
        self._lines.write({**row, kind: dataclasses.asdict(what)})

    def _measure(self, updates: int, now_s: float) -> None:
        if self._last is not None and now_s > self._last[0]:
            self._updates_per_s = (updates - self._last[1]) / (now_s - self._last[0])
        self._last = (now_s, updates)


def scalars(view: View, status: TrainerStatus) -> dict[str, float]:
    """What is drawn over the recorded steps: the run's counts, then everything measured."""
    counts = {
        "run/episodes": status.episodes,
        "run/takeover_steps": status.takeover_steps,
        "run/labels": status.labels,
        "run/updates": status.updates,
        "run/updates_per_s": status.updates_per_s,
        "run/utd_ratio": status.utd_ratio,
        "run/policy_version": status.policy_version,
        "run/classifier_version": status.classifier_version,
    }
    parts = {
        "learner": view.learner,
        "classifier": view.correction,
        "versions": view.versions,
        "attention": view.attention,
    }
    named = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return {name: float(value) for name, value in (counts | named).items()}


def build(view: View, updates_per_s: float, stamp_ns: int) -> TrainerStatus:
    """The status message of a view."""
    tally = view.tally
    return TrainerStatus(
        stamp_ns=stamp_ns,
        phase=view.phase,
        steps=tally.steps,
        episodes=tally.episodes,
        demonstrations=tally.demonstrations,
        takeover_steps=tally.takeover_steps,
        updates=view.updates,
        updates_per_s=updates_per_s,
        utd_ratio=view.updates / max(1, view.steps_learning),
        policy_version=view.policy_version,
        classifier_version=view.classifier_version,
        labels=tally.labels,
        flags=tally.flags,
        promotions=round(view.correction.get("promotions", 0.0)),
        rejections=round(view.correction.get("rejections", 0.0)),
        critic_q=float(view.learner.get("q", 0.0)),
        q_bound=view.q_bound,
        message=view.message,
        metrics=(
            *(f"{name}={value:.4g}" for name, value in view.metrics.items()),
            *(f"{WARNING}={sentence}" for sentence in view.warnings),
        ),
    )
