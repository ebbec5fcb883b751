"""List and show the artifacts of a run: policies and classifiers by version.

On disk: `<root>/<channel>/v000123/{model.onnx, golden.msgpack, manifest.json}`, written aside and renamed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from steadyhand_models import wire
from steadyhand_models.artifact import Artifact, ArtifactError, Golden, Manifest, manifest_from_json
from steadyhand_models.messages import Channel


class Registry:
    """Artifacts below one folder. Publishing is atomic; a published version never changes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, artifact: Artifact) -> Path:
        """Write one artifact durably. Raises ArtifactError when the version exists or is not newer than the last."""
        manifest = artifact.manifest
        newest = self.newest(manifest.channel)
        if newest is not None and manifest.version <= newest:
            raise ArtifactError(f"{manifest.channel.value} v{manifest.version} is not newer than v{newest}")
        final = self._folder(manifest.channel, manifest.version)
        aside = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write(aside / "model.onnx", artifact.model)
        _write(aside / "golden.msgpack", wire.encode(artifact.golden))
        _write(aside / "manifest.json", manifest.to_json().encode())
        aside.rename(final)
        _sync_folder(final.parent)
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

    def _folder(self, channel: Channel, version: int) -> Path:
        return self.root / channel.value / f"v{version:06d}"


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class List_:
    """List every version in a registry.

    Example: steadyhand models list --registry runs/latest/registry
    """

    registry: Path = Path("runs/latest/registry")


@dataclass(frozen=True)
class Show:
    """Show one version's manifest.

    Example: steadyhand models show --channel policy --version 12
    """

    version: int
    channel: Channel = Channel.POLICY
    registry: Path = Path("runs/latest/registry")


_Commands = Annotated[List_, tyro.conf.subcommand("list")] | Annotated[Show, tyro.conf.subcommand("show")]


def main(argv: Sequence[str]) -> int:
    """`steadyhand models`: what a registry holds."""
    command = tyro.cli(_Commands, args=list(argv), prog="steadyhand models", config=(tyro.conf.EnumChoicesFromValues,))
    registry = Registry(command.registry)
    if not registry.root.is_dir():
        raise ArtifactError(f"{registry.root}: no registry there; give --registry RUN_FOLDER/registry")
    if isinstance(command, Show):
        sys.stdout.write(registry.manifest(command.channel, command.version).to_json() + "\n")
        return 0
    table = Table("channel", "version", "parent", "training step", "created", "metrics")
    for channel in Channel:
        for version in registry.versions(channel):
            manifest = registry.manifest(channel, version)
            created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_unix_s))
            metrics = " ".join(f"{k}={v:.3g}" for k, v in manifest.metrics.items())
            table.add_row(
                channel.value, f"v{version}", f"v{manifest.parent}", str(manifest.training_step), created, metrics
            )
    Console().print(table)
    return 0
