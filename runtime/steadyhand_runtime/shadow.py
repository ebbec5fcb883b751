"""Shadow runs: a candidate is given what the model in force has just been given, and its answers are compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from steadyhand_models.artifact import ArtifactError
from steadyhand_models.runqueue import RunQueue
from steadyhand_runtime.inference import ModelFailure

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

FEWEST_TO_COMPARE = 5  # fewer answers are too few to call a model absurd
# Of probability, that a classifier adds in every call. What a correction takes away it may take away everywhere, for
# false successes often come in rows; but frames of several seconds that all became a success are no correction.
FAR_UP = 0.9


class Answers(Protocol):
    """What a shadow run needs of a model."""

    last_s: float

    def run(self, frames: U8, state: F32 | None = None, noise: F32 | None = None) -> F32: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of the model in force: its inputs and what it answered. Nobody changes the arrays."""

    frames: U8
    state: F32 | None
    noise: F32 | None
    output: F32


class Recent:
    """The newest calls of the model in force, one in `every`; written by the control thread, read by another."""

    def __init__(self, size: int, every: int = 1) -> None:
        self.size = size
        self.added = 0
        self._every, self._calls = every, 0
        self._samples: deque[Sample] = deque(maxlen=size)

    def add(self, sample: Sample) -> None:
        self._calls += 1
        if self._calls % self._every == 0:
            self._samples.append(sample)
            self.added += 1

    def samples(self) -> list[Sample]:
        """What is kept, oldest first."""
        while True:
            try:
                return list(self._samples)
            except RuntimeError:  # one was added meanwhile
                continue


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate must keep to. `far` is an action's mean difference from the one in force; its range is 2."""

    budget_s: float
    far: float | None = None  # None: answers may differ as they like
    probabilities: bool = False  # a classifier's answers, which are held against what none may say


def run(candidate: Answers, recent: Recent, limits: Limits, wait: Callable[[], bool] | None = None) -> int:
    """Let a candidate answer what the model in force was asked; returns how many answers were compared.

    `wait` lets one control period go by and says whether to go on: then new calls are shown as they come, and old ones
    where none come; without it only old ones. Raises ArtifactError naming what was wrong with the answers.
    """
    pairs, costs, queue, added, kept = [], [], RunQueue(), recent.added, recent.samples()
    for number in range(recent.size if kept else 0):
        if wait is not None and not wait():
            break
        fresh, added = recent.added != added, recent.added
        if not fresh and number >= len(kept):
            break
        sample, waited_s = recent.samples()[-1] if fresh else kept[number], queue.delay_s()
        try:
            output = candidate.run(sample.frames, sample.state, sample.noise)
        except ModelFailure as error:
            raise ArtifactError(f"shadow run: {error}") from None
        costs.append(candidate.last_s - (queue.delay_s() - waited_s))
        pairs.append((output, sample.output))
    _judge(costs, limits)
    if limits.probabilities:
        _judge_probabilities(pairs)
    else:
        _judge_actions(pairs, limits.far)
    return len(costs)


def _judge(costs_s: list[float], limits: Limits) -> None:
    if costs_s and (call_s := float(np.median(costs_s))) > limits.budget_s:
        raise ArtifactError(f"shadow run: a call takes {call_s * 1e3:.0f} ms, allowed {limits.budget_s * 1e3:.0f} ms")


def _judge_actions(pairs: list[tuple[F32, F32]], far: float | None) -> None:
    """Answers of the candidate and of the model in force."""
    apart = [float(np.abs(new - old).mean()) for new, old in pairs if new.shape == old.shape]
    if far is not None and len(apart) >= FEWEST_TO_COMPARE and min(apart) > far:
        raise ArtifactError(
            f"shadow run: all {len(apart)} actions are over {far:.2g} from the present policy's "
            f"({min(apart):.2f} at the least, the range is 2)"
        )


def _judge_probabilities(pairs: list[tuple[F32, F32]]) -> None:
    """Answers of the candidate and of the classifier in force; the number of heads may differ."""
    if any(new.min() < 0.0 or new.max() > 1.0 for new, _ in pairs):
        raise ArtifactError("shadow run: answers outside 0..1 are no probabilities")
    if len(pairs) < FEWEST_TO_COMPARE:
        return
    if _constant([new for new, _ in pairs]) and not _constant([old for _, old in pairs]):
        raise ArtifactError(f"shadow run: the same answer to {len(pairs)} frames that differ")
    if min(float(new.mean() - old.mean()) for new, old in pairs) > FAR_UP:
        raise ArtifactError(
            f"shadow run: success on all {len(pairs)} frames, each over {FAR_UP:.2g} above the present classifier"
        )


def _constant(answers: list[F32]) -> bool:
    return all(np.array_equal(answer, answers[0]) for answer in answers)
