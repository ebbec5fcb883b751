"""What leaves the trainer: artifacts on their schedule, roll-backs, and in lockstep the wait until a robot has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from steadyhand_models import keys
from steadyhand_models.artifact import Artifact, ArtifactError
from steadyhand_models.messages import Channel, Swap, SwapOutcome
from steadyhand_models.nets.export import ExportError
from steadyhand_models.registry import Registry
from steadyhand_training import log
from steadyhand_training.ingest import Ingest
from steadyhand_training.memory import Memory
from steadyhand_training.publish import Publisher, PublishSettings, Schedule
from steadyhand_training.standing import Standings
from steadyhand_training.status import Reporter

FETCH_TIMEOUT_S = 10.0
LOOK_S = 0.05


class Release:
    """One trainer's way out. `message` says what could not be published or run, in words."""

    def __init__(
        self, ingest: Ingest, registry: Registry, memory: Memory, reporter: Reporter, settings: PublishSettings
    ) -> None:
        self.registry = registry
        self.schedule = Schedule(settings)
        self.standings = Standings(memory, registry, settings)
        self.message = ""
        self._publisher = Publisher(registry, ingest.announce, keys.load(keys.default_path()))
        self._ingest, self._memory, self._reporter = ingest, memory, reporter

    def newest(self, channel: Channel) -> int:
        """Newest published version; 0 before the first."""
        return self._publisher.newest(channel)

    def resume(self) -> None:
        """Go on where an earlier process stopped; the memory is what it was."""
        if newest := self.newest(Channel.POLICY):
            self.schedule.recall(self.registry.manifest(Channel.POLICY, newest).training_step)
        self.standings.recall()

    def answered(self, swap: Swap) -> None:
        """A robot said what became of an artifact; one that it would not run is told to the person here."""
        self.schedule.answered(swap)
        self._reporter.event("swap", swap)
        refused = swap.outcome is not SwapOutcome.SWAPPED
        what = f"{swap.channel.value} v{swap.version} was {swap.outcome.value.replace('_', ' ')} by the robot"
        self.message = f"{what}: {swap.reason}" if refused else ""

    def policy_due(self, now_s: float, updates: int, held: bool = False) -> bool:
        """Whether the learner's own policy should go out now; `held`: its critics are still catching up."""
        waits = self.schedule.waits(now_s, held)
        return not waits and self.standings.may_publish(updates) and self.schedule.due(now_s, updates)

    def policy_waits(self, updates: int) -> bool:
        """Whether something was learned since the last policy, and may be published."""
        return self.standings.may_publish(updates) and self.schedule.fresh(updates) > 0

    def encoder(self, export: Callable[[int], Artifact | None]) -> Artifact | None:
        """The frozen encoder that policies are to name, published where its content is new; None where there is none.

        `export` makes it under a version. Raises ExportError when it cannot be published: nor can the policy then.
        """
        newest = self.newest(Channel.ENCODER)
        made = export(newest + 1)
        if made is None:
            return None
        try:
            known = self.registry.load(Channel.ENCODER, newest) if newest else None
            if known is not None and _same_encoder(known, made):
                return known
            self._publisher.publish(made)
        except (ArtifactError, OSError) as error:
            raise ExportError(f"its {made.manifest.name} could not be published: {error}") from None
        self._reporter.event("publish", made.manifest)
        return made

    def send(self, artifact: Artifact, now_s: float, updates: int) -> bool:
        """Publish an artifact; whether that could be done."""
        manifest = artifact.manifest
        try:
            self._publisher.publish(artifact)
        except OSError as error:
            self.failed(manifest.channel, manifest.version, error, now_s)
            return False
        self._reporter.event("publish", manifest)
        if manifest.channel is Channel.POLICY:
            self.schedule.sent(manifest.version, now_s, updates)
        return True

    def roll_back(self, now_s: float, updates: int) -> int:
        """Publish the best version again and return its new number, or 0; the learner goes on learning and waits."""
        version = self.newest(Channel.POLICY) + 1
        artifact = self.standings.again(version, updates, self._memory.tally.steps)
        if artifact is None or not self.send(artifact, now_s, updates):
            return 0
        self.standings.rolled_back(artifact)
        return version

    def failed(self, channel: Channel, version: int, error: Exception, now_s: float) -> None:
        """An artifact could not be made or published; it is tried again an interval later."""
        log.warn("publish.failed", channel=channel.value, version=version, reason=error)
        self.message = f"{channel.value} v{version} could not be published: {error}"
        self.schedule.put_off(now_s)

    def wait_until_fetched(self, channel: Channel, version: int, stopping: threading.Event) -> None:
        """Until some robot has an artifact whole, if one is connected and takes it within a time."""
        deadline_s = time.monotonic() + FETCH_TIMEOUT_S
        while self._ingest.robots and not self._ingest.fetched(channel, version) and not stopping.is_set():
            if time.monotonic() > deadline_s:
                log.warn("lockstep.not_fetched", channel=channel.value, version=version)
                return
            self._ingest.arrived.wait(LOOK_S)
            self._ingest.arrived.clear()


def _same_encoder(known: Artifact, made: Artifact) -> bool:
    """Whether both compute the same for the same contract; their golden vectors may be of other frames."""
    return known.model == made.model and known.manifest.contract_hash == made.manifest.contract_hash
