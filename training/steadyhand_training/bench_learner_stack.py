"""One learner of `steadyhand bench learner` in a process of its own: made, filled, then updated for as long as told.

Lines of JSON: the Job comes first on stdin, figures of memory go back; every number of seconds is answered by a Turn.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from steadyhand_models import reward
from steadyhand_models import task as tasks
from steadyhand_models.contract import Contract
from steadyhand_models.messages import EndReason, Source, Step
from steadyhand_training.allocator import keep_freed_memory
from steadyhand_training.bench_peer import PeerReplay, PeerSac
from steadyhand_training.config import Encoders, LearnerSettings
from steadyhand_training.learner import Learner
from steadyhand_training.replay import Replay

EPISODE_STEPS = 40
WARM_UP = 3
Update = Callable[[], object]


class Stack(str, enum.Enum):
    """Who is measured."""

    OURS_FROZEN = "ours_frozen"
    PEER_FROZEN = "peer_frozen"
    OURS_END_TO_END = "ours_end_to_end"
    PEER_END_TO_END = "peer_end_to_end"


@dataclass(frozen=True)
class Job:
    """What a process is to be."""

    stack: Stack
    steps: int
    seed: int
    threads: int
    batch: int


@dataclass(frozen=True)
class Memory:
    """Bytes kept for a recorded step; of a peer also when next states share their rows. `resident` is the process's."""

    bytes_per_step: int
    shared_bytes_per_step: int
    resident: int
    grown: int  # while the steps came


@dataclass(frozen=True)
class Turn:
    """Updates of one turn, and the time that they took."""

    updates: int
    wall_s: float
    cpu_s: float


def steps(contract: Contract, count: int, seed: int) -> Iterator[Step]:
    """`count` steps of made-up episodes, every second one a demonstration, each ending in success."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        episode, seq = divmod(number, EPISODE_STEPS)
        last = seq == EPISODE_STEPS - 1
        who = Source.POLICY if episode % 2 else Source.DEMONSTRATION
        action = None if last else rng.uniform(-1, 1, len(contract.action)).astype(np.float32)
        yield Step(
            run="bench", episode=episode, seq=seq, tick=number, stamp_ns=number, contract=contract.hash,
            frames=rng.integers(0, 256, contract.frames_shape, dtype=np.uint8),
            state=rng.uniform(-0.1, 0.1, len(contract.state)).astype(np.float32),
            proposed=action, executed=action, source=Source.NONE if last else who, reasons=(), classifier=None,
            policy_version=0, classifier_version=0, frame_age_s=0.0, state_age_s=0.0,
            end=EndReason.SUCCESS if last else None,
        )  # fmt: skip


def filled(contract: Contract, count: int, seed: int) -> Replay:
    """A replay with made-up episodes, whose last actions are rewarded where they ended."""
    replay = Replay(contract, count)
    for step in steps(contract, count, seed):
        replay.append(step)
    for episode in replay.episodes:
        end = replay.ended(episode)
        success = np.zeros(len(replay.rows(episode)), np.bool_)
        success[-1] = end is EndReason.SUCCESS
        replay.set_outcome(episode, reward.outcome(success, end))
    return replay


def settings_of(job: Job) -> LearnerSettings:
    """The networks and the batch, alike for us and the peer."""
    encoder = Encoders.FROZEN if job.stack in (Stack.OURS_FROZEN, Stack.PEER_FROZEN) else Encoders.END_TO_END
    return dataclasses.replace(LearnerSettings(), batch=job.batch, encoder=encoder)


def ours(contract: Contract, job: Job) -> tuple[Update, int, int]:
    """Our learner past its pretraining: an update, and bytes per step twice, because all that can be is shared."""
    settings = dataclasses.replace(settings_of(job), pretrain_batches=1, warmup_updates=0)
    learner = Learner(contract, filled(contract, job.steps, job.seed), settings, job.seed)
    learner.pretrain()
    size = learner.bytes_per_step
    return learner.update, size, size


def peer(contract: Contract, job: Job) -> tuple[Update, int, int]:
    """The peer, its next states kept apart: LeRobot's default, and the faster of the two ways to keep them."""
    replay = PeerReplay(contract, job.steps, share_next=False)
    before: Step | None = None
    for step in steps(contract, job.steps + job.steps // EPISODE_STEPS + 1, job.seed):
        if before is not None and before.end is None and replay.size < job.steps:
            replay.add(before, step)
        before = step
    sac = PeerSac(contract, replay, settings_of(job))
    return sac.update, replay.bytes_per_step, PeerReplay(contract, 1, share_next=True).bytes_per_step


def turn(update: Update, seconds: float) -> Turn:
    """Updates until `seconds` are over, one at least."""
    wall_s, cpu_s, count = time.perf_counter(), time.process_time(), 0
    while count == 0 or time.perf_counter() - wall_s < seconds:
        update()
        count += 1
    return Turn(count, time.perf_counter() - wall_s, time.process_time() - cpu_s)


def resident_bytes() -> int:
    """Memory that this process holds now; where that cannot be asked, the most that it held."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    """Serve one Job until stdin ends."""
    text = json.loads(sys.stdin.readline())
    job = Job(**{**text, "stack": Stack(text["stack"])})
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    keep_freed_memory()  # for the peer too: it is not LeRobot's, but what is compared is how data is kept and sampled
    contract = tasks.load("lift").contract()
    before = resident_bytes()
    update, size, shared = (ours if job.stack in (Stack.OURS_FROZEN, Stack.OURS_END_TO_END) else peer)(contract, job)
    for _ in range(WARM_UP):
        update()
    now = resident_bytes()
    _answer(Memory(size, shared, now, now - before))
    for line in sys.stdin:
        _answer(turn(update, float(json.loads(line))))
    return 0


def _answer(figures: Memory | Turn) -> None:
    print(json.dumps(dataclasses.asdict(figures)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
