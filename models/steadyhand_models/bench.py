"""Measure a part of Steadyhand beside its peers, in one run and as ratios."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steadyhand_models import cli

GROUP = "steadyhand.benches"
USAGE = """steadyhand bench: measure a part of Steadyhand beside its peers

usage: steadyhand bench NAME [--json FILE] [--seed N] [OPTIONS]

benches:
{listing}

`steadyhand bench NAME --help` shows a bench's options and an example, for example `steadyhand bench bus --help`."""


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench NAME`: exit codes as for every command."""
    return cli.run_group("steadyhand bench", "bench", GROUP, USAGE, argv)


@dataclass(frozen=True)
class Target:
    """One promise. `met` is None where this machine did not allow to look."""

    what: str
    wanted: str
    found: str
    met: bool | None


def show_targets(judged: Sequence[Target], unknown: str = "not known") -> None:
    """Print what was promised and whether it held; `unknown` is said of what could not be looked at."""
    verdicts = {True: "pass", False: "FAIL", None: unknown}
    show("targets", ("what", "wanted", "found", ""), [(t.what, t.wanted, t.found, verdicts[t.met]) for t in judged])


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print a table for people: the first column names things, the others hold figures."""
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    # Without a terminal a fixed width would cut the figures that someone wanted to keep.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def write_json(path: Path, bench: str, seed: int, figures: Mapping[str, Any]) -> None:
    """Save a bench's figures with where they were measured. Raises UserError."""
    where = {
        "bench": bench,
        "seed": seed,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**where, **figures}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise cli.UserError(f"{path}: cannot be written ({error.strerror})") from None
