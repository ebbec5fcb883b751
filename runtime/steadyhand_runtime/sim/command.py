"""Run a simulated robot, its servos or its operator alone, or the whole loop in lockstep."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from steadyhand_models.cli import UserError
from steadyhand_runtime.sim.scene import SimError

COMMANDS = {
    "robot": ("steadyhand_runtime.sim.robot", "a simulated arm on a pty, its cameras and its table"),
    "operator": ("steadyhand_runtime.sim.operator_process", "the scripted operator of a running simulation"),
    "servos": ("steadyhand_runtime.sim.servos_command", "six virtual servos alone, on a pty"),
    "fault": ("steadyhand_runtime.sim.fault_command", "let something happen to running virtual servos"),
    "lockstep": ("steadyhand_runtime.sim.lockstep", "robot and operator in one process, faster than real time"),
    "probe": ("steadyhand_runtime.sim.probe", "every classifier of a registry on frames whose truth is known"),
    "evaluate": ("steadyhand_runtime.sim.evaluation", "one policy over many episodes, judged by ground truth"),
}
USAGE = """steadyhand sim: simulate what stands on the table

usage: steadyhand sim COMMAND [OPTIONS]

commands:
{commands}

`steadyhand sim COMMAND --help` shows a command's options and an example."""


def main(argv: Sequence[str]) -> int:
    """Dispatch one simulation command. Raises UserError where the simulation cannot run."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items())
        print(USAGE.format(commands=lines))
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean `steadyhand sim {near[0]}`?" if near else "`steadyhand sim --help` lists the commands."
        print(f"steadyhand sim: no command '{argv[0]}'; {hint}", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:]))
    except SimError as error:
        raise UserError(str(error)) from None
