"""What `steadyhand bench loop` makes of its slices: percentiles, ratios to the naive loop, drift, targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steadyhand_models.bench import Target
from steadyhand_runtime.bench.loop_slices import Kind, Measured

FIFO_RATIO = 0.1  # of the naive loop's p99, under load
RUNQUEUE_S = 200e-6  # p99.9, with real-time priority under load
PLAIN_RATIO = 1.2  # of the naive loop's p50 and p99, without real-time priority
DRIFT = 1e-3  # of the time
WIRE_S = 5e-3  # from the models' answer to the servos having the goal, p99


@dataclass(frozen=True)
class Variant:
    """One loop under one condition."""

    kind: Kind
    hz: float
    fifo: bool
    loaded: bool


@dataclass(frozen=True)
class Lateness:
    """Percentiles over every slice of one variant, in seconds; `stolen` is a share of the machine's time."""

    ticks: int
    p50_s: float
    p99_s: float
    p999_s: float
    max_s: float
    runqueue_p99_s: float
    runqueue_p999_s: float
    stolen: float
    drift: float


@dataclass(frozen=True)
class Wire:
    """A short run of the real processes, p99 in seconds: tick to wire, inference, ages of what was used."""

    goals: int
    tick_to_wire_s: float
    inference_s: float
    frame_age_s: float
    state_age_s: float
    frame_to_wire_s: float


def lateness(slices: Sequence[Measured], hz: float, cores: int) -> Lateness:
    """All slices of one variant together."""
    late_s = np.concatenate([np.array(s.late_ns, float) for s in slices]) / 1e9
    runqueue_s = np.concatenate([np.array(s.runqueue_ns, float) for s in slices]) / 1e9
    elapsed_s = sum(s.elapsed_s for s in slices)
    p50_s, p99_s, p999_s = (float(np.percentile(late_s, p)) for p in (50, 99, 99.9))
    return Lateness(
        ticks=len(late_s),
        p50_s=p50_s,
        p99_s=p99_s,
        p999_s=p999_s,
        max_s=float(late_s.max()),
        runqueue_p99_s=float(np.percentile(runqueue_s, 99)),
        runqueue_p999_s=float(np.percentile(runqueue_s, 99.9)),
        stolen=sum(s.stolen_s for s in slices) / max(elapsed_s * cores, 1e-9),
        drift=drift(slices, hz),
    )


def drift(slices: Sequence[Measured], hz: float) -> float:
    """By which share of the time a loop fell behind the clock; a period that has only begun does not count.

    Negative values within a period of zero are rounding.
    """
    elapsed_s = sum(s.elapsed_s for s in slices)
    behind_s = sum(max(0.0, s.elapsed_s - (s.periods + 1) / hz) for s in slices)
    return behind_s / elapsed_s


def targets(
    found: Mapping[Variant, Lateness], ours_drift: float, naive_drift: float, wire: Wire | None
) -> list[Target]:
    """What is promised, and whether it held."""
    judged = []
    for hz in sorted({v.hz for v in found}):
        naive = found[Variant(Kind.NAIVE, hz, False, True)]
        fifo = found.get(Variant(Kind.OURS, hz, True, True))
        judged += _fifo_targets(hz, fifo, naive)
    for hz in sorted({v.hz for v in found}):
        for loaded in (False, True):
            plain = found[Variant(Kind.OURS, hz, False, loaded)]
            judged.append(_plain_target(hz, loaded, plain, found[Variant(Kind.NAIVE, hz, False, loaded)]))
    judged.append(
        Target(
            "drift under load",
            f"< {DRIFT:.1%} of the time",
            f"{ours_drift:.3%} (the naive loop: {naive_drift:.1%})",
            ours_drift < DRIFT,
        )
    )
    return [*judged, _wire_target(wire)]


def _fifo_targets(hz: float, fifo: Lateness | None, naive: Lateness) -> list[Target]:
    late = f"{hz:g} Hz under load, with real-time priority: p99"
    waited = f"{hz:g} Hz under load, with real-time priority: waited for a core, p99.9"
    if fifo is None:
        return [Target(late, "1/10 of the naive loop's", "not granted", None)]
    ratio = fifo.p99_s / naive.p99_s
    return [
        Target(late, f"<= {FIFO_RATIO:g} of the naive loop's", f"{ratio:.3f}", ratio <= FIFO_RATIO),
        Target(
            waited,
            f"<= {RUNQUEUE_S * 1e3:g} ms",
            f"{fifo.runqueue_p999_s * 1e3:.3f} ms",
            fifo.runqueue_p999_s <= RUNQUEUE_S,
        ),
    ]


def _plain_target(hz: float, loaded: bool, plain: Lateness, naive: Lateness) -> Target:
    where = "under load" if loaded else "idle"
    p50, p99 = plain.p50_s / naive.p50_s, plain.p99_s / naive.p99_s
    return Target(
        f"{hz:g} Hz {where}, without: p50 and p99",
        f"<= {PLAIN_RATIO:g} of the naive loop's",
        f"{p50:.2f}, {p99:.2f}",
        p50 <= PLAIN_RATIO and p99 <= PLAIN_RATIO,
    )


def _wire_target(wire: Wire | None) -> Target:
    what = "from a tick to its goal on the wire, p99"
    if wire is None:
        return Target(what, f"<= inference + {WIRE_S * 1e3:g} ms", "not measured", None)
    found = f"{wire.tick_to_wire_s * 1e3:.1f} ms, inference {wire.inference_s * 1e3:.1f} ms"
    allowed_s = wire.inference_s + WIRE_S
    return Target(what, f"<= inference + {WIRE_S * 1e3:g} ms", found, wire.tick_to_wire_s <= allowed_s)
