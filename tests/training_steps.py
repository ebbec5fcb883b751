"""Synthetic episodes for tests of the trainer's side: a task, steps of its contract, encoded records."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from steadyhand_models import task, wire
from steadyhand_models.messages import EndReason, Label, LabelKind, Record, Source, Step

TASK = task.load("lift")
CONTRACT = TASK.contract()
RUN = "run"
PERIOD_NS = 100_000_000


def step(
    episode: int,
    seq: int,
    *,
    source: Source = Source.DEMONSTRATION,
    end: EndReason | None = None,
    bright: bool = False,
    rng: np.random.Generator | None = None,
) -> Step:
    """One step with the arm at the table; the last of an episode has `end` and no action.

    Success looks like a large bright square in the middle: a picture that is bright all over is one under another lamp.
    """
    rng = rng or np.random.default_rng([episode, seq])
    pixels = rng.integers(20, 80, CONTRACT.frames_shape, dtype=np.uint8)
    if bright:
        height, width = CONTRACT.frames_shape[1:3]
        pixels[:, height // 8 : -height // 8, width // 8 : -width // 8] += 175
    action = None if end else rng.uniform(-0.9, 0.9, len(CONTRACT.action)).astype(np.float32)
    state = rng.uniform(-0.1, 0.1, len(CONTRACT.state)).astype(np.float32)
    state[[f.name for f in CONTRACT.state].index("tip_z")] = 0.02
    return Step(
        run=RUN,
        episode=episode,
        seq=seq,
        tick=episode * 1000 + seq,
        stamp_ns=(episode * 1000 + seq) * PERIOD_NS,
        contract=CONTRACT.hash,
        frames=pixels,
        state=state,
        proposed=action,
        executed=action,
        source=Source.NONE if end else source,
        reasons=(),
        classifier=None,
        policy_version=0,
        classifier_version=0,
        frame_age_s=0.01,
        state_age_s=0.01,
        end=end,
    )


def label(episode: int, seq: int, kind: LabelKind, event_id: str = "", undo_of: str = "") -> Label:
    stamp_ns = (episode * 1000 + seq) * PERIOD_NS
    name = event_id or f"{episode}-{seq}-{kind.value}"
    return Label(name, kind, stamp_ns, "ann", "test", 0.0, RUN, episode, 0, undo_of)


def demonstration(episode: int, *, approach: int = 10, hold: int = 6, success: bool = True) -> list[Step | Label]:
    """A demonstration: dark frames, then bright ones held after success, and the operator's word."""
    frames = approach + (hold if success else 0)
    end = EndReason.SUCCESS if success else EndReason.FAILURE
    steps: list[Step | Label] = [step(episode, t, bright=t >= approach) for t in range(frames)]
    steps.append(step(episode, frames, end=end, bright=success))
    said = label(episode, approach, LabelKind.SUCCESS if success else LabelKind.FAILURE)
    return [*steps[:approach], said, *steps[approach:]]


def driven(episode: int, source: Source, count: int = 8, end: EndReason = EndReason.TIMEOUT) -> list[Step | Label]:
    """An episode of `count` actions that never succeeds."""
    return [*(step(episode, t, source=source) for t in range(count)), step(episode, count, source=source, end=end)]


def records(messages: Iterable[object], first: int = 1) -> tuple[Record, ...]:
    """The messages as numbered records."""
    return tuple(Record(number, wire.encode(m)) for number, m in enumerate(messages, first))
