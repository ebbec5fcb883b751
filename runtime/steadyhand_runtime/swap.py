"""Hot swap: artifacts are verified, built and warmed off the control thread, and change hands between two ticks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from steadyhand_models.artifact import Artifact, ArtifactError, Manifest, verify
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel, Swap, SwapOutcome
from steadyhand_models.registry import Registry
from steadyhand_runtime import inference
from steadyhand_runtime.inference import ModelFailure

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

WARM_RUNS = 10
LOOK_PERIOD_S = 0.2
BUDGET_SHARE = 0.5  # of the control period, for one call of one model


class Loaded(Protocol):
    """A model that is ready to be called."""

    manifest: Manifest
    last_s: float

    @property
    def version(self) -> int: ...

    def run(self, frames: U8, state: F32 | None = None, noise: F32 | None = None) -> F32: ...

    def warm(self, runs: int) -> float: ...


Build = Callable[[Artifact, Contract], Loaded]


@dataclass(frozen=True, slots=True)
class Pace:
    """How punctual the control loop has been: ticks missed so far, this tick's lateness, and percentiles."""

    missed: int = 0
    lateness_s: float = 0.0
    late_p50_s: float = 0.0
    late_p99_s: float = 0.0
    late_max_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Staged:
    """A model that waits for its boundary; `missed_before` were missed when its build began."""

    model: Loaded
    build_s: float
    missed_before: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """An artifact that will not be used."""

    channel: Channel
    version: int
    reason: str
    build_s: float


class Quarantine:
    """Hashes of artifacts that failed while in use, remembered across restarts in a text file, one a line."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        known = path.read_text(encoding="ascii").split() if path is not None and path.is_file() else []
        self._hashes = set(known)
        self._unsaved: list[str] = []

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._hashes

    def add(self, sha256: str) -> None:
        """Never blocks: the file follows at the next `save`."""
        self._hashes.add(sha256)
        self._unsaved.append(sha256)

    def save(self) -> None:
        if self._path is None:
            self._unsaved.clear()
        while self._unsaved and self._path is not None:
            with self._path.open("a", encoding="ascii") as file:
                file.write(self._unsaved[0] + "\n")
            self._unsaved.pop(0)


class Standby:
    """Prepares the newest artifact of each channel. `look` does one round; `start` does so in a thread of its own."""

    def __init__(
        self,
        registry: Registry,
        contract: Contract,
        quarantine: Quarantine,
        build: Build = inference.load,
        missed: Callable[[], int] = lambda: 0,
    ) -> None:
        self._registry, self._contract, self._quarantine = registry, contract, quarantine
        self._build, self._missed = build, missed
        self._budget_s = BUDGET_SHARE / contract.rate_hz
        self._seen = dict.fromkeys(Channel, 0)
        self._staged: dict[Channel, Staged] = {}
        self._refused: list[Refusal] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Stage the newest usable artifact of each channel that is newer than the last one looked at."""
        self._quarantine.save()
        for channel in Channel:
            news = [v for v in self._registry.versions(channel) if v > self._seen[channel]]
            for version in reversed(news):
                if self._prepare(channel, version):
                    break
            self._seen[channel] = max([self._seen[channel], *news])

    def take(self, channel: Channel) -> Staged | None:
        """What waits for this channel's boundary; called from the control thread, never blocks."""
        return self._staged.pop(channel, None)

    def refusals(self) -> list[Refusal]:
        """What was refused since the last call."""
        found = []
        while self._refused:
            found.append(self._refused.pop(0))
        return found

    def start(self) -> None:
        """Look now, so that the first tick has what was current, and from now on in a thread."""
        self.look()
        self._thread = threading.Thread(target=self._watch, name="standby", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._quarantine.save()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_PERIOD_S):
            try:
                self.look()
            except OSError:
                continue  # a folder that cannot be read now is looked at again; the current models stay

    def _prepare(self, channel: Channel, version: int) -> bool:
        start_s, missed_before = time.perf_counter(), self._missed()
        try:
            artifact = self._registry.load(channel, version)
            self._check(artifact, channel, version)
            model = self._build(artifact, self._contract)
            call_s = model.warm(WARM_RUNS)
            if call_s > self._budget_s:
                raise ArtifactError(f"a call takes {call_s * 1e3:.0f} ms, allowed {self._budget_s * 1e3:.0f} ms")
        except (ArtifactError, UserError, ModelFailure, OSError) as error:
            self._refused.append(Refusal(channel, version, str(error), time.perf_counter() - start_s))
            return False
        self._staged[channel] = Staged(model, time.perf_counter() - start_s, missed_before)
        return True

    def _check(self, artifact: Artifact, channel: Channel, version: int) -> None:
        manifest = artifact.manifest
        if (manifest.channel, manifest.version) != (channel, version):
            claim = f"{manifest.channel.value} v{manifest.version}"
            raise ArtifactError(f"{channel.value} v{version}: its manifest says {claim}")
        verify(artifact, self._contract.hash)
        if manifest.sha256 in self._quarantine:
            raise ArtifactError(f"{channel.value} v{version}: in quarantine since it failed on this robot")


