"""Rescore a past run under any classifier version: which episodes would have come out otherwise."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

from steadyhand_models import reward
from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.cli import UserError
from steadyhand_models.messages import EndReason
from steadyhand_training import dataset, progress, scoring
from steadyhand_training.dataset import Dataset, Recorded
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.scoring import Scorer
from steadyhand_training.standing import verdict

RECORDING = "the recording"
_DESCRIPTION = """Rescore a past run under any classifier version; the run stays as it is.

An episode is a success from the step at which the version's rule first says so. Without --against it is compared with
how the episode really ended. An episode holds only what was recorded: one that was ended early has no later frames.

Example: steadyhand classifier replay --run runs/lift --version 1 --against 4
Example: steadyhand classifier replay --run runs/lift --artifact runs/lift-classifier --json changes.json"""

Version = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ClassifierReplaySettings:
    """Which run, under which version, compared with what."""

    run: Path | None = None
    task: str = "lift"
    version: Version = 0  # 0 is the newest
    artifact: Path | None = None  # a folder of `classifier fit` instead of --version
    against: Version | None = None  # another version; the recording itself without one
    against_artifact: Path | None = None  # a folder of `classifier fit` instead of --against
    registry: Path | None = None  # of the versions; the run's own
    words: bool = False  # people's words win over the classifier, as in the rewards that are learned from
    json: Path | None = None  # the result, for programs


class Change(str, enum.Enum):
    """What becomes of an episode's outcome."""

    SAME = "same"
    GAINED = "becomes a success"
    LOST = "is no success any more"
    MOVED = "succeeds at another step"


@dataclass(frozen=True)
class Rescored:
    """One episode before and after: the step of its success, None without one. `said` is people's word, or None."""

    name: str
    episode: int
    before: int | None
    after: int | None
    said: bool | None

    @property
    def change(self) -> Change:
        if self.before == self.after:
            return Change.SAME
        if self.before is None:
            return Change.GAINED
        return Change.LOST if self.after is None else Change.MOVED


@dataclass(frozen=True)
class Comparison:
    """A run under one version (`after`), beside what it is compared with (`before`)."""

    before: str
    after: str
    episodes: tuple[Rescored, ...]

    def count(self, change: Change) -> int:
        return sum(e.change is change for e in self.episodes)

    @property
    def judged(self) -> list[Rescored]:
        """Episodes of which people said whether they were a success."""
        return [e for e in self.episodes if e.said is not None]

    @property
    def agreed(self) -> tuple[int, int]:
        """How many of the judged ones people agree with: before, after."""
        judged = self.judged
        before = sum((e.before is not None) == e.said for e in judged)
        return before, sum((e.after is not None) == e.said for e in judged)


def success_step(episode: Recorded, lower: dataset.F32 | None, rule: reward.Rule, words: bool) -> int | None:
    """The step of the first success, by the rule that rewards follow; None without one."""
    labels = episode.labels if words else np.zeros_like(episode.labels)
    outcome = reward.outcome(reward.success_frames(lower, labels, rule, episode.cut), episode.end)
    hits = np.flatnonzero(outcome.reward > 0)
    return int(episode.seq[hits[0] + 1]) if len(hits) else None


def recorded_step(episode: Recorded) -> int | None:
    """The step at which an episode really ended as a success; None when it ended otherwise."""
    return int(episode.seq[-1]) if episode.end is EndReason.SUCCESS else None


def under(data: Dataset, scorer: Scorer, words: bool) -> list[int | None]:
    """The step of success of every episode under a classifier."""
    with progress.shown(f"rescoring under v{scorer.manifest.version}") as tell:
        found = scorer.episodes(data, data.episodes, tell)
    bounds = [reward.lower_bound(p, scorer.rule.pessimism) for p in found]
    return [success_step(e, lower, scorer.rule, words) for e, lower in zip(data.episodes, bounds)]


def compare(
    data: Dataset, before: str, steps_before: Sequence[int | None], after: str, steps_after: Sequence[int | None]
) -> Comparison:
    """Episode by episode."""
    rescored = (
        Rescored(e.origin.name, e.origin.episode.number, b, a, verdict(list(e.words)))
        for e, b, a in zip(data.episodes, steps_before, steps_after)
    )
    return Comparison(before, after, tuple(rescored))


def show(found: Comparison, console: Console) -> None:
    """The episodes that change, and the totals."""
    changed = [e for e in found.episodes if e.change is not Change.SAME]
    if changed:
        table = Table(title=f"from {found.before} to {found.after}")
        for column in ("episode", "before", "after", "people said"):
            table.add_column(column)
        for episode in changed:
            said = {True: "success", False: "no success", None: "-"}[episode.said]
            table.add_row(str(episode.episode), _outcome(episode.before), _outcome(episode.after), said)
        console.print(table)
    counts = ", ".join(f"{change.value}: {found.count(change)}" for change in Change)
    console.print(f"of {len(found.episodes)} episodes: {counts}")
    before, after = found.agreed
    total = len(found.judged)
    console.print(f"people agree on {before} of {total} with {found.before}, on {after} of {total} with {found.after}")


def _outcome(step: int | None) -> str:
    return "no success" if step is None else f"success at step {step}"


def plain(found: Comparison) -> dict[str, Any]:
    """The result for programs: totals, and every episode."""
    before, after = found.agreed
    return {
        "before": found.before,
        "after": found.after,
        "totals": {change.name.lower(): found.count(change) for change in Change},
        "judged": len(found.judged),
        "agreed": {"before": before, "after": after},
        "episodes": [{**dataclasses.asdict(e), "change": e.change.name.lower()} for e in found.episodes],
    }


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier replay`."""
    chosen = toml.parse_command_line(ClassifierReplaySettings, argv, "steadyhand classifier replay", _DESCRIPTION)
    if chosen.run is None:
        raise UserError("no run to rescore; give --run RUN_FOLDER")
    task = tasks.load(chosen.task)
    registry = chosen.registry or RunFolder(chosen.run).registry
    source = scoring.find(registry, chosen.version, chosen.artifact)
    scorer = scoring.scorer(source, task.contract())
    other = None
    if chosen.against is not None or chosen.against_artifact is not None:
        other = scoring.find(registry, chosen.against or 0, chosen.against_artifact)
    other_scorer = scoring.scorer(other, task.contract()) if other is not None else None
    with progress.shown("reading") as tell:
        data = dataset.read([chosen.run], task, tell)
    after = under(data, scorer, chosen.words)
    before = [recorded_step(e) for e in data.episodes]
    if other_scorer is not None:
        before = under(data, other_scorer, chosen.words)
    found = compare(data, other.name if other is not None else RECORDING, before, source.name, after)
    show(found, Console())
    if chosen.json is not None:
        try:
            chosen.json.write_text(json.dumps(plain(found), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{chosen.json}: cannot be written ({error.strerror})") from None
    return 0
