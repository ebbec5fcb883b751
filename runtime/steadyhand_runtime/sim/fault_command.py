"""Let something happen to running virtual servos, for example silence, a late reply or an unplugged cable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from steadyhand_models import settings
from steadyhand_models.cli import UserError
from steadyhand_runtime.sim.fault_socket import ask
from steadyhand_runtime.sim.faults import FaultError

DESCRIPTION = """Let something happen to virtual servos that run with --control.

Servos are counted along the chain from 1. What can happen to one:
  silent=true|false  corrupt_replies=N  late_s=S  late_replies=N  alarms=BITS  overload=true|false
  voltage_v=V  temperature_c=C  id=N  baud=N  model_number=N  firmware=[3,9]  place_ticks=N
  blocked=true|false  power_cycle=true
and to the chain:
  chain=state|power_cycle|unplug|plug    chain=after_silent value=answer|mute

Examples:
  steadyhand sim fault --control /tmp/faults servo=3 silent=true
  steadyhand sim fault --control /tmp/faults servo=2 late_s=0.07 late_replies=1
  steadyhand sim fault --control /tmp/faults chain=unplug"""


@dataclass(frozen=True)
class FaultSettings:
    """What happens, and to whom."""

    what: tyro.conf.Positional[tuple[str, ...]] = ()  # name=value, as often as needed
    control: Path | None = None  # what the servos were given as --control


def to_json(words: Sequence[str]) -> str:
    """A request from words like `servo=3`. Raises UserError for a word that is none."""
    request: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UserError(f"{word!r}: say name=value, for example servo=3 silent=true")
        try:
            request[name] = json.loads(value)
        except json.JSONDecodeError:
            request[name] = value
    return json.dumps(request)


def main(argv: Sequence[str]) -> int:
    """`steadyhand sim fault`: send one request, print the answer. Raises UserError when it was refused."""
    chosen = settings.parse_command_line(FaultSettings, argv, "steadyhand sim fault", DESCRIPTION)
    if chosen.control is None:
        raise UserError("--control PATH is missing: give the one that `steadyhand sim servos --control PATH` was given")
    if not chosen.what:
        raise UserError("what shall happen? For example: servo=3 silent=true (--help lists everything)")
    try:
        answer = ask(chosen.control, to_json(chosen.what))
        told = json.loads(answer)
    except (FaultError, json.JSONDecodeError) as error:
        raise UserError(str(error)) from None
    if not told.get("ok"):
        raise UserError(str(told.get("error")))
    print(answer)
    return 0
