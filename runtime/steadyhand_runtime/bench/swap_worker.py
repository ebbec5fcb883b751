"""One control loop of `steadyhand bench swap` in its own process: hot swap, or the peer that builds in the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydantic

from steadyhand_models import task
from steadyhand_models.artifact import Artifact
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel, SwapOutcome
from steadyhand_models.registry import Registry
from steadyhand_models.runqueue import RunQueue
from steadyhand_models.standing import Quarantine
from steadyhand_runtime import inference, standby
from steadyhand_runtime.clock import NS_PER_S, MonotonicClock, Rate, realtime
from steadyhand_runtime.cutoff import Cutoff
from steadyhand_runtime.encoders import Encoders
from steadyhand_runtime.model_host import CUTOFF_LOOKS
from steadyhand_runtime.priority import fifo
from steadyhand_runtime.standby import Standby
from steadyhand_runtime.swap import Models, Pace

OURS, PEER = "hot swap", "built in the loop"
PRIORITY = 40
SETTLE_TICKS = 12
PATIENCE_TICKS = 600
NEXT_AFTER_TICKS = 3  # from a swap to the next publication
USER_HZ = 100
TRIGGERED = 1e7


@dataclass(frozen=True)
class Job:
    """What to do: `swaps` artifacts in `stack`, or, with `fault`, `swaps` times a faulty policy."""

    stack: str
    samples: str
    swaps: int
    seed: int
    fault: str = ""


@dataclass
class Ticks:
    """Every tick's seconds: lateness, from the deadline to the action, and what was not the loop's own doing."""

    late_s: list[float] = field(default_factory=list)
    action_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)  # in the run queue
    stolen_s: list[float] = field(default_factory=list)  # by the hypervisor, of every core
    missed: list[int] = field(default_factory=list)
    swapping: list[bool] = field(default_factory=list)  # from the publication to the tick after the swap


@dataclass
class Rollback:
    """How one faulty policy went: periods from the first triggered tick's deadline until the good one answered."""

    fault: str
    ticks: int
    periods: float
    reason: str
    finite: bool  # no action was ever anything else


@dataclass
class Result:
    ticks: Ticks = field(default_factory=Ticks)
    swapped: int = 0
    build_hold_s: float | None = None
    rollbacks: list[Rollback] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)


class Loop:
    """Control's way of using models at its rate, and nothing else of it."""

    def __init__(self, job: Job, models: Models, slack: Callable[[], None]) -> None:
        contract = task.load("lift").contract()
        rng = np.random.default_rng(job.seed)
        self.models, self._slack = models, slack
        self._frames = rng.integers(0, 256, (16, *contract.frames_shape), dtype=np.uint8)
        self.state = np.zeros(len(contract.state), np.float32)
        self._noise = np.zeros(len(contract.action), np.float32)
        self.rate = Rate(MonotonicClock(), contract.rate_hz)
        self._queue, self._waited_s, self._stolen_s = RunQueue(), 0.0, stolen_s()
        self._missed = 0
        self.ticks = Ticks()
        self.finite = True
        self.deadline_ns = 0

    def tick(self, before: Callable[[], None] = lambda: None) -> None:
        """One control tick; `before` is what the peer does in it."""
        self.deadline_ns = self.rate.wait()
        before()
        number = self.rate.ticks
        pace = Pace(self.rate.missed, self.rate.lateness_ns / NS_PER_S)
        self.models.turn(number, self.deadline_ns, pace, policy_free=True, episode_free=number % 50 == 0)
        frames = self._frames[number % len(self._frames)]
        self.models.judge(frames)
        action = self.models.act(frames, self.state, self._noise)
        done_ns = time.monotonic_ns()
        self.finite &= action is None or bool(np.isfinite(action).all())
        self._note(done_ns)
        self._slack()

    def _note(self, done_ns: int) -> None:
        waited_s, stolen = self._queue.delay_s(), stolen_s()
        ticks = self.ticks
        ticks.late_s.append(self.rate.lateness_ns / NS_PER_S)
        ticks.action_s.append((done_ns - self.deadline_ns) / NS_PER_S)
        ticks.waited_s.append(waited_s - self._waited_s)
        ticks.stolen_s.append(stolen - self._stolen_s)
        ticks.missed.append(self.rate.missed - self._missed)
        ticks.swapping.append(False)
        self._waited_s, self._stolen_s, self._missed = waited_s, stolen, self.rate.missed


