"""Fit, judge, rescore and review the reward classifier beside a run, not during one."""

from __future__ import annotations

from collections.abc import Sequence

from steadyhand_models import cli

GROUP = "steadyhand.classifier_commands"
USAGE = """steadyhand classifier: work on the reward classifier beside a run

usage: steadyhand classifier NAME [OPTIONS]

commands:
{listing}

`steadyhand classifier NAME --help` shows a command's options and an example, for example
`steadyhand classifier fit --help`."""


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier NAME`: exit codes as for every command."""
    return cli.run_group("steadyhand classifier", "command", GROUP, USAGE, argv)
