"""Check this host, or walk a real arm through its first minutes: what works, what does not, and how to mend it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steadyhand_models import settings
from steadyhand_runtime import doctor_checks as judge
from steadyhand_runtime import doctor_probes as probe
from steadyhand_runtime.config import RuntimeSettings
from steadyhand_runtime.doctor_checks import Grade, Verdict

STYLES = {Grade.OK: "green", Grade.WARN: "yellow", Grade.FAIL: "bold red"}
DESCRIPTION = """Check this host: what works, what does not, and how to mend each finding.

Examples:
  steadyhand doctor
  steadyhand doctor --config runtime.toml --json
  steadyhand doctor --arm --port /dev/ttyACM0     a real arm's first minutes, every step asked for"""


@dataclass(frozen=True)
class DoctorSettings(RuntimeSettings):
    """What is checked: the settings of `steadyhand runtime`, whose file may be given with --config, and how."""

    json: bool = False  # print the findings as JSON
    arm: bool = False  # walk through an arm's first minutes instead
    port: str = ""  # with --arm: the serial port; empty: bus.port
    yes: bool = False  # with --arm: agree to every step, for a simulated arm


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at and judged."""

    name: str
    look: Callable[[RuntimeSettings], Any]
    judge: Callable[[Any], Verdict]


CHECKS = (
    Check("python", probe.python, judge.python),
    Check("onnxruntime", probe.inference, judge.onnxruntime),
    Check("inference", probe.inference, judge.providers),
    Check("real-time rights", probe.realtime, judge.realtime),
    Check("kernel", probe.kernel, judge.kernel),
    Check("cpu", probe.cpu, judge.cpu),
    Check("timers", probe.timers, judge.timers),
    Check("wall clock", probe.wall_clock, judge.clock),
    Check("serial ports", probe.serial, judge.serial),
    Check("cameras", probe.cameras, judge.cameras),
    Check("disk", probe.disk, judge.disk),
    Check("network ports", probe.addresses, judge.addresses),
    Check("graphics", probe.graphics, judge.graphics),
)


def examine(chosen: RuntimeSettings, checks: Sequence[Check] = CHECKS) -> dict[str, Verdict]:
    """Every check's verdict; one that itself breaks is a finding, not the end."""
    facts: dict[Any, Any] = {}
    found = {}
    for check in checks:
        try:
            if check.look not in facts:
                facts[check.look] = check.look(chosen)
            found[check.name] = check.judge(facts[check.look])
        except Exception as error:  # a host may break a probe in any way
            found[check.name] = Verdict(Grade.WARN, f"could not be checked: {error}", "report this host")
    return found


def main(argv: Sequence[str]) -> int:
    """`steadyhand doctor`: 0 when nothing fails, else 1."""
    chosen = settings.parse_command_line(DoctorSettings, argv, "steadyhand doctor", DESCRIPTION)
    if chosen.arm:
        from steadyhand_runtime import doctor_arm

        port = chosen.port or chosen.bus.port
        return doctor_arm.walk_from_terminal(replace(chosen.bus, port=port), chosen.yes)
    found = examine(chosen)
    if chosen.json:
        print(json.dumps({name: asdict(verdict) for name, verdict in found.items()}, indent=1))
    else:
        show(found, Console(width=None if sys.stdout.isatty() else 140))
    return int(any(verdict.grade is Grade.FAIL for verdict in found.values()))


def show(found: dict[str, Verdict], console: Console) -> None:
    """The findings as a table, and how many of each grade."""
    table = Table("check", "", "found", "to mend it")
    for name, verdict in found.items():
        table.add_row(name, Text(verdict.grade.value, STYLES[verdict.grade]), Text(verdict.found), Text(verdict.fix))
    console.print(table)
    count = {grade: sum(v.grade is grade for v in found.values()) for grade in Grade}
    console.print(", ".join(f"{number} {grade.value}" for grade, number in count.items()), highlight=False)
