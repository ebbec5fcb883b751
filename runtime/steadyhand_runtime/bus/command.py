"""Set an arm's servos up and look at them: scan, set-id, apply, calibrate, monitor, record."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from steadyhand_models.cli import UserError
from steadyhand_runtime.bus.transport import BusError

_HERE = "steadyhand_runtime.bus"
COMMANDS = {
    "scan": (f"{_HERE}.scan_command", "main", "who answers at which id and baud rate, and what is wrong"),
    "set-id": (f"{_HERE}.set_id_command", "main", "give servos their ids, one at a time"),
    "plan": (f"{_HERE}.provision_command", "main_plan", "how the servos' registers differ from what the arm declares"),
    "apply": (f"{_HERE}.provision_command", "main_apply", "write what differs, and keep a record of it"),
    "verify": (f"{_HERE}.provision_command", "main_verify", "check that everything declared has lasted"),
    "calibrate": (f"{_HERE}.calibrate_command", "main", "learn each joint's range by hand and store it"),
    "monitor": (f"{_HERE}.monitor_command", "main", "positions, load, temperature and alarms, live"),
    "record": (f"{_HERE}.recording_command", "main_record", "write the bus's traffic to a file"),
    "replay": (f"{_HERE}.recording_command", "main_replay", "show a recorded conversation and run the driver on it"),
}
USAGE = """steadyhand bus: set an arm's servos up and look at them

usage: steadyhand bus COMMAND [OPTIONS]

commands:
{commands}

`steadyhand bus COMMAND --help` shows a command's options and an example.
A new arm: `steadyhand bus set-id --all`, then scan, apply, calibrate and monitor."""


def main(argv: Sequence[str]) -> int:
    """Dispatch one bus command. Raises UserError where the bus cannot be used."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:<11}{what}" for name, (_, _, what) in COMMANDS.items())
        print(USAGE.format(commands=lines))
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean `steadyhand bus {near[0]}`?" if near else "`steadyhand bus --help` lists the commands."
        print(f"steadyhand bus: no command '{argv[0]}'; {hint}", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[argv[0]]
    try:
        return int(getattr(importlib.import_module(module), function)(argv[1:]))
    except BusError as error:
        raise UserError(str(error)) from None
