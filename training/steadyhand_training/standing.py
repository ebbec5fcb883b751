"""How a run's policy versions stand: the trainer's memory joined with its versions, and what follows for publishing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from steadyhand_models.artifact import Artifact, ArtifactError
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry
from steadyhand_training import log
from steadyhand_training.memory import Memory
from steadyhand_training.publish import PublishSettings
from steadyhand_training.versions import Fall, OnFall, VersionBook, autonomous, verdict


class Standings:
    """Keeps the book of versions up to date and notices falls. Everything in it follows from journal and registry."""

    def __init__(self, memory: Memory, registry: Registry, settings: PublishSettings) -> None:
        self.settings = settings
        self.fall: Fall | None = None
        self._memory, self._registry = memory, registry
        self._book = VersionBook(settings.versions)
        self._held_until = 0  # updates before which nothing follows a version that was published again

    def recall(self) -> None:
        """Work everything out from the start, after a restart."""
        self._book = VersionBook(self.settings.versions)
        for version in self._registry.versions(Channel.POLICY):
            manifest = self._registry.manifest(Channel.POLICY, version)
            if "rolled_back_at" in manifest.metrics:
                self._book.rolled_back(version, manifest.parent)
                self._hold(manifest.metrics["rolled_back_at"])
        for episode in self._memory.ledger.episodes:
            self._judge(episode)
        self.fall = self._book.fall

    def notice(self, episodes: Iterable[int]) -> None:
        """Episodes that ended, or of which something was said."""
        if not sum(map(self._judge, episodes)):
            return
        before, self.fall = self.fall, self._book.fall
        if self.fall is not None and before is None:
            log.warn("policy.fell", what=str(self.fall), on_fall=self.settings.on_fall.value)

    @property
    def rollback_due(self) -> bool:
        return self.fall is not None and self.settings.on_fall is OnFall.ROLLBACK

    def may_publish(self, updates: int) -> bool:
        """Whether the learner's own policy may follow: not for a while after one was taken back."""
        return updates >= self._held_until

    def again(self, version: int, updates: int, steps: int) -> Artifact | None:
        """The best version's artifact under a new number; None, and the fall forgotten, when it cannot be read."""
        fall, self.fall = self.fall, None
        if fall is None:
            return None
        try:
            best = self._registry.load(Channel.POLICY, fall.best.version)
        except ArtifactError as error:
            log.warn("policy.cannot_roll_back", version=fall.best.version, reason=error)
            return None
        metrics = best.manifest.metrics | {
            "steps": float(steps),
            "rolled_back_at": float(updates),
            "fell_from": fall.best.rate,
            "fell_to": fall.recent.rate,
            "fell_certainty": fall.certainty,
        }
        manifest = dataclasses.replace(
            best.manifest, version=version, parent=fall.best.version, created_unix_s=time.time(), metrics=metrics
        )
        return dataclasses.replace(best, manifest=manifest)

    def rolled_back(self, artifact: Artifact) -> None:
        """That artifact is out."""
        manifest = artifact.manifest
        self._book.rolled_back(manifest.version, manifest.parent)
        self._hold(manifest.metrics["rolled_back_at"])
        log.warn("policy.rolled_back", version=manifest.version, copy_of=manifest.parent)

    @property
    def metrics(self) -> dict[str, float]:
        """The best and the newest versions' standing, as far as anything was judged."""
        best, recent = self._book.best, self._book.recent
        found: dict[str, float] = {}
        if best is not None:
            lo, hi = best.interval()
            found |= {"best_version": best.version, "best_success": best.rate, "best_lo": lo, "best_hi": hi}
        if recent is not None:
            found |= {"recent_success": recent.rate, "recent_judged": recent.episodes}
        return found | {"fallen": float(self.fall is not None)}

    def _hold(self, updates: float) -> None:
        self._held_until = int(updates) + self.settings.hold_updates

    def _judge(self, episode: int) -> bool:
        replay = self._memory.replay
        acted = replay.rows(episode)[:-1]
        version = autonomous(replay.source[acted], replay.policy_version[acted])
        said = verdict(self._memory.ledger.labels(episode)) if replay.ended(episode) is not None else None
        return self._book.judge(episode, version, said)
