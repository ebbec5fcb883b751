"""Units of systemd for the two daemons, filled in for this user and this environment."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from steadyhand_models.cli import UserError

OPTION = "--print-systemd-unit"
UNITS = ("runtime", "train")


def asked_for(argv: Sequence[str]) -> str | None:
    """The unit that a command line asks for with OPTION, the runtime's unless it names one. Raises UserError."""
    if OPTION not in argv:
        return None
    rest = [word for word in argv if word != OPTION]
    name = rest[0] if rest and not rest[0].startswith("-") else "runtime"
    if name not in UNITS:
        raise UserError(f"no unit '{name}'; there are {' and '.join(UNITS)}")
    return name


def text(name: str, folder: Path, user: str = "") -> str:
    """The unit for `steadyhand NAME` with NAME.toml in `folder`."""
    units = resources.files(__package__).joinpath("systemd")
    template = units.joinpath(f"steadyhand-{name}.service").read_text(encoding="utf-8")
    script = Path(sys.executable).with_name("steadyhand")
    command = f"{script} {name} --config {folder / name}.toml"
    return template.format(user=user or getpass.getuser(), folder=folder, command=command)