class Bench:
    """A registry, what publishes into it, and the loop that uses it."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job = job
        self.registry = Registry(folder)
        good = Registry(Path(job.samples) / "good")
        self._policies = [good.load(Channel.POLICY, v) for v in good.versions(Channel.POLICY)]
        self.registry.publish(good.load(Channel.CLASSIFIER, 1))
        self.registry.publish(good.load(Channel.ENCODER, 1))
        # In a thread, as on a robot in another process: a slow disk is not what is measured.
        self._publisher = ThreadPoolExecutor(1, initializer=fifo, initargs=(standby.PRIORITY,))
        self.published = 0
        self.publish()
        self._publisher.submit(lambda: None).result()
        self._contract = contract = task.load("lift").contract()
        self._quarantine = Quarantine(folder / "quarantine.txt")
        self._cutoff = Cutoff(1.0 / contract.rate_hz / CUTOFF_LOOKS, PRIORITY + 1)
        self.standby = Standby(self.registry, contract, self._quarantine, self._build)
        self.models = Models(self.standby, self._quarantine)
        self._encoders = Encoders(self.registry, contract)  # the peer's: it need not build what it has
        self.loop = Loop(job, self.models, self.standby.slack)

    def publish(self, artifact: Artifact | None = None) -> int:
        """Have the next version put there: a good policy in turn, or the one given. Does not wait for it."""
        self.published += 1
        made = artifact or self._policies[self.published % len(self._policies)]
        manifest = dataclasses.replace(made.manifest, version=self.published)
        self._publisher.submit(self.registry.publish, dataclasses.replace(made, manifest=manifest))
        return self.published

    def start(self) -> list[str]:
        """Models ready, then real-time privileges for this thread, as the control process does it."""
        self._cutoff.start()
        if self._job.stack == OURS:
            self.standby.start()
        else:
            self.standby.look()
        degraded = realtime(PRIORITY)
        gc.collect()
        gc.freeze()
        self.loop.rate = Rate(MonotonicClock(), self._contract.rate_hz)
        return degraded

    def stop(self) -> None:
        self._publisher.shutdown()
        self.standby.stop()
        self._cutoff.stop()

    def until(self, version: int) -> int:
        """Tick until that policy is in force; the ticks it took. Raises RuntimeError when it never is."""
        for ticks in range(1, PATIENCE_TICKS):
            self.loop.tick(self._build_in_the_loop if self._job.stack == PEER else lambda: None)
            if self.models.policy.version == version:
                return ticks
        refused = [r.reason for r in self.models.records() if r.outcome is SwapOutcome.REFUSED]
        raise RuntimeError(f"policy v{version} was never in force: {refused or 'no word'}")

    def _build(
        self, artifact: Artifact, contract: Contract, encoder: inference.Encoder | None = None
    ) -> inference.Model:
        return inference.load(artifact, contract, encoder, cutoff=self._cutoff)

    def _build_in_the_loop(self) -> None:
        """What a loop does that has nobody to prepare its models: load the newest, check it, use it."""
        newest = self.registry.newest(Channel.POLICY) or 0
        if newest > self.models.policy.version:
            made = self.registry.load(Channel.POLICY, newest)
            encoder = self._encoders.trial(made.manifest)
            self.models.policy.put(inference.load(made, self._contract, encoder), self.loop.deadline_ns)


def swaps(job: Job, bench: Bench, result: Result) -> None:
    """Publish one after the other, and mark the ticks that a swap may have disturbed."""
    bench.until(1)
    for _ in range(SETTLE_TICKS):
        bench.loop.tick()
    for _ in range(job.swaps):
        begin = len(bench.loop.ticks.late_s)
        bench.until(bench.publish())
        bench.loop.tick()
        swapping = bench.loop.ticks.swapping
        swapping[begin:] = [True] * (len(swapping) - begin)
        result.swapped += 1
        for _ in range(NEXT_AFTER_TICKS):
            bench.loop.tick()
    result.ticks = bench.loop.ticks
    result.build_hold_s = bench.standby.build_hold_s


def rollback(job: Job, bench: Bench) -> Rollback:
    """Bring a faulty policy into force, trigger it, and see how long it is obeyed."""
    registry = Registry(Path(job.samples) / f"fault-{job.fault}")
    bench.until(1)
    for _ in range(SETTLE_TICKS):
        bench.loop.tick()
    bench.until(bench.publish(registry.load(Channel.POLICY, registry.versions(Channel.POLICY)[0])))
    for _ in range(NEXT_AFTER_TICKS):
        bench.loop.tick()
    bench.models.records()
    bench.loop.state[0] = TRIGGERED
    ticks, first_ns = 0, 0
    while bench.models.policy.version != 1 and ticks < PATIENCE_TICKS:
        bench.loop.tick()
        first_ns = first_ns or bench.loop.deadline_ns
        ticks += 1
    periods = (time.monotonic_ns() - first_ns) / bench.loop.rate.period_ns
    reasons = [r.reason for r in bench.models.records() if r.outcome is SwapOutcome.ROLLED_BACK]
    return Rollback(job.fault, ticks, periods, reasons[-1] if reasons else "never", bench.loop.finite)


def stolen_s() -> float:
    """Seconds that the hypervisor has taken from all cores since the start; 0 where the kernel does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return int(file.readline().split()[8]) / USER_HZ
    except (OSError, IndexError, ValueError):
        return 0.0


def run(job: Job) -> Result:
    """The whole job in temporary folders."""
    result = Result()
    for _ in range(job.swaps if job.fault else 1):
        with tempfile.TemporaryDirectory(prefix="steadyhand-swap-") as folder, contextlib.ExitStack() as stack:
            bench = Bench(job, Path(folder))
            stack.callback(bench.stop)
            result.degraded = bench.start()
            if job.fault:
                result.rollbacks.append(rollback(job, bench))
            else:
                swaps(job, bench, result)
    return result


if __name__ == "__main__":
    made = run(pydantic.TypeAdapter(Job).validate_json(sys.argv[1]))
    sys.stdout.write(pydantic.TypeAdapter(Result).dump_json(made).decode())
