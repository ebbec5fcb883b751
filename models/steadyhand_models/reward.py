"""Reward and terminal of every step of an episode, from probabilities, labels and the classifier's manifest; pure.

The reward of action t is judged on the frame after it, t + 1. An episode of N actions has N + 1 frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models.messages import EndReason

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
I8 = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Rule:
    """How probabilities become success: the threshold, and K frames in a row that must exceed it."""

    threshold: float
    debounce_frames: int
    pessimism: float = 1.0  # standard deviations of the ensemble below its mean


@dataclass(frozen=True)
class Outcome:
    """What the learner may use of an episode's N actions.

    reward (N,) float32; terminal (N,) bool, false is bootstrapped; usable (N,) bool, false behind the first terminal.
    """

    reward: F32
    terminal: Bool
    usable: Bool


def lower_bound(probabilities: F32, pessimism: float) -> F32:
    """Pessimistic probability (T,) of an ensemble (T, heads): mean minus `pessimism` standard deviations, in [0, 1]."""
    spread = probabilities.std(axis=-1) if probabilities.shape[-1] > 1 else np.float32(0.0)
    return np.clip(probabilities.mean(axis=-1) - pessimism * spread, 0.0, 1.0).astype(np.float32)


def fires(lower: F32, rule: Rule) -> Bool:
    """Frames (T,) at which the last K lower bounds all exceed the threshold."""
    above = np.concatenate([np.zeros(rule.debounce_frames, np.int64), np.cumsum(lower > rule.threshold)])
    k = rule.debounce_frames
    runs = above[k:] - above[:-k]
    # The first K - 1 frames of an episode have no K predecessors of their own.
    runs = np.where(np.arange(1, len(lower) + 1) >= k, runs, 0)
    return runs >= k


def success_frames(lower: F32 | None, labels: I8, rule: Rule) -> Bool:
    """Frames (T,) that count as success: the human's label (+1, -1; 0 is silence) wins over the classifier."""
    fired = fires(lower, rule) if lower is not None else np.zeros(len(labels), np.bool_)
    return np.where(labels == 0, fired, labels > 0)


def outcome(success: Bool, end: EndReason | None) -> Outcome:
    """Reward, terminal and usable of the N actions of an episode with N + 1 frames.

    The first success is terminal and everything behind it is masked, so that a missed success repairs itself; an end
    by success that no longer counts as one becomes a truncation. A human's FAILURE is terminal without reward.
    """
    after = success[1:]
    count = len(after)
    reward = np.zeros(count, np.float32)
    terminal = np.zeros(count, np.bool_)
    usable = np.ones(count, np.bool_)
    hits = np.flatnonzero(after)
    if len(hits):
        first = int(hits[0])
        reward[first] = 1.0
        terminal[first] = True
        usable[first + 1 :] = False
    elif end is EndReason.FAILURE and count:
        terminal[-1] = True
    return Outcome(reward, terminal, usable)
