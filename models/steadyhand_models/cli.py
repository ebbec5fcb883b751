"""The `steadyhand` command: finds each package's commands by entry points and says which extra is missing."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points

from steadyhand_models.artifact import ArtifactError
from steadyhand_models.settings import SettingsError

GROUP = "steadyhand.commands"
ORDER = (
    *("demo", "runtime", "doctor", "operator", "bus", "collect", "train", "evaluate", "report"),
    *("classifier", "models", "keys", "task", "sim", "bench", "lab"),
)
USAGE = """steadyhand: teach an SO-101 arm by human-in-the-loop reinforcement learning

usage: steadyhand COMMAND [OPTIONS]

commands:
{commands}

`steadyhand COMMAND --help` shows a command's options and an example.
First time here: `steadyhand demo --minutes 2` runs everything in simulation."""


class UserError(Exception):
    """Something the person at the keyboard can mend; the message names the fix."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `steadyhand ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    commands = {e.name: e for e in entry_points(group=GROUP)}
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands=_listing(commands)))
        return 0
    if words[0] in ("--version", "-V"):
        print(f"steadyhand {distribution('steadyhand').version}")
        return 0
    return _choose("steadyhand", "command", commands, words)


def run_group(program: str, noun: str, group: str, usage: str, argv: Sequence[str]) -> int:
    """A command of commands: those that an entry-point group holds. `usage` has a place for their `{listing}`."""
    entries = {e.name: e for e in entry_points(group=group)}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage.format(listing=_listing(entries)))
        return 0
    return _choose(program, noun, entries, argv)


def _choose(program: str, noun: str, entries: dict[str, EntryPoint], words: Sequence[str]) -> int:
    entry = entries.get(words[0])
    if entry is None:
        near = difflib.get_close_matches(words[0], entries, n=1)
        hint = f"did you mean `{program} {near[0]}`?" if near else f"`{program} --help` lists them."
        print(f"{program}: no {noun} '{words[0]}'; {hint}", file=sys.stderr)
        return 2
    return _run(f"{program} {entry.name}", entry, list(words[1:]))


def _run(name: str, entry: EntryPoint, argv: list[str]) -> int:
    try:
        command = entry.load()
    except ImportError as error:
        if not entry.extras or (error.name or "").startswith("steadyhand"):
            raise
        print(
            f"{name}: {error.name or error} is not installed; "
            f"`pip install 'steadyhand[{','.join(entry.extras)}]'` brings it",
            file=sys.stderr,
        )
        return 1
    try:
        return int(command(argv) or 0)
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (UserError, ArtifactError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _listing(commands: dict[str, EntryPoint]) -> str:
    known = [n for n in ORDER if n in commands] + sorted(set(commands) - set(ORDER))
    width = max(map(len, known), default=0) + 2
    return "\n".join(f"  {name:<{width}}{_summary(commands[name])}" for name in known)


def _summary(entry: EntryPoint) -> str:
    """First line of the command module's docstring, read without importing the module."""
    spec = importlib.util.find_spec(entry.module)
    if spec is None or spec.origin is None:
        return "(not installed)"
    with open(spec.origin, encoding="utf-8") as source:
        text = ast.get_docstring(ast.parse(source.read())) or ""
    return text.split("\n", 1)[0]


def two_onnxruntimes() -> str | None:
    """Why this environment's onnxruntime is broken, or None: two distributions share one folder and the last wins."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(found) < 2:
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
        "`pip uninstall -y onnxruntime onnxruntime-gpu`, then install one of them again"
    )


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    # Under this name a second copy of the module runs, whose errors nobody else raises.
    from steadyhand_models import cli

    sys.exit(cli.main())
