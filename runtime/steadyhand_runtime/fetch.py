"""Model downloads: notices in, requests out, chunks in; what arrived whole is published in the edge's registry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from steadyhand_models import artifact, signing
from steadyhand_models.artifact import ANSWERING, ArtifactError
from steadyhand_models.messages import Channel, ModelChunk, ModelNotice, ModelRequest
from steadyhand_models.registry import Registry
from steadyhand_models.standing import Pins, Standings
from steadyhand_runtime.telemetry import Log

CHUNK_BYTES = 256 << 10
ORDER = (Channel.ENCODER, Channel.CLASSIFIER, Channel.POLICY)
ATTEMPTS = 3  # downloads of one bundle before it is given up as damaged
ANSWER_TIMEOUT_NS = 3_000_000_000


@dataclass
class _Download:
    """One bundle under way."""

    notice: ModelNotice
    data: bytearray = field(default_factory=bytearray)


class Fetcher:
    """Fetches the newest announced version of each channel, one bundle at a time; no sockets, time is an argument.

    Encoders are announced for what names them and fetched before it, each of them; one that nothing here names goes.

    A bundle under way is finished before a newer one is begun, so that a slow network still brings models. An
    interrupted download goes on where it stopped while the same bundle is offered.
    """

    def __init__(
        self, registry: Registry, contract_hash: str, keep: int, log: Log, trusted_keys: Sequence[str] = ()
    ) -> None:
        """keep is how many versions of a channel stay, besides those in use or pinned; only artifacts signed with one
        of `trusted_keys` are kept, any where there are none."""
        self._trusted = tuple(trusted_keys)
        self._standings, self._pins = Standings(registry.root), Pins(registry.root)
        self._registry = registry
        self._contract_hash = contract_hash
        self._keep = keep
        self._log = log
        self._wanted: dict[tuple[Channel, int], ModelNotice] = {}
        self._download: _Download | None = None
        self._interrupted: _Download | None = None
        self._unanswered = 0
        self._asked_ns: int | None = None
        self._failures: dict[str, int] = {}  # by sha256
        self.published = 0
        self.refused = 0

    def notice(self, notice: ModelNotice) -> None:
        """Take note of an offer; an old, oversized or repeatedly damaged one is passed over."""
        if not 0 < notice.size <= artifact.MAX_MODEL_BYTES:
            self._log.warn("model.refused", channel=notice.channel, version=notice.version, size=notice.size)
            self.refused += 1
            return
        if self._failures.get(notice.sha256, 0) >= ATTEMPTS or self._has(notice):
            return
        self._wanted[_place(notice)] = notice

    def request(self, now_ns: int) -> ModelRequest | None:
        """What to ask for now: the next piece, once, and again when the answer does not come."""
        if self._asked_ns is not None:
            if now_ns - self._asked_ns < ANSWER_TIMEOUT_NS:
                return None
            self._unanswered += 1
            if self._unanswered >= ATTEMPTS and self._download is not None:
                self._log.warn("model.unanswered", channel=self._download.notice.channel)
                self._download = None
        if self._download is None:
            self._download = self._begin()
        if self._download is None:
            self._asked_ns = None
            return None
        self._asked_ns = now_ns
        notice = self._download.notice
        return ModelRequest(notice.channel, notice.version, len(self._download.data))

    def chunk(self, chunk: ModelChunk) -> None:
        """Add a piece; the last one is followed by the checks and the publication."""
        download = self._download
        if download is None or not _continues(download, chunk):
            self._log.warn(
                "model.chunk_ignored", every_s=5.0, channel=chunk.channel, version=chunk.version, offset=chunk.offset
            )
            return
        self._asked_ns = None
        self._unanswered = 0
        download.data += chunk.data
        if len(download.data) == download.notice.size:
            self._download = None
            self._finish(download.notice, bytes(download.data))

    def interrupted(self) -> None:
        """The connection is gone, and with it every offer; what has arrived is kept for when it is offered again."""
        self._wanted.clear()
        self._interrupted = self._download or self._interrupted
        self._download = None
        self._asked_ns = None

    def _begin(self) -> _Download | None:
        """The next bundle: encoders first, as others need them; then the classifier, rarer and more urgent."""
        self._unanswered = 0
        for place in sorted(self._wanted, key=lambda place: ORDER.index(place[0])):
            notice = self._wanted.pop(place)
            if self._has(notice):
                continue
            left, self._interrupted = self._interrupted, None
            return left if left is not None and left.notice == notice else _Download(notice)
        return None

    def _finish(self, notice: ModelNotice, data: bytes) -> None:
        try:
            if hashlib.sha256(data).hexdigest() != notice.sha256:
                raise ArtifactError("the bundle does not match its announced sha256")
            made = artifact.unpack(data, self._contract_hash)
            if (made.manifest.channel, made.manifest.version) != (notice.channel, notice.version):
                raise ArtifactError(f"the bundle holds {made.manifest.channel.value} v{made.manifest.version}")
            signing.check(made, self._trusted)
            self._registry.publish(made)
        except (ArtifactError, OSError) as error:
            self._give_up(notice, str(error))
            return
        self.published += 1
        self._log.info("model.published", channel=notice.channel, version=notice.version, size=notice.size)
        self._prune(notice.channel)

    def _give_up(self, notice: ModelNotice, reason: str) -> None:
        failures = self._failures[notice.sha256] = self._failures.get(notice.sha256, 0) + 1
        self.refused += 1
        self._log.error(
            "model.refused", channel=notice.channel, version=notice.version, attempt=failures, reason=reason
        )
        if failures < ATTEMPTS:
            self._wanted.setdefault(_place(notice), notice)

    def _has(self, notice: ModelNotice) -> bool:
        """Whether an offer is of no use: that encoder, or a version at least as new, is here or under way."""
        under_way = self._download.notice if self._download else None
        here = self._registry.versions(notice.channel)
        if under_way is not None and under_way.channel is notice.channel:
            here = [*here, under_way.version]
        if notice.channel is Channel.ENCODER:
            return notice.version in here
        return notice.version <= max(here, default=0)

    def _prune(self, channel: Channel) -> None:
        if channel is not Channel.ENCODER:
            self._prune_models(channel)
            self._prune_encoders()

    def _prune_encoders(self) -> None:
        """What nothing here names goes, except where it may be wanted by what is still on its way."""
        old = self._registry.versions(Channel.ENCODER)[:-1]
        if not old or self._wanted:
            return
        try:
            named = {
                self._registry.manifest(channel, version).encoder_version
                for channel in ANSWERING
                for version in self._registry.versions(channel)
            }
        except ArtifactError:
            return  # whatever cannot be read may name any of them
        for version in set(old) - named:
            self._registry.remove(Channel.ENCODER, version)

    def _prune_models(self, channel: Channel) -> None:
        standing = self._standings.read()[channel]
        kept = {standing.version, standing.previous, self._pins.read().get(channel)}
        for version in self._registry.versions(channel)[: -self._keep]:
            if version not in kept:
                self._registry.remove(channel, version)


def _place(notice: ModelNotice) -> tuple[Channel, int]:
    """What a newer offer replaces: the same channel's, but never another encoder's."""
    return notice.channel, notice.version if notice.channel is Channel.ENCODER else 0


def _continues(download: _Download, chunk: ModelChunk) -> bool:
    """Whether a piece is the next one of this bundle."""
    notice = download.notice
    return (
        (chunk.channel, chunk.version, chunk.offset) == (notice.channel, notice.version, len(download.data))
        and 0 < len(chunk.data) <= CHUNK_BYTES
        and len(download.data) + len(chunk.data) <= notice.size
    )
