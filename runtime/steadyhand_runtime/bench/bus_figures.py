"""What `steadyhand bench bus` makes of its measurements: the wire's own limit, medians over rounds, targets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from steadyhand_models.bench import Target
from steadyhand_runtime.bench.bus_client import DeadResult, LateResult, RateResult
from steadyhand_runtime.bench.bus_stacks import FEETECH, GOAL_BYTES, IDS, OURS, READ_BYTES, RUSTYPOT
from steadyhand_runtime.bus.protocol import BITS_PER_BYTE, OVERHEAD_BYTES

MIN_WIRE_SHARE = 0.95
SDK_CPU_RATIO = 15.0
MIN_DEAD_HZ = 90.0


@dataclass
class Measured:
    """Everything measured of one stack; `problem` says why something is missing."""

    name: str
    rates: list[RateResult] = field(default_factory=list)
    late: LateResult | None = None
    dead: DeadResult | None = None
    mute: DeadResult | None = None
    problem: str = ""


@dataclass(frozen=True)
class Speed:
    """Medians over rounds of one stack; counts are sums."""

    rate_hz: float
    wire_share: float  # of the rate that the wire alone would allow
    p50_s: float
    p99_s: float
    cpu_s: float
    failed: int
    wrong: int
    followed: bool


def wire_limit_hz(baud: int, gap_s: float) -> float:
    """Cycles per second when nothing but the wire takes time: 8N1 bytes both ways and a pause before each reply."""
    n = len(IDS)
    write = OVERHEAD_BYTES + 2 + n * (1 + GOAL_BYTES)  # address, size, and an id with each goal
    request = OVERHEAD_BYTES + 2 + n
    replies = n * (OVERHEAD_BYTES + READ_BYTES)
    return 1.0 / ((write + request + replies) * BITS_PER_BYTE / baud + n * gap_s)


def speed(rates: Sequence[RateResult], limit_hz: float) -> Speed | None:
    """What the rounds of one stack come to, or None without any."""
    if not rates:
        return None
    rate_hz = statistics.median(r.rate_hz for r in rates)
    return Speed(
        rate_hz=rate_hz,
        wire_share=rate_hz / limit_hz,
        p50_s=statistics.median(r.p50_s for r in rates),
        p99_s=statistics.median(r.p99_s for r in rates),
        cpu_s=statistics.median(r.cpu_s for r in rates),
        failed=sum(r.failed for r in rates),
        wrong=sum(r.wrong for r in rates),
        followed=all(r.followed for r in rates),
    )


def targets(measured: dict[str, Measured], limit_hz: float) -> list[Target]:
    """What is promised, and whether it held."""
    ours = measured[OURS]
    mine = speed(ours.rates, limit_hz)
    found = [
        Target(
            "cycle rate",
            f">= {MIN_WIRE_SHARE:.0%} of the wire's limit",
            f"{mine.wire_share:.1%}" if mine else "-",
            mine is not None and mine.wire_share >= MIN_WIRE_SHARE,
        ),
        Target(
            "values",
            "none wrong, goals followed",
            f"{mine.wrong} wrong, {'followed' if mine.followed else 'not followed'}" if mine else "-",
            mine is not None and not mine.wrong and mine.followed,
        ),
        _cpu_target(mine, speed(measured[RUSTYPOT].rates, limit_hz), RUSTYPOT, 1.0),
        _cpu_target(mine, speed(measured[FEETECH].rates, limit_hz), FEETECH, SDK_CPU_RATIO),
        Target(
            "one answer 70 ms late",
            "0 stale values",
            f"{ours.late.stale} of {ours.late.reported}" if ours.late else "-",
            ours.late is not None and ours.late.stale == 0 and ours.late.reported > 0,
        ),
    ]
    return [*found, _dead_target("one servo dead", ours.dead), _dead_target("one dead, later ones mute", ours.mute)]


def _cpu_target(mine: Speed | None, peer: Speed | None, name: str, ratio: float) -> Target:
    wanted = f"<= {name}'s" if ratio == 1.0 else f"<= 1/{ratio:.0f} of {name}'s"
    if mine is None or peer is None:
        return Target("CPU per cycle", wanted, "-", None if mine else False)
    found = f"{mine.cpu_s * 1e6:.0f} against {peer.cpu_s * 1e6:.0f} us"
    return Target("CPU per cycle", wanted, found, mine.cpu_s * ratio <= peer.cpu_s)


def _dead_target(what: str, result: DeadResult | None) -> Target:
    wanted = f">= {MIN_DEAD_HZ:.0f} Hz, five valid, none wrong"
    if result is None:
        return Target(what, wanted, "-", False)
    met = result.rate_hz >= MIN_DEAD_HZ and result.median_valid == len(IDS) - 1 and not result.wrong
    found = f"{result.rate_hz:.0f} Hz, {result.median_valid:.0f} valid, {result.wrong} wrong"
    return Target(what, wanted, found, met)
