"""What `steadyhand lab noise` found: success of each reward form under each noise in a person's words. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steadyhand_training.lab_results import Place, pooled
from steadyhand_training.lab_run import Judged


@dataclass(frozen=True, order=True)
class Noise:
    """Shares of the failures that are called a success and of the successes that are denied, and seconds of lag."""

    false_positive: float = 0.0
    false_negative: float = 0.0
    lag_s: float = 0.0

    def __str__(self) -> str:
        return f"fp{self.false_positive:g}-fn{self.false_negative:g}-lag{self.lag_s:g}"


@dataclass(frozen=True)
class Words:
    """A person's last words on the policy's episodes of a run, beside what was true."""

    failures: int = 0
    called_success: int = 0  # of the failures
    successes: int = 0
    denied: int = 0  # of the successes


@dataclass(frozen=True)
class Trial:
    """One seed: what its last policy could do alone, and which words arrived during its run."""

    seed: int
    minutes: float  # wall time of the training
    final: Judged
    words: Words


@dataclass(frozen=True)
class Cell:
    """All seeds of one reward form under one noise."""

    form: str
    noise: Noise
    trials: tuple[Trial, ...]

    @property
    def place(self) -> Place:
        """Success alone, the seeds' episodes taken together."""
        return pooled([t.final for t in self.trials])

    @property
    def words(self) -> Words:
        said = [dataclasses.astuple(t.words) for t in self.trials]
        return Words(*(sum(column) for column in zip(*said)))


@dataclass(frozen=True)
class Chart:
    """What is drawn of one reward form.

    `grid` has a row for each false-positive and a column for each false-negative rate, None where a cell is missing;
    `lags` are the cells without wrong words, by rising lag.
    """

    form: str
    false_positives: tuple[float, ...]
    false_negatives: tuple[float, ...]
    grid: tuple[tuple[Cell | None, ...], ...]
    lags: tuple[Cell, ...]


def charts(cells: Sequence[Cell]) -> list[Chart]:
    """One chart for each reward form."""
    return [_chart(form, [c for c in cells if c.form == form]) for form in dict.fromkeys(c.form for c in cells)]


def _chart(form: str, cells: Sequence[Cell]) -> Chart:
    known = {c.noise: c for c in cells}
    prompt = [noise for noise in known if not noise.lag_s] or list(known)
    false_positives = tuple(sorted({noise.false_positive for noise in prompt}))
    false_negatives = tuple(sorted({noise.false_negative for noise in prompt}))
    return Chart(
        form=form,
        false_positives=false_positives,
        false_negatives=false_negatives,
        grid=tuple(tuple(known.get(Noise(fp, fn)) for fn in false_negatives) for fp in false_positives),
        lags=tuple(known[noise] for noise in sorted(known) if noise == Noise(lag_s=noise.lag_s)),
    )


HEAD = (
    "reward form",
    "false positives",
    "false negatives",
    "lag",
    "success alone (95% interval)",
    "per seed",
    "failures called success",
    "successes denied",
    "minutes",
)


def rows(cells: Iterable[Cell]) -> list[tuple[str, ...]]:
    """One row per cell."""
    return [_row(c) for c in cells]


def _row(cell: Cell) -> tuple[str, ...]:
    place, words, noise = cell.place, cell.words, cell.noise
    return (
        cell.form,
        f"{noise.false_positive:.0%}",
        f"{noise.false_negative:.0%}",
        f"{noise.lag_s:g} s",
        f"{place.rate:.1%} ({place.lo:.1%} - {place.hi:.1%})",
        ", ".join(f"{t.final.successes / t.final.episodes:.1%}" for t in cell.trials),
        f"{words.called_success} of {words.failures}",
        f"{words.denied} of {words.successes}",
        f"{sum(t.minutes for t in cell.trials) / len(cell.trials):.1f}",
    )


def to_json(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Everything, as plain JSON."""
    return [dataclasses.asdict(c) | {"place": dataclasses.asdict(c.place)} for c in cells]


def markdown(cells: Sequence[Cell], command: str) -> str:
    """The table, how to read it, and the command that made it."""
    tried = " or ".join(map(str, sorted({t.final.episodes for c in cells for t in c.trials})))
    lines = [
        "| " + " | ".join(HEAD) + " |",
        "|" + " --- |" * len(HEAD),
        *("| " + " | ".join(row) + " |" for row in rows(cells)),
        "",
        "False positives are the share of failed moments (a false success of the classifier, a lost cube, an episode "
        "that ran out of time) that the scripted person calls a success; false negatives the share of true successes "
        "that they deny. No wrong word is taken back, and demonstrations are free of them. Lag is added to every "
        "reaction, those in demonstrations included, and the words do not tell of it. Failures called success and "
        "successes denied count the last word that arrived about each episode of the policy, beside its ground truth.",
        "",
        "Success alone is judged by the simulation's ground truth, without exploration or help, over "
        f"{tried} episodes for each seed's last policy, with the same cubes in every cell. Intervals are Wilson's over "
        "all seeds' episodes together; how far training runs differ from each other shows in the seeds, not in them. "
        "Minutes are of the training, means over seeds.",
        "",
        f"Made with `{command}`.",
    ]
    return "\n".join(lines) + "\n"
