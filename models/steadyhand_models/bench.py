"""Measure a part beside its peers: finds each package's benches, and prints and saves what they found."""

from __future__ import annotations

import difflib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steadyhand_models import cli

GROUP = "steadyhand.benches"
USAGE = """steadyhand bench: measure a part of Steadyhand beside its peers

usage: steadyhand bench NAME [--json FILE] [--seed N] [OPTIONS]

benches:
{benches}

`steadyhand bench NAME --help` shows a bench's options and an example, for example `steadyhand bench bus --help`."""


def main(argv: Sequence[str]) -> int:
    """Run one bench. Exit codes as for every command."""
    benches = {e.name: e for e in entry_points(group=GROUP)}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE.format(benches="\n".join(f"  {n:<10}{cli._summary(e)}" for n, e in sorted(benches.items()))))
        return 0
    entry = benches.get(argv[0])
    if entry is None:
        near = difflib.get_close_matches(argv[0], benches, n=1)
        hint = f"did you mean `steadyhand bench {near[0]}`?" if near else "`steadyhand bench --help` lists them."
        print(f"steadyhand bench: no bench '{argv[0]}'; {hint}", file=sys.stderr)
        return 2
    return cli._run(EntryPoint(f"bench {entry.name}", entry.value, GROUP), list(argv[1:]))


def bare_flags(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """`--check` and `--check true` as the `--check True` that settings expect, for each of `names`."""
    words: list[str] = []
    for i, word in enumerate(argv):
        before = argv[i - 1] if i else ""
        if before in names and word.lower() in ("true", "false"):
            word = word.capitalize()
        words.append(word)
        following = argv[i + 1].lower() if i + 1 < len(argv) else ""
        if word in names and following not in ("true", "false"):
            words.append("True")
    return words


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
