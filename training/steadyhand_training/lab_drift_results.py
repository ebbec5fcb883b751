"""What `steadyhand lab drift` found: each run's course, its classifiers under both lights, and the targets. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steadyhand_training.lab_trace import Window
from steadyhand_training.metrics import Z_95, wilson

ENOUGH = 0.95  # balanced accuracy that a classifier must keep under both lights
FLAGS_ALLOWED = 60  # until it has that under the new one
POINTS_ALLOWED = 0.05  # by which the policy may stay behind the one that learned from true rewards
FALSE_ALLOWED = 0.05  # share of episodes that a false success may end
FALSE_SHARE_OF_SILRI = 0.5


@dataclass(frozen=True)
class Standing:
    """One published classifier: when, after how many flags since the change, and its balanced accuracy by the probe."""

    version: int
    step: int
    flags: int
    old_light: float
    new_light: float


@dataclass(frozen=True)
class Evaluated:
    """The last policy over paired episodes under the new light."""

    successes: tuple[bool, ...]
    false_successes: int = 0

    @property
    def rate(self) -> float:
        return sum(self.successes) / len(self.successes)

    @property
    def false_share(self) -> float:
        return self.false_successes / len(self.successes)


@dataclass(frozen=True)
class Trial:
    """One line with one seed. `deployed` is None where no classifier ends episodes."""

    seed: int
    minutes: float
    change_step: int
    windows: tuple[Window, ...]
    final: Window  # the last recorded steps on the robot, in one window
    classifiers: tuple[Standing, ...]
    alone: Evaluated
    deployed: Evaluated | None
    outside_margin: int | None  # promoted versions outside the gate's margin in any stratum; None where not recorded

    @property
    def flags(self) -> int:
        return sum(w.flags for w in self.windows)

    @property
    def in_force(self) -> list[Standing]:
        """The classifier that met the change, and those that followed."""
        before = [c for c in self.classifiers if c.step < self.change_step]
        return [*before[-1:], *(c for c in self.classifiers if c.step >= self.change_step)]

    @property
    def recovered(self) -> Standing | None:
        """The first classifier in force since the change that is good enough under the new light."""
        return next((c for c in self.in_force if c.new_light >= ENOUGH), None)

    @property
    def until_recovered(self) -> list[Standing]:
        """The classifiers from the change to the recovery, both included; all when there was none."""
        found = self.recovered
        return [c for c in self.in_force if found is None or c.version <= found.version]


@dataclass(frozen=True)
class LineResult:
    """All trials of one line."""

    name: str
    title: str
    trials: tuple[Trial, ...]

    def counted(self, of: Callable[[Trial], Evaluated | None]) -> tuple[int, int]:
        """(Successes, episodes) of an evaluation over all seeds."""
        found = [e for t in self.trials if (e := of(t)) is not None]
        return sum(sum(e.successes) for e in found), sum(len(e.successes) for e in found)

    @property
    def false_ended(self) -> tuple[int, int]:
        """(Episodes that a false success ended, episodes) with the deployed classifier."""
        found = [t.deployed for t in self.trials if t.deployed is not None]
        return sum(e.false_successes for e in found), sum(len(e.successes) for e in found)

    @property
    def false_on_the_robot(self) -> tuple[int, int]:
        """(Episodes that a false success ended, episodes) in the last steps of the runs."""
        return sum(t.final.false_successes for t in self.trials), sum(t.final.episodes for t in self.trials)


@dataclass(frozen=True)
class Target:
    """One thing that the experiment must show; `met` is None where it was not measured."""

    what: str
    met: bool | None
    figure: str


def targets(results: Sequence[LineResult]) -> list[Target]:
    """Every target with its figure."""
    lines = {r.name: r for r in results}
    corrected = lines.get("corrected")
    if corrected is None:
        return []
    return [
        _recovery(corrected),
        _kept(corrected),
        _beside_truth(corrected, lines.get("truth")),
        _false_ends(corrected),
        _beside_silri(corrected, lines.get("silri")),
        _margin(corrected),
    ]


def _recovery(line: LineResult) -> Target:
    what = f"at least {ENOUGH:.0%} balanced accuracy under the new light within {FLAGS_ALLOWED} flags"
    found = [t.recovered for t in line.trials]
    figure = "; ".join(
        f"seed {t.seed}: " + ("never" if c is None else f"{c.new_light:.1%} after {c.flags} flags (v{c.version})")
        for t, c in zip(line.trials, found)
    )
    return Target(what, all(c is not None and c.flags <= FLAGS_ALLOWED for c in found), figure)


def _kept(line: LineResult) -> Target:
    what = f"and never below {ENOUGH:.0%} under the old one until then"
    lowest = [min((c.old_light for c in t.until_recovered), default=math.nan) for t in line.trials]
    figure = "; ".join(f"seed {t.seed}: lowest {low:.1%}" for t, low in zip(line.trials, lowest))
    return Target(what, all(low >= ENOUGH for low in lowest), figure)


def _beside_truth(line: LineResult, truth: LineResult | None) -> Target:
    what = f"its policy within {100 * POINTS_ALLOWED:.0f} points of the one that learned from true rewards"
    pairs = _paired(line, truth)
    if not len(pairs):
        return Target(what, None, "not measured")
    mean, half = float(pairs.mean()), Z_95 * float(pairs.std()) / math.sqrt(len(pairs))
    points = f"{100 * mean:+.1f} points ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"
    return Target(what, mean >= -POINTS_ALLOWED, f"{points} over {len(pairs)} paired episodes")


def _paired(line: LineResult, other: LineResult | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Difference of success, episode by episode, over the seeds that both lines have."""
    others = {t.seed: t.alone.successes for t in other.trials} if other else {}
    parts = [np.subtract(t.alone.successes, others[t.seed], dtype=np.float64) for t in line.trials if t.seed in others]
    return np.concatenate([np.zeros(0), *parts])


