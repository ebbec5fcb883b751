"""The registry: artifacts below one folder, policies, classifiers and encoders by version.

On disk: `<root>/<channel>/v000123/{model.onnx, golden.msgpack, manifest.json}`, written aside and renamed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from steadyhand_models import durable, wire
from steadyhand_models.artifact import Artifact, ArtifactError, Golden, Manifest, manifest_from_json
from steadyhand_models.messages import Channel

SHOWN = 12  # characters of a hash


class EncoderMissing(ArtifactError):
    """A model names an encoder that is not there; it may still come."""


class Registry:
    """Artifacts below one folder. Publishing is atomic; a published version never changes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, artifact: Artifact) -> Path:
        """Write one artifact durably. Raises ArtifactError when the version exists or is not newer than the last.

        An encoder may be older than the last: it is found by whoever names it, and never for being the newest.
        """
        manifest = artifact.manifest
        versions = self.versions(manifest.channel)
        if manifest.channel is Channel.ENCODER and manifest.version in versions:
            raise ArtifactError(f"{manifest.name} is there already")
        if manifest.channel is not Channel.ENCODER and versions and manifest.version <= versions[-1]:
            raise ArtifactError(f"{manifest.name} is not newer than v{versions[-1]}")
        final = self._folder(manifest.channel, manifest.version)
        aside = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        durable.write(aside / "model.onnx", artifact.model)
        durable.write(aside / "golden.msgpack", wire.encode(artifact.golden))
        durable.write(aside / "manifest.json", manifest.to_json().encode())
        aside.rename(final)
        durable.sync_folder(final.parent)
        return final

    def versions(self, channel: Channel) -> list[int]:
        """Published versions, rising."""
        folder = self.root / channel.value
        if not folder.is_dir():
            return []
        return sorted(int(p.name[1:]) for p in folder.iterdir() if p.name[0] == "v" and p.name[1:].isdigit())

    def newest(self, channel: Channel) -> int | None:
        versions = self.versions(channel)
        return versions[-1] if versions else None

    def manifest(self, channel: Channel, version: int) -> Manifest:
        """One version's manifest. Raises ArtifactError."""
        path = self._folder(channel, version) / "manifest.json"
        if not path.is_file():
            known = ", ".join(f"v{v}" for v in self.versions(channel)[-5:]) or "none"
            raise ArtifactError(f"no {channel.value} v{version} in {self.root}; newest: {known}")
        return manifest_from_json(path.read_text(encoding="utf-8"))

    def load(self, channel: Channel, version: int) -> Artifact:
        """Read one artifact whole; the caller verifies it against its own contract. Raises ArtifactError."""
        manifest = self.manifest(channel, version)
        folder = self._folder(channel, version)
        try:
            golden = wire.decode((folder / "golden.msgpack").read_bytes(), Golden)
            return Artifact(manifest, (folder / "model.onnx").read_bytes(), golden)
        except (OSError, wire.WireError) as error:
            raise ArtifactError(f"{folder}: {error}") from None

    def encoder_of(self, manifest: Manifest) -> Artifact:
        """The encoder that a manifest names, by version and content. Raises ArtifactError naming both."""
        version = manifest.encoder_version
        needs = f"{manifest.name} needs encoder v{version}"
        if version not in self.versions(Channel.ENCODER):
            raise EncoderMissing(f"{needs}, which is not in {self.root}")
        try:
            found = self.load(Channel.ENCODER, version)
        except ArtifactError as error:
            raise ArtifactError(f"{needs}: {error}") from None
        if found.manifest.sha256 != manifest.encoder_sha256:
            wanted, here = manifest.encoder_sha256[:SHOWN], found.manifest.sha256[:SHOWN]
            raise ArtifactError(f"{needs} with sha256 {wanted}..., the one in {self.root} has {here}...")
        return found

    def remove(self, channel: Channel, version: int) -> None:
        """Delete one version, as far as the disk lets us."""
        shutil.rmtree(self._folder(channel, version), ignore_errors=True)

    def _folder(self, channel: Channel, version: int) -> Path:
        return self.root / channel.value / f"v{version:06d}"
