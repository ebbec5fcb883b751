"""Learns each joint's range from positions while a person moves the arm. Pure: positions in, calibration out.

Positions are the encoder's own, 0..4095, whatever homing offset stands in the servo. Each joint is followed around the
turn, so that a seam in the middle of its travel does no harm; the offset found puts the seam into the arc that the
joint cannot reach, opposite the middle of its range.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from steadyhand_firmware.arm import Arm, Joint
from steadyhand_firmware.calibration import RAD_PER_TICK, TICKS_PER_TURN
from steadyhand_firmware.lerobot import MotorCalibration

HALF_TURN = 2047  # where the middle of the travel comes to lie
MAX_OFFSET = 2047  # 11 bits of magnitude
LEAST_SHARE = 0.7  # of the joint's nominal travel; a sweep below has missed an end
MOST_SHARE = 1.5  # above it, what moved was not this joint


class Verdict(str, enum.Enum):
    """What a sweep amounts to so far."""

    SHORT = "sweep on to both ends"
    GOOD = "good"
    WIDE = "wider than the joint can move"
    FREE = "turns freely: only its middle counts"


@dataclass(frozen=True, slots=True)
class Sweep:
    """One joint's travel so far, in ticks from where it was centred."""

    joint: Joint
    low: int
    now: int
    high: int

    @property
    def span(self) -> int:
        return self.high - self.low

    @property
    def nominal(self) -> int:
        """The joint's travel by its description, in ticks."""
        return round((self.joint.high_rad - self.joint.low_rad) / RAD_PER_TICK)

    @property
    def verdict(self) -> Verdict:
        if self.joint.full_turn:
            return Verdict.FREE
        if self.span < LEAST_SHARE * self.nominal:
            return Verdict.SHORT
        return Verdict.WIDE if self.span > min(MOST_SHARE * self.nominal, TICKS_PER_TURN - 1) else Verdict.GOOD


def raw_position(present: int, homing_offset: int) -> int:
    """The encoder's own position 0..4095 of what a servo reports while it subtracts `homing_offset`."""
    return (present + homing_offset) % TICKS_PER_TURN


def turned(old: int, new: int) -> int:
    """Ticks from one raw position to another, the shorter way round."""
    return (new - old + TICKS_PER_TURN // 2) % TICKS_PER_TURN - TICKS_PER_TURN // 2


def homing_offset(raw: int) -> int:
    """The offset, within +-2047, that makes a raw position read as the half turn; off by one tick where none does."""
    return min((raw - HALF_TURN + MAX_OFFSET) % TICKS_PER_TURN - MAX_OFFSET, MAX_OFFSET)


class Calibrator:
    """Follows the joints of a centred arm. `centre` and every observation are raw positions (J,) in joint order."""

    def __init__(self, arm: Arm, centre: Sequence[int]) -> None:
        self._arm = arm
        self._centre = tuple(centre)
        self._last = list(centre)
        self._now = [0] * len(self._centre)
        self._low = [0] * len(self._centre)
        self._high = [0] * len(self._centre)

    def observe(self, raw: Sequence[int | None]) -> None:
        """Take new positions; None where a servo did not answer. Less than half a turn may pass between two."""
        for j, position in enumerate(raw):
            if position is None:
                continue
            self._now[j] += turned(self._last[j], position)
            self._last[j] = position
            self._low[j] = min(self._low[j], self._now[j])
            self._high[j] = max(self._high[j], self._now[j])

    def restart(self, joint: Joint) -> None:
        """Forget a joint's travel and begin again from where it stands."""
        j = self._arm.joints.index(joint)
        self._low[j] = self._high[j] = self._now[j]

    def sweeps(self) -> tuple[Sweep, ...]:
        return tuple(Sweep(*row) for row in zip(self._arm.joints, self._low, self._now, self._high))

    def unfinished(self) -> list[Sweep]:
        """Joints that have not been swept plausibly."""
        return [s for s in self.sweeps() if s.verdict in (Verdict.SHORT, Verdict.WIDE)]

    def result(self) -> tuple[MotorCalibration, ...]:
        """The arm's calibration. Raises ValueError while joints are unfinished."""
        if self.unfinished():
            raise ValueError(f"not swept: {', '.join(s.joint.name for s in self.unfinished())}")
        return tuple(_motor(s, c) for s, c in zip(self.sweeps(), self._centre))


def _motor(sweep: Sweep, centre: int) -> MotorCalibration:
    if sweep.joint.full_turn:
        return MotorCalibration(sweep.joint.id, 0, homing_offset(centre), 0, TICKS_PER_TURN - 1)
    middle = (sweep.low + sweep.high) // 2
    offset = homing_offset(centre + middle)
    reads = (centre + middle - offset) % TICKS_PER_TURN
    low, high = reads + sweep.low - middle, reads + sweep.high - middle
    return MotorCalibration(sweep.joint.id, 0, offset, max(low, 0), min(high, TICKS_PER_TURN - 1))
