"""Whether the servos on the wire are the arm's: one look at each, and what that means for connecting and for torque."""

from __future__ import annotations

from collections.abc import Sequence

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus.conversation import Conversation, Round
from steadyhand_runtime.bus.protocol import Frame
from steadyhand_runtime.bus.survey import Finding, Problem, Seen, findings
from steadyhand_runtime.bus.transport import BusError

TRIES = 3
ROUNDS = 8  # reads of one servo alone; of two servos with one id about 40 % collide
GARBLED = 2  # so many of them damaged or with too many bytes are no accident
SINGLE_MARGIN_NS = 2_000_000
PATIENT_MARGIN_NS = 60_000_000  # where an answer matters more than the next tick


_TABLE = sts3215()
_EPROM_BYTES = _TABLE["min_voltage"].end
_MODEL = _TABLE["model_number"]
_MAX_VOLTAGE, _MIN_VOLTAGE = _TABLE["max_voltage"].address, _TABLE["min_voltage"].address
_VOLTAGE = _TABLE["present_voltage"].address
_LIVE_BYTES = _TABLE["present_temperature"].end - _VOLTAGE


class NobodyAnswers(BusError):
    """Not one servo answered; they may listen at another rate."""


def query(
    talk: Conversation, ids: Sequence[int], address: int, size: int, margin_ns: int = PATIENT_MARGIN_NS
) -> dict[int, Frame]:
    """Registers of several servos by id, asked up to three times; who is still missing then is left out.

    Each new try begins behind the first one missing, since a silent servo may mute those after it.
    """
    found: dict[int, Frame] = {}
    missing = tuple(ids)
    for _ in range(TRIES):
        found.update(talk.ask(missing, address, size, margin_ns))
        missing = tuple(i for i in missing if i not in found)
        if not missing:
            break
        missing = (*missing[1:], missing[0])
    return found


def identify(talk: Conversation, ids: Sequence[int], baud: int) -> list[Seen]:
    """Who answers to `ids` and what it says about itself."""
    eprom = query(talk, ids, 0, _EPROM_BYTES)
    live = query(talk, tuple(eprom), _VOLTAGE, _LIVE_BYTES) if eprom else {}
    seen = []
    for servo_id in ids:
        garbled = is_garbled(talk, servo_id)
        if servo_id in eprom and servo_id in live:
            seen.append(_seen(servo_id, eprom[servo_id].params, live[servo_id], baud, garbled))
        elif garbled:
            seen.append(Seen(servo_id, baud, None, garbled=True))
    return seen


def is_garbled(talk: Conversation, servo_id: int) -> bool:
    """Whether a servo asked alone answers with damaged or surplus bytes more often than by accident."""
    bad = silent = 0
    for _ in range(ROUNDS):
        heard, answered = _noise(talk, servo_id)
        bad += heard
        silent += not answered and not heard
        if bad >= GARBLED or silent >= 2:
            break
    return bad >= GARBLED


def problems(arm: Arm, seen: Sequence[Seen], baud: int) -> list[Finding]:
    """What is wrong, in words. Raises NobodyAnswers, or BusError when the arm cannot even be read."""
    found = findings(arm, seen, baud, (baud,))
    fatal = [f for f in found if f.problem not in (Problem.VOLTAGE, Problem.ALARM) and f.blocking]
    if fatal:
        kind = NobodyAnswers if not seen else BusError
        raise kind("; ".join(f.text for f in fatal))
    return found


def _noise(talk: Conversation, servo_id: int) -> tuple[bool, bool]:
    """Ask one servo alone: whether other bytes came than one sound answer, and whether one came."""
    size = talk.ledger.free_size((servo_id,), 15)
    if size is None:
        return False, False
    before = talk.discarded_bytes
    request = talk.request((servo_id,), _TABLE["present_position"].address, size)
    answers = Round(talk)
    answers.send(request, request.out, PATIENT_MARGIN_NS)
    answers.end()
    surplus = talk.transport.drain() + talk.discarded_bytes - before
    return surplus > 0 or answers.has_rubbish, servo_id in answers.frames


def _seen(servo_id: int, eprom: bytes, live: Frame, baud: int, garbled: bool) -> Seen:
    return Seen(
        id=servo_id,
        baud=baud,
        model=int.from_bytes(eprom[_MODEL.address : _MODEL.end], "little"),
        firmware=f"{eprom[0]}.{eprom[1]}",
        voltage_v=live.params[0] / 10,
        min_voltage_v=eprom[_MIN_VOLTAGE] / 10,
        max_voltage_v=eprom[_MAX_VOLTAGE] / 10,
        temperature_c=live.params[1],
        alarms=live.code,
        garbled=garbled,
    )


def look_again(talk: Conversation, servo_id: int) -> str:
    """Why a servo that answers again may not take part, or nothing: its model, and its supply's voltage."""
    eprom = query(talk, (servo_id,), 0, _EPROM_BYTES, SINGLE_MARGIN_NS).get(servo_id)
    live = query(talk, (servo_id,), _VOLTAGE, _LIVE_BYTES, SINGLE_MARGIN_NS).get(servo_id)
    if eprom is None or live is None:
        return "no answer"
    seen = _seen(servo_id, eprom.params, live, 0, False)
    if seen.model != _TABLE.model_number:
        return f"model {seen.model}"
    if not seen.min_voltage_v <= seen.voltage_v <= seen.max_voltage_v:
        return f"{seen.voltage_v} V"
    return ""
