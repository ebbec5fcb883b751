"""Run an experiment that the project's claims rest on again, from scratch."""

from __future__ import annotations

from collections.abc import Sequence

from steadyhand_models import cli

GROUP = "steadyhand.labs"
USAGE = """steadyhand lab: run an experiment from scratch and write down what came of it

usage: steadyhand lab NAME [OPTIONS]

experiments:
{listing}

`steadyhand lab NAME --help` shows an experiment's options and an example, for example `steadyhand lab learn --help`."""


def main(argv: Sequence[str]) -> int:
    """`steadyhand lab NAME`: exit codes as for every command."""
    return cli.run_group("steadyhand lab", "experiment", GROUP, USAGE, argv)
