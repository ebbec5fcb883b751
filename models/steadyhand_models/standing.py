"""What a robot decided about its artifacts: in force, on probation, pinned, quarantined; files beside its registry.

The running robot writes `standing.json` and appends to `quarantine.txt`; a person's commands write `pins.json` and
append to `quarantine.txt`. Both sides read everything, so that a command works whether the robot runs or not.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from steadyhand_models import durable
from steadyhand_models.artifact import ArtifactError
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry

QUARANTINE = "quarantine.txt"
PINS = "pins.json"
STANDING = "standing.json"


@dataclass(frozen=True)
class Standing:
    """One channel: the version in force (0: none) and the one before it; `trial` is the sha256 of the artifact that is
    being tried or on probation, `tries` how many processes have tried it and not lived to say how it went."""

    version: int = 0
    sha256: str = ""
    previous: int = 0
    trial: str = ""
    tries: int = 0


_STANDINGS = pydantic.TypeAdapter(dict[Channel, Standing])
_PINS = pydantic.TypeAdapter(dict[Channel, pydantic.PositiveInt])


class Standings:
    """`standing.json` below a registry's root. A file that cannot be read counts as none: the robot must start."""

    def __init__(self, root: Path) -> None:
        self._path = root / STANDING

    @property
    def exists(self) -> bool:
        return self._path.is_file()

    def read(self) -> dict[Channel, Standing]:
        """Every channel's standing; an empty one where nothing is known."""
        empty = {channel: Standing() for channel in Channel}
        try:
            return empty | _STANDINGS.validate_json(self._path.read_bytes())
        except (OSError, ValueError):
            return empty

    def write(self, standings: Mapping[Channel, Standing]) -> None:
        """Replace the file durably. Raises OSError."""
        data = {channel.value: dataclasses.asdict(s) for channel, s in standings.items()}
        durable.replace(self._path, json.dumps(data, indent=1).encode() + b"\n")


class Pins:
    """`pins.json` below a registry's root: the version that a robot keeps whatever arrives, by channel."""

    def __init__(self, root: Path) -> None:
        self._path = root / PINS
        self._stamp: tuple[int, int] | None = None
        self._pins: dict[Channel, int] = {}

    def read(self) -> dict[Channel, int]:
        """The pins; read from the disk only when the file has changed. A damaged file counts as none."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._pins = _PINS.validate_json(self._path.read_bytes())
            except (OSError, ValueError):
                self._pins = {}
        return self._pins

    def put(self, channel: Channel, version: int | None) -> None:
        """Pin a version, or unpin with None. Raises OSError."""
        pins = {**self.read(), channel: version}
        data = {c.value: v for c, v in pins.items() if v is not None}
        durable.replace(self._path, json.dumps(data).encode() + b"\n")


class Quarantine:
    """Hashes of artifacts that must not be used here again, remembered in a text file, one a line."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._hashes: set[str] = set()
        self._unsaved: list[str] = []
        self.refresh()

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._hashes

    def add(self, sha256: str) -> None:
        """Never blocks: the file follows at the next `save`."""
        self._hashes.add(sha256)
        self._unsaved.append(sha256)

    def save(self) -> None:
        """Append what is new, durably. Raises OSError."""
        if self._path is None:
            self._unsaved.clear()
        while self._unsaved and self._path is not None:
            with self._path.open("a", encoding="ascii") as file:
                file.write(self._unsaved[0] + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._unsaved.pop(0)

    def refresh(self) -> None:
        """Take in what another process has added."""
        if self._path is None or (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        if stamp is not None:
            self._hashes |= set(self._path.read_text(encoding="ascii", errors="replace").split())


def fallbacks(registry: Registry, channel: Channel, standing: Standing, quarantine: Quarantine) -> list[int]:
    """What to use instead of the version in force: the one before it, then every earlier one, newest first.

    With nothing in force every version counts. What is in quarantine or cannot be read is left out.
    """
    versions = registry.versions(channel)
    before = [v for v in reversed(versions) if not standing.version or v < standing.version]
    if standing.previous in versions:
        before = [standing.previous, *(v for v in before if v != standing.previous)]
    return [v for v in before if _usable(registry, channel, v, quarantine)]


def _usable(registry: Registry, channel: Channel, version: int, quarantine: Quarantine) -> bool:
    try:
        return registry.manifest(channel, version).sha256 not in quarantine
    except (ArtifactError, OSError):
        return False


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
