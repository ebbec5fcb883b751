"""Times all models in onnxruntime in a process of its own: as the robot runs them, or with its defaults."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from steadyhand_models import task
from steadyhand_models.artifact import CPU
from steadyhand_models.messages import Channel
from steadyhand_models.pacing import Timing, paced
from steadyhand_models.registry import Registry
from steadyhand_runtime import encoders
from steadyhand_runtime.engine import import_onnxruntime

OURS, DEFAULT = "steadyhand", "onnxruntime default"


@dataclass(frozen=True)
class Job:
    """One slice of one stack."""

    stack: str
    samples: str
    rate_hz: float
    calls: int


def run(job: Job) -> Timing:
    """Policy and classifier on random frames."""
    contract = task.load("lift").contract()
    frames = np.random.default_rng(0).integers(0, 256, (16, *contract.frames_shape), dtype=np.uint8)
    state, noise = np.zeros(len(contract.state), np.float32), np.zeros(len(contract.action), np.float32)
    answer = _ours(job) if job.stack == OURS else _default(job)
    return paced(lambda number: answer(frames[number % len(frames)], state, noise), job.rate_hz, job.calls)


Answer = Callable[[Any, Any, Any], None]


def _ours(job: Job) -> Answer:
    contract, registry = task.load("lift").contract(), Registry(Path(job.samples) / "good")
    policy = encoders.load(registry, registry.load(Channel.POLICY, registry.newest(Channel.POLICY) or 0), contract)
    classifier = encoders.load(registry, registry.load(Channel.CLASSIFIER, 1), contract)

    def answer(frames: Any, state: Any, noise: Any) -> None:
        classifier.run(frames)
        policy.run(frames, state, noise)

    return answer


def _default(job: Job) -> Answer:
    """As its documentation shows it: no options, arrays in and out."""
    onnxruntime, registry = import_onnxruntime(), Registry(Path(job.samples) / "good")
    sessions = {
        channel: onnxruntime.InferenceSession(registry.load(channel, version).model, providers=[CPU])
        for channel in Channel
        for version in (registry.newest(channel) or 0,)
    }

    def answer(frames: Any, state: Any, noise: Any) -> None:
        sessions[Channel.CLASSIFIER].run(None, {"frames": frames[None]})
        (features,) = sessions[Channel.ENCODER].run(None, {"frames": frames[None]})
        sessions[Channel.POLICY].run(None, {"features": features, "state": state[None], "noise": noise[None]})

    return answer


if __name__ == "__main__":
    timing = run(pydantic.TypeAdapter(Job).validate_json(sys.argv[1]))
    sys.stdout.write(pydantic.TypeAdapter(Timing).dump_json(timing).decode())
