"""Publishing: when a policy is due, and how artifacts get versions that rise across restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steadyhand_models import signing
from steadyhand_models.artifact import Artifact
from steadyhand_models.messages import Channel, Swap
from steadyhand_models.registry import Registry
from steadyhand_training import log
from steadyhand_training.versions import OnFall, VersionSettings


@dataclass(frozen=True)
class PublishSettings:
    """When the robot gets a new policy. A classifier is published whenever one is promoted."""

    policy_every_s: Annotated[float, Field(gt=0)] = 10.0
    least_updates: Annotated[int, Field(ge=0)] = 100
    most_held_s: Annotated[float, Field(ge=0)] = 30.0  # longest that a policy waits for critics that are catching up
    in_flight_s: Annotated[float, Field(gt=0)] = 10.0  # a robot that has not answered by then no longer holds back
    on_fall: OnFall = OnFall.REPORT  # of autonomous success, by the verdicts of people
    hold_updates: Annotated[int, Field(ge=0)] = 3000  # after a roll-back; 500 steps at the default ratio
    versions: VersionSettings = field(default_factory=VersionSettings)


class Schedule:
    """Decides when a policy is due; pure. `now_s` is any clock that only rises: the wall's, or steps of lockstep."""

    def __init__(self, settings: PublishSettings) -> None:
        self.settings = settings
        self.in_flight: int | None = None
        self._sent_s = float("-inf")
        self._sent_updates = 0
        self._held_since_s: float | None = None

    def waits(self, now_s: float, held: bool) -> bool:
        """Whether a policy waits because the critics behind it are held back; asked at every look at the schedule."""
        if not held:
            self._held_since_s = None
            return False
        if self._held_since_s is None:
            self._held_since_s = now_s
        return now_s - self._held_since_s < self.settings.most_held_s

    def due(self, now_s: float, updates: int) -> bool:
        """Whether a policy that has had `updates` updates should be published now."""
        s = self.settings
        if self.in_flight is not None and now_s - self._sent_s < s.in_flight_s:
            return False
        return now_s - self._sent_s >= s.policy_every_s and self.fresh(updates) >= max(1, s.least_updates)

    def fresh(self, updates: int) -> int:
        """Updates since the last policy that was published."""
        return updates - self._sent_updates

    def sent(self, version: int, now_s: float, updates: int) -> None:
        self.in_flight, self._sent_s, self._sent_updates = version, now_s, updates

    def recall(self, updates: int) -> None:
        """The newest policy, of an earlier process, had that many updates."""
        self._sent_updates = updates

    def put_off(self, now_s: float) -> None:
        """Publishing failed; try again an interval later."""
        self._sent_s = now_s

    def answered(self, swap: Swap) -> None:
        """The robot said what became of an artifact; whatever it was, the next may follow."""
        if swap.channel is Channel.POLICY and self.in_flight is not None and swap.version >= self.in_flight:
            self.in_flight = None


class Publisher:
    """Writes artifacts to the registry and announces them."""

    def __init__(
        self, registry: Registry, announce: Callable[[Channel, int], None], private_key: bytes | None = None
    ) -> None:
        """private_key (32 bytes, Ed25519) signs every artifact; without one they go out unsigned."""
        self.registry = registry
        self._announce = announce
        self._private_key = private_key

    def newest(self, channel: Channel) -> int:
        """Newest published version; 0 before the first."""
        return self.registry.newest(channel) or 0

    def publish(self, artifact: Artifact) -> Path:
        """Make one artifact durable, then tell the robots. Raises ArtifactError when its version does not rise."""
        if self._private_key is not None:
            artifact = signing.sign(artifact, self._private_key)
        manifest = artifact.manifest
        folder = self.registry.publish(artifact)
        self._announce(manifest.channel, manifest.version)
        log.info(
            "publish.done",
            channel=manifest.channel.value,
            version=manifest.version,
            updates=manifest.training_step,
            bytes=len(artifact.model),
        )
        return folder
