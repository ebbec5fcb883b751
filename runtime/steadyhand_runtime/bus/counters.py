"""What went wrong on the bus, counted per servo: the tally that the driver keeps and the snapshot that others read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from steadyhand_firmware.arm import Arm
from steadyhand_runtime.bus.protocol import alarm_names


@dataclass(frozen=True, slots=True)
class AlarmCount:
    """How often one alarm came up."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class ServoCounters:
    """One servo since the start. `alarms` counts the times one came up, `by_alarm` which; the rest counts replies.

    `strangers` are replies that nobody had asked for, `late_replies` came after their cycle was over, `recoveries`
    counts the returns of a servo that had been left out, `power_losses` those found with their power-up settings.
    """

    joint: str
    servo_id: int
    timeouts: int
    checksum_errors: int
    strangers: int
    late_replies: int
    late_bytes: int
    alarms: int
    recoveries: int
    power_losses: int
    by_alarm: tuple[AlarmCount, ...]


@dataclass(slots=True)
class Tally:
    """The counts of one servo while they grow."""

    timeouts: int = 0
    checksum_errors: int = 0
    strangers: int = 0
    late_replies: int = 0
    late_bytes: int = 0
    recoveries: int = 0
    power_losses: int = 0
    alarm_bits: int = 0
    by_alarm: Counter[str] = field(default_factory=Counter)

    def see_alarms(self, bits: int) -> None:
        """Count the bits that were not set before."""
        self.by_alarm.update(alarm_names(bits & ~self.alarm_bits))
        self.alarm_bits = bits


def snapshot(arm: Arm, tallies: Sequence[Tally]) -> tuple[ServoCounters, ...]:
    """The counts of every servo in joint order."""
    return tuple(
        ServoCounters(
            joint=joint.name,
            servo_id=joint.id,
            timeouts=t.timeouts,
            checksum_errors=t.checksum_errors,
            strangers=t.strangers,
            late_replies=t.late_replies,
            late_bytes=t.late_bytes,
            alarms=sum(t.by_alarm.values()),
            recoveries=t.recoveries,
            power_losses=t.power_losses,
            by_alarm=tuple(AlarmCount(name, count) for name, count in sorted(t.by_alarm.items())),
        )
        for joint, t in zip(arm.joints, tallies)
    )
