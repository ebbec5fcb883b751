"""What `steadyhand lab learn` found: curves of success against steps, and their figures as a table. Pure."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steadyhand_training.lab_run import Judged
from steadyhand_training.metrics import wilson

ENOUGH = 0.9


@dataclass(frozen=True)
class Trial:
    """One line with one seed: its judged versions in order of steps; the last was judged best."""

    seed: int
    points: tuple[Judged, ...]
    minutes: float  # wall time of the training

    @property
    def final(self) -> Judged:
        return self.points[-1]

    @property
    def reached(self) -> Judged | None:
        """The first judged version that is good enough and is followed by one that is, too: luck seldom lasts."""
        good = [p.successes >= ENOUGH * p.episodes for p in self.points]
        lasting = (p for p, now, following in zip(self.points, good, [*good[1:], True]) if now and following)
        return next(lasting, None)


@dataclass(frozen=True)
class Place:
    """All seeds of a line near one number of steps, their episodes taken together."""

    steps: float
    rate: float
    lo: float
    hi: float


@dataclass(frozen=True)
class LineResult:
    """All trials of one line."""

    name: str
    title: str
    trials: tuple[Trial, ...]

    @property
    def final(self) -> Place:
        return pooled([t.final for t in self.trials])

    @property
    def curve(self) -> list[Place]:
        """As many places as every trial has: versions were chosen at about the same steps for each seed."""
        length = min(len(t.points) for t in self.trials)
        heads = [pooled([t.points[i] for t in self.trials]) for i in range(length - 1)]
        return [*heads, self.final]


def pooled(points: Sequence[Judged]) -> Place:
    """Mean of several seeds with the Wilson interval of their episodes taken together."""
    won, tried = sum(p.successes for p in points), sum(p.episodes for p in points)
    lo, hi = wilson(won, tried)
    rate = sum(p.successes / p.episodes for p in points) / len(points)
    return Place(sum(p.steps for p in points) / len(points), rate, lo, hi)


def to_json(results: Iterable[LineResult]) -> dict[str, Any]:
    """Everything, as plain JSON."""
    return {
        r.name: {
            "title": r.title,
            "final": dataclasses.asdict(r.final),
            "curve": [dataclasses.asdict(place) for place in r.curve],
            "trials": [
                {
                    "seed": t.seed,
                    "minutes": t.minutes,
                    "points": [dataclasses.asdict(p) for p in t.points],
                    "reached": dataclasses.asdict(t.reached) if t.reached else None,
                }
                for t in r.trials
            ],
        }
        for r in results
    }


HEAD = (
    "line",
    "final success (95% interval)",
    "per seed",
    f"steps to {100 * ENOUGH:.0f}%",
    f"takeovers to {100 * ENOUGH:.0f}%",
    "minutes of training",
)


def rows(results: Iterable[LineResult]) -> list[tuple[str, ...]]:
    """One row per line; steps, takeovers and minutes are medians over the seeds."""
    return [_row(r) for r in results]


def _row(result: LineResult) -> tuple[str, ...]:
    final, trials = result.final, result.trials
    reached = [t.reached for t in trials]
    cloned = len(result.curve) == 1  # its training was a part of another line's
    minutes = "–" if cloned else f"{statistics.median(t.minutes for t in trials):.1f}"
    return (
        result.title,
        f"{final.rate:.1%} ({final.lo:.1%} - {final.hi:.1%})",
        ", ".join(f"{t.final.successes / t.final.episodes:.1%}" for t in trials),
        _median([None if p is None else p.steps for p in reached]),
        _median([None if p is None else p.takeovers for p in reached]),
        minutes,
    )


def _median(values: Sequence[int | None]) -> str:
    """Median in which a seed that never got there counts as later than all others."""
    missing = sum(value is None for value in values)
    middle = statistics.median_high([math.inf if value is None else value for value in values])
    text = "not reached" if math.isinf(middle) else f"{middle:.0f}"
    return f"{text} ({missing} of {len(values)} seeds never)" if missing and not math.isinf(middle) else text


def markdown(results: Sequence[LineResult], command: str) -> str:
    """The table, how to read it, and the command that made it."""
    tried = sorted({t.final.episodes for r in results for t in r.trials})
    lines = [
        "| " + " | ".join(HEAD) + " |",
        "|" + " --- |" * len(HEAD),
        *("| " + " | ".join(row) + " |" for row in rows(results)),
        "",
        f"Success is autonomous (no takeover, no exploration) and judged by the simulation's ground truth, over "
        f"{' or '.join(map(str, tried))} episodes for each seed's last policy. Intervals are Wilson's over all seeds' "
        "episodes together. Steps are all that the robot recorded, demonstrations included; a line "
        f"has reached {100 * ENOUGH:.0f}% at the first evaluated version that did, the next one doing so too. Medians "
        "over seeds.",
        "",
        f"Made with `{command}`.",
    ]
    return "\n".join(lines) + "\n"