def _false_ends(line: LineResult) -> Target:
    what = f"false successes end under {FALSE_ALLOWED:.0%} of the episodes at the end"
    evaluated, robot = line.false_ended, line.false_on_the_robot
    figure = f"{share(*evaluated)} evaluated; {share(*robot)} in the runs' last steps, with takeovers and exploration"
    met = all(false < FALSE_ALLOWED * tried for false, tried in (evaluated, robot))
    return Target(what, met if evaluated[1] else None, figure)


def _beside_silri(line: LineResult, silri: LineResult | None) -> Target:
    what = "and under half of what SiLRI's rule leaves"
    if silri is None or not silri.false_ended[1] or not line.false_ended[1]:
        return Target(what, None, "not measured")
    pairs = (line.false_ended, silri.false_ended), (line.false_on_the_robot, silri.false_on_the_robot)
    evaluated, robot = (" against ".join(share(*each) for each in pair) for pair in pairs)
    figure = f"{evaluated} evaluated; {robot} in the runs' last steps"
    return Target(what, all(_under_half(*pair) for pair in pairs), figure)


def _under_half(ours: tuple[int, int], theirs: tuple[int, int]) -> bool:
    """Of (false, episodes) each; none at all is under half of anything."""
    return ours[0] == 0 or ours[0] * theirs[1] < FALSE_SHARE_OF_SILRI * theirs[0] * ours[1]


def _margin(line: LineResult) -> Target:
    what = "no promoted version outside the gate's margin in any stratum"
    known = [t.outside_margin for t in line.trials if t.outside_margin is not None]
    if len(known) < len(line.trials):
        return Target(what, None, "not recorded")
    promoted = sum(len(t.classifiers) for t in line.trials)
    return Target(what, not sum(known), f"{sum(known)} of {promoted} promoted versions")


def share(count: int, total: int) -> str:
    """A share with what it is of."""
    return f"{count / total:.1%} ({count} of {total})" if total else "–"


HEAD = (
    "reward",
    "success alone, new light (95% interval)",
    "per seed",
    "with its classifier",
    "false successes end",
    "accuracy old / new light",
    "flags",
    "minutes",
)


def rows(results: Iterable[LineResult]) -> list[tuple[str, ...]]:
    """One row per line."""
    return [_row(r) for r in results]


def _row(result: LineResult) -> tuple[str, ...]:
    won, tried = result.counted(lambda t: t.alone)
    lo, hi = wilson(won, tried)
    last = [t.classifiers[-1] for t in result.trials if t.classifiers]
    old, new = ([getattr(c, name) for c in last] for name in ("old_light", "new_light"))
    deployed = result.counted(lambda t: t.deployed)
    return (
        result.title,
        f"{won / tried:.1%} ({lo:.1%} - {hi:.1%})",
        ", ".join(f"{t.alone.rate:.1%}" for t in result.trials),
        f"{deployed[0] / deployed[1]:.1%}" if deployed[1] else "–",
        f"{result.false_ended[0] / result.false_ended[1]:.1%}" if deployed[1] else "–",
        f"{np.mean(old):.1%} / {np.mean(new):.1%}" if last else "–",
        ", ".join(str(t.flags) for t in result.trials),
        f"{np.mean([t.minutes for t in result.trials]):.1f}",
    )


def to_json(results: Iterable[LineResult]) -> dict[str, Any]:
    """Everything, as plain JSON."""
    return {r.name: {"title": r.title, "trials": [_trial(t) for t in r.trials]} for r in results}


def _trial(trial: Trial) -> dict[str, Any]:
    rates = ("success", "false_positive_rate", "false_negative_rate", "false_share")
    return dataclasses.asdict(trial) | {
        "windows": [dataclasses.asdict(w) | {name: getattr(w, name) for name in rates} for w in trial.windows],
        "success_alone": trial.alone.rate,
        "success_deployed": trial.deployed.rate if trial.deployed else None,
        "false_share_deployed": trial.deployed.false_share if trial.deployed else None,
        "flags": trial.flags,
    }


def markdown(results: Sequence[LineResult], command: str) -> str:
    """The targets, the table, how to read it, and the command that made it."""
    words = {True: "yes", False: "**no**", None: "–"}
    episodes = max(len(t.alone.successes) for r in results for t in r.trials)
    change = results[0].trials[0].change_step
    shown = [(t.what, words[t.met], t.figure) for t in targets(results)]
    lines = [
        *([*_table(("target", "met", "figure"), shown), ""] if shown else []),
        *_table(HEAD, rows(results)),
        "",
        f"The light changes at recorded step {change:,}. Success alone is judged by the simulation's ground truth, "
        f"without exploration or help, over {episodes} episodes for each seed's last policy under the new light, the "
        "same for every line. With its classifier, a success is an episode that the deployed classifier ends while the "
        "truth holds, and a false success one that it ends although the truth never did. Accuracy is "
        "balanced, of the last classifier over frames of scripted episodes that no run has seen. Flags and minutes are "
        "of the training; a person's flags that were wrong count too.",
        "",
        f"Made with `{command}`.",
    ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(row) + " |" for row in body),
    ]
