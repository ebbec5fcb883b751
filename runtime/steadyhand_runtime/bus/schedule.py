"""What each cycle reads, how long that takes on the wire, and the highest rate that a measured wire carries."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from statistics import median

from steadyhand_firmware.control_table import sts3215
from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.transport import BusError
from steadyhand_runtime.clock import NS_PER_S

SPARE = 0.95  # of the measured rate; the rest is the host's jitter

_TABLE = sts3215()
_POSITION = _TABLE["present_position"].address
_LIMIT = _TABLE["torque_limit"].address


class Block(enum.Enum):
    """Registers read from every servo at once, as (address, size); all hold position, velocity and load.

    FAST is those alone, SLOW goes on to the current, AUDIT begins at the torque limit.
    """

    FAST = (_POSITION, _TABLE["present_load"].end - _POSITION)
    SLOW = (_POSITION, _TABLE["present_current"].end - _POSITION)
    AUDIT = (_LIMIT, _TABLE["present_load"].end - _LIMIT)

    @property
    def address(self) -> int:
        return self.value[0]

    @property
    def size(self) -> int:
        return self.value[1]


def block_of(cycle: int, slow_every: int) -> Block:
    """What cycle number `cycle` reads: SLOW each `slow_every` cycles, AUDIT half-way between, else FAST."""
    if slow_every <= 0:
        return Block.FAST
    phase = cycle % slow_every
    if phase == 0:
        return Block.SLOW
    return Block.AUDIT if slow_every > 1 and phase == slow_every // 2 else Block.FAST


def byte_ns(baud: int) -> int:
    """Time of one byte on the wire."""
    return protocol.BITS_PER_BYTE * NS_PER_S // baud


def sync_read_bytes(servos: int, size: int) -> int:
    """Bytes of a sync read of `size` registers and of its answers."""
    return protocol.OVERHEAD_BYTES + 2 + servos + servos * (size + protocol.OVERHEAD_BYTES)


def goal_bytes(servos: int) -> int:
    """Bytes of a sync write of two registers."""
    return protocol.OVERHEAD_BYTES + 2 + 3 * servos


def achievable_hz(read_ns: Sequence[int], servos: int, baud: int) -> float:
    """Highest rate with a goal in every cycle, given measured times of read-only cycles of the longest block."""
    return SPARE * NS_PER_S / (median(read_ns) + goal_bytes(servos) * byte_ns(baud))


def require_rate(rate_hz: float, achievable: float) -> None:
    """Refuse a rate that the wire cannot carry. Raises BusError that names the setting."""
    if rate_hz > achievable:
        raise BusError(
            f"bus.rate_hz = {rate_hz:g} is more than this bus carries ({achievable:.0f} Hz measured with every block): "
            f"set bus.rate_hz to {int(achievable)} or less"
        )
