"""Make and show the key that a workstation signs its artifacts with."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from steadyhand_models import signing
from steadyhand_models.artifact import Artifact
from steadyhand_models.cli import UserError

PRIVATE_MODE = 0o600


def folder() -> Path:
    """Where this user's keys live: `~/.config/steadyhand`, or below XDG_CONFIG_HOME."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "steadyhand"


def default_path() -> Path:
    return folder() / "signing.key"


def make(path: Path) -> str:
    """Write a new private key that only this user may read; returns its public key. Raises UserError."""
    private = signing.new_private()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    except FileExistsError:
        raise UserError(f"{path}: holds a key already; robots that trust it would refuse a new one's work") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): give another place with --path") from None
    with os.fdopen(handle, "wb") as file:
        file.write(base64.b64encode(private) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return signing.public_of(private)


def load(path: Path) -> bytes | None:
    """The private key in a file, or None where there is none. Raises UserError when others may read it."""
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if mode & 0o077:
        raise UserError(f"{path}: others may read this private key: chmod 600 {path}")
    try:
        private = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        private = b""
    if len(private) != signing.KEY_BYTES:
        raise UserError(f"{path}: is no key; move it away and make one with `steadyhand keys new`")
    return private


def signed(artifact: Artifact, path: Path | None = None) -> Artifact:
    """The artifact, signed when this user has a key, else as it is. Raises UserError when the key must not be used."""
    private = load(path or default_path())
    return artifact if private is None else signing.sign(artifact, private)


@dataclass(frozen=True)
class New:
    """Make this user's signing key and print its public key, for `link.trusted_keys` of the robots.

    Example: steadyhand keys new
    """

    path: Path = dataclasses.field(default_factory=default_path)


@dataclass(frozen=True)
class Show:
    """Print the public key of this user's signing key.

    Example: steadyhand keys show
    """

    path: Path = dataclasses.field(default_factory=default_path)


_Commands = Annotated[New, tyro.conf.subcommand("new")] | Annotated[Show, tyro.conf.subcommand("show")]


def main(argv: Sequence[str]) -> int:
    """`steadyhand keys`: only public keys are ever printed."""
    description = "The key that artifacts are signed with."
    command = tyro.cli(_Commands, args=list(argv), prog="steadyhand keys", description=description)
    if isinstance(command, New):
        public = make(command.path)
        sys.stderr.write(f'private key in {command.path}; a robot trusts it with [link] trusted_keys = ["{public}"]\n')
        sys.stdout.write(public + "\n")
        return 0
    private = load(command.path)
    if private is None:
        raise UserError(f"{command.path}: no key there; make one with `steadyhand keys new`")
    sys.stdout.write(signing.public_of(private) + "\n")
    return 0
