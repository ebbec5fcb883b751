"""How long a promotion's relabelling of a large replay takes, with the trainer's own classes on made-up episodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steadyhand_models import task as tasks
from steadyhand_models.messages import EndReason, Label, LabelKind
from steadyhand_training.bench_learner_stack import filled
from steadyhand_training.correction import Correction, CorrectionSettings
from steadyhand_training.fitting import Scores
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay

LABELLED_EPISODES = 40  # of the made-up ones: enough to fit by


@dataclass(frozen=True)
class Relabelling:
    """Seconds of processor time to score every stored frame with a new network, and to recompute every reward once that
    is done. One thread does both: alone on a machine the clock shows the same."""

    steps: int
    scoring_s: float
    cached_s: float


def relabel(
    task_name: str, steps: int, seed: int, progress: Callable[[float], None] = lambda share: None
) -> Relabelling:
    """Fill a replay, fit a classifier hastily, and relabel everything under it."""
    task = tasks.load(task_name)
    contract = task.contract()
    replay = filled(contract, steps, seed)
    progress(0.2)
    ledger = Ledger(task=task)
    for label in _labels(replay):
        ledger.add(label)
    correction = Correction(contract, task, replay, ledger, CorrectionSettings(first_batches=1), seed)
    correction.first_fit(lambda share: progress(0.3))
    progress(0.6)
    scoring_s = _scoring_s(correction, replay)
    progress(0.9)
    begun_s = time.process_time()
    correction.settle()
    cached_s = time.process_time() - begun_s
    progress(1.0)
    return Relabelling(steps, scoring_s, cached_s)


def _scoring_s(correction: Correction, replay: Replay) -> float:
    champion = correction.champion
    if champion is None:
        raise RuntimeError("the first fit put no classifier in force")
    begun_s = time.process_time()
    Scores(champion.net, replay).of(np.arange(replay.size, dtype=np.int64))
    return time.process_time() - begun_s


def _labels(replay: Replay) -> list[Label]:
    """A person's word on some episodes: success on every second, failure on the others."""
    labels = []
    for number, episode in enumerate(replay.episodes[:LABELLED_EPISODES]):
        if replay.ended(episode) is not EndReason.SUCCESS:
            continue
        kind = LabelKind.VERDICT_FAILURE if number % 2 else LabelKind.VERDICT_SUCCESS
        stamp_ns = int(replay.stamp_ns[replay.rows(episode)[-1]]) + 1
        labels.append(Label(f"bench-{episode}", kind, stamp_ns, "bench", "bench", 0.0, "bench", episode, 0))
    return labels