class Slot:
    """One channel's model in force, and the one before it, still hot."""

    def __init__(self) -> None:
        self.current: Loaded | None = None
        self.previous: Loaded | None = None
        self.since_ns = 0

    @property
    def version(self) -> int:
        return self.current.version if self.current is not None else 0

    def put(self, model: Loaded, now_ns: int) -> None:
        self.current, self.previous, self.since_ns = model, self.current, now_ns

    def fall_back(self, now_ns: int) -> None:
        self.current, self.previous, self.since_ns = self.previous, None, now_ns


class Models:
    """Both channels as control sees them: `turn` at the start of a tick, then `act` and `judge`.

    A swap's record is complete at the tick after it, when that first tick's lateness and misses are known; the record
    of a rollback names the version that failed, and as `previous` the one in force from then on.
    """

    def __init__(self, standby: Standby, quarantine: Quarantine) -> None:
        self._standby, self._quarantine = standby, quarantine
        self.policy, self.classifier = Slot(), Slot()
        self._unsettled: list[tuple[Swap, int]] = []
        self._records: list[Swap] = []
        self._tick, self._now_ns = 0, 0
        self.spent_s = 0.0  # in calls of this tick

    def turn(self, tick: int, now_ns: int, pace: Pace, policy_free: bool, episode_free: bool) -> None:
        """Settle the last tick's swaps and make those whose boundary this is.

        policy_free: no takeover is going on; episode_free: no episode is.
        """
        self._tick, self._now_ns, self.spent_s = tick, now_ns, 0.0
        for swap, missed_before in self._unsettled:
            self._records.append(replace(swap, missed_ticks=pace.missed - missed_before))
        self._unsettled = []
        for refusal in self._standby.refusals():
            self._records.append(
                self._record(SwapOutcome.REFUSED, refusal.channel, refusal.version, refusal.reason, refusal.build_s)
            )
        if policy_free:
            self._swap(Channel.POLICY, self.policy, pace)
        if episode_free:
            self._swap(Channel.CLASSIFIER, self.classifier, pace)

    def act(self, frames: U8, state: F32, noise: F32) -> F32 | None:
        """The policy's action (A,), or None without a policy. A policy that fails is rolled back within the call."""
        return self._run(Channel.POLICY, self.policy, frames, state, noise)

    def judge(self, frames: U8) -> F32 | None:
        """The classifier's probabilities (heads,), or None without one."""
        return self._run(Channel.CLASSIFIER, self.classifier, frames, None, None)

    def records(self) -> list[Swap]:
        """What became of artifacts since the last call."""
        taken, self._records = self._records, []
        return taken

    def _run(self, channel: Channel, slot: Slot, frames: U8, state: F32 | None, noise: F32 | None) -> F32 | None:
        while slot.current is not None:
            try:
                output = slot.current.run(frames, state, noise)
                self.spent_s += slot.current.last_s
                return output
            except ModelFailure as error:
                self._roll_back(channel, slot, str(error))
        return None

    def _swap(self, channel: Channel, slot: Slot, pace: Pace) -> None:
        staged = self._standby.take(channel)
        if staged is None:
            return
        swap = self._record(SwapOutcome.SWAPPED, channel, staged.model.version, "", staged.build_s, slot.version)
        self._unsettled.append((replace(swap, lateness_s=pace.lateness_s), staged.missed_before))
        slot.put(staged.model, self._now_ns)

    def _roll_back(self, channel: Channel, slot: Slot, reason: str) -> None:
        failed = slot.current
        if failed is None:
            return
        self._quarantine.add(failed.manifest.sha256)
        slot.fall_back(self._now_ns)
        self._records.append(self._record(SwapOutcome.ROLLED_BACK, channel, failed.version, reason, 0.0, slot.version))

    def _record(
        self, outcome: SwapOutcome, channel: Channel, version: int, reason: str, build_s: float, previous: int = 0
    ) -> Swap:
        return Swap(channel, version, previous, outcome, reason, self._tick, self._now_ns, build_s, 0, 0.0)
