"""List, show, pin and roll back the artifacts of a run: policies and classifiers by version."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from steadyhand_models import signing
from steadyhand_models.artifact import ArtifactError, Manifest
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry
from steadyhand_models.standing import QUARANTINE, Pins, Quarantine, Standing, Standings, fallbacks

RUN = Path("runs/latest")
KEY_CHARS = 8


def _any_registry() -> Path:
    """The trainer's registry where there is one, else the robot's."""
    trainer, robot = RUN / "registry", _robot_registry()
    return robot if robot.is_dir() and not trainer.is_dir() else trainer


def _robot_registry() -> Path:
    return RUN / "edge" / "models"


@dataclass(frozen=True)
class List_:
    """List every version in a registry, the trainer's or the robot's.

    Example: steadyhand models list --registry runs/latest/edge/models
    """

    registry: Path = field(default_factory=_any_registry)
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # for programs instead of people


@dataclass(frozen=True)
class Show:
    """Show one version's manifest and whether its content and signature fit.

    Example: steadyhand models show 12 --channel classifier
    """

    version: tyro.conf.Positional[int]
    channel: Channel = Channel.POLICY
    registry: Path = field(default_factory=_any_registry)


@dataclass(frozen=True)
class Pin:
    """Make the robot use one version and keep it whatever arrives; a running robot obeys at the next boundary.

    Example: steadyhand models pin policy 12
    """

    channel: tyro.conf.Positional[Channel]
    version: tyro.conf.Positional[int]
    registry: Path = field(default_factory=_robot_registry)


@dataclass(frozen=True)
class Unpin:
    """Let the robot follow the newest version again.

    Example: steadyhand models unpin policy
    """

    channel: tyro.conf.Positional[Channel]
    registry: Path = field(default_factory=_robot_registry)


@dataclass(frozen=True)
class Rollback:
    """Put the robot's present version in quarantine, and the one before it in force.

    Example: steadyhand models rollback policy
    """

    channel: tyro.conf.Positional[Channel]
    registry: Path = field(default_factory=_robot_registry)


_Commands = (
    Annotated[List_, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Pin, tyro.conf.subcommand("pin")]
    | Annotated[Unpin, tyro.conf.subcommand("unpin")]
    | Annotated[Rollback, tyro.conf.subcommand("rollback")]
)


@dataclass(frozen=True)
class Row:
    """One version of a registry as `list` shows it."""

    channel: Channel
    version: int
    age_s: float
    state: tuple[str, ...]  # current, previous, on probation, pinned, quarantined
    encoder: int  # version of the one whose features it takes; 0: it takes frames
    signer: str  # public key, not checked against the content; empty for an unsigned one
    training_step: int
    metrics: dict[str, float]


def rows(registry: Registry, now_unix_s: float) -> list[Row]:
    """Every version of every channel, oldest first. Raises ArtifactError."""
    standings, pins = Standings(registry.root).read(), Pins(registry.root).read()
    quarantine = Quarantine(registry.root / QUARANTINE)
    found, named = [], _encoders_of(registry, standings)
    for channel in Channel:
        for version in registry.versions(channel):
            manifest, standing = registry.manifest(channel, version), standings[channel]
            if channel is Channel.ENCODER:
                standing = Standing(version if version in named else 0)
            state = _state(manifest, standing, pins.get(channel), quarantine)
            signer = ":".join(manifest.signature.split(":")[:2])
            age_s, step = now_unix_s - manifest.created_unix_s, manifest.training_step
            row = Row(channel, version, age_s, state, manifest.encoder_version, signer, step, manifest.metrics)
            found.append(row)
    return found


def pin(registry: Registry, channel: Channel, version: int) -> None:
    """Raises ArtifactError for a version that is not there, is in quarantine or lacks its encoder, UserError where
    nothing can be written."""
    manifest = registry.manifest(channel, version)
    if manifest.sha256 in Quarantine(registry.root / QUARANTINE):
        raise ArtifactError(f"{channel.value} v{version}: is in quarantine; pin another one")
    if manifest.encoder_version:
        registry.encoder_of(manifest)
    _write_pin(registry, channel, version)


def roll_back(registry: Registry, channel: Channel) -> tuple[int, int]:
    """Quarantine what is in force; returns (that version, the one that will take its place). Raises ArtifactError."""
    standing = Standings(registry.root).read()[channel]
    if not standing.version:
        raise ArtifactError(f"{registry.root}: no robot uses a {channel.value} from there; give --registry")
    quarantine = Quarantine(registry.root / QUARANTINE)
    earlier = fallbacks(registry, channel, standing, quarantine)
    if not earlier:
        raise ArtifactError(f"{channel.value} v{standing.version}: no earlier version is left to go back to")
    if Pins(registry.root).read().get(channel) == standing.version:
        _write_pin(registry, channel, None)
    quarantine.add(standing.sha256)
    try:
        quarantine.save()
    except OSError as error:
        raise UserError(f"{registry.root}: cannot be written ({error.strerror})") from None
    return standing.version, earlier[0]


def _encoders_of(registry: Registry, standings: Mapping[Channel, Standing]) -> set[int]:
    """Versions of the encoders of what is in force."""
    current = [(channel, standing.version) for channel, standing in standings.items()]
    return {registry.manifest(c, v).encoder_version for c, v in current if v in registry.versions(c)}


def _state(manifest: Manifest, standing: Standing, pinned: int | None, quarantine: Quarantine) -> tuple[str, ...]:
    facts = {
        "current": manifest.version == standing.version,
        "previous": manifest.version == standing.previous,
        "on probation": manifest.sha256 == standing.trial,
        "pinned": manifest.version == pinned,
        "quarantined": manifest.sha256 in quarantine,
    }
    return tuple(name for name, holds in facts.items() if holds)


def _write_pin(registry: Registry, channel: Channel, version: int | None) -> None:
    try:
        Pins(registry.root).put(channel, version)
    except OSError as error:
        raise UserError(f"{registry.root}: cannot be written ({error.strerror})") from None


def main(argv: Sequence[str]) -> int:
    """`steadyhand models`: what a registry holds, and which of it the robot uses."""
    config = (tyro.conf.EnumChoicesFromValues,)
    command = tyro.cli(_Commands, args=list(argv), prog="steadyhand models", config=config)
    registry = Registry(command.registry)
    if not registry.root.is_dir():
        raise ArtifactError(f"{registry.root}: no registry there; give --registry RUN_FOLDER/registry")
    if isinstance(command, List_):
        _list(registry, command.json)
    elif isinstance(command, Show):
        _show(registry, command.channel, command.version)
    else:
        sys.stdout.write(_order(registry, command) + "\n")
    return 0


def _order(registry: Registry, command: Pin | Unpin | Rollback) -> str:
    """Carry out a command that changes something; what it did, in words."""
    name = command.channel.value
    if command.channel is Channel.ENCODER:
        raise UserError("an encoder comes and goes with the policy that names it: give the policy instead")
    if isinstance(command, Pin):
        pin(registry, command.channel, command.version)
        done = f"{name} v{command.version} is pinned"
    elif isinstance(command, Unpin):
        _write_pin(registry, command.channel, None)
        done = f"{name} follows the newest version again"
    else:
        failed, earlier = roll_back(registry, command.channel)
        done = f"{name} v{failed} is in quarantine; v{earlier} takes its place"
    if not Standings(registry.root).exists:
        done += f"; no robot has run with {registry.root} yet, the first that does will obey"
    return done


def _show(registry: Registry, channel: Channel, version: int) -> None:
    artifact = registry.load(channel, version)
    sys.stdout.write(artifact.manifest.to_json() + "\n")
    try:
        signer = signing.verify(artifact)
        verdict = f"signed by {signer}" if signer else "not signed"
    except ArtifactError as error:
        verdict = str(error)
    sys.stderr.write(verdict + "\n")


def _list(registry: Registry, as_json: bool) -> None:
    found = rows(registry, time.time())
    if as_json:
        data: list[dict[str, Any]] = [{**dataclasses.asdict(row), "channel": row.channel.value} for row in found]
        sys.stdout.write(json.dumps(data, indent=1) + "\n")
        return
    table = Table("channel", "version", "age", "state", "encoder", "signature", "training step")
    table.add_column("metrics", no_wrap=True, overflow="ellipsis")
    for row in found:
        table.add_row(
            row.channel.value,
            f"v{row.version}",
            _age(row.age_s),
            ", ".join(row.state),
            f"v{row.encoder}" if row.encoder else "",
            row.signer.partition(":")[2][:KEY_CHARS] or "none",
            str(row.training_step),
            " ".join(f"{k}={v:.3g}" for k, v in row.metrics.items()),
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _age(seconds: float) -> str:
    """The largest unit of which there are two or more."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
