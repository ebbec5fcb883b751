"""Judge a classifier on the labelled frames of a run: by light, phase and episode, with its worst mistakes."""

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
from steadyhand_training import dataset, frame_quality, gallery, holdout, progress, scoring
from steadyhand_training.dataset import Dataset, Recorded
from steadyhand_training.frame_quality import EpisodeQuality, FrameQuality, Scored
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.scoring import Source
from steadyhand_training.strata import PHASES

SHOWN_EPISODES = 20
_DESCRIPTION = """Judge a classifier on the labelled frames of a run that it did not learn from.

Example: steadyhand classifier eval --run runs/lift --gallery mistakes.html
Example: steadyhand classifier eval --run runs/lift --artifact runs/lift-classifier --all --json figures.json
Example: steadyhand classifier eval --run runs/latest --version 3 --by truth"""


class By(str, enum.Enum):
    """Whose word counts."""

    LABELS = "labels"  # people's, on the frames that they spoke of
    TRUTH = "truth"  # the simulation's, on every frame: an independent check that no robot has


class GroupKind(str, enum.Enum):
    """What the frames of a line of the result have in common."""

    ALL = "all"
    LIGHT = "light"
    PHASE = "phase"
    EPISODE = "episode"


@dataclass(frozen=True)
class ClassifierEvalSettings:
    """Which classifier, and by what."""

    run: tuple[Path, ...] = ()
    task: str = "lift"
    version: Annotated[int, Field(ge=0)] = 0  # 0 is the newest
    registry: Path | None = None  # the first run's own
    artifact: Path | None = None  # a folder of `classifier fit` instead of a version
    by: By = By.LABELS
    all: bool = False  # episodes that it learned from as well
    seed: Annotated[int, Field(ge=0)] = 0  # of the intervals' resamples
    json: Path | None = None  # the result, for programs
    gallery: Path | None = None  # .html page or .png sheet of the worst mistakes
    gallery_frames: Annotated[int, Field(ge=1, le=500)] = 24


@dataclass(frozen=True)
class Group:
    """Frames that belong together, and how the classifier did on them."""

    kind: GroupKind
    name: str
    frames: FrameQuality
    episodes: EpisodeQuality


@dataclass(frozen=True)
class Judgement:
    """One classifier on one set of episodes."""

    classifier: str
    rule: reward.Rule
    by: By
    unseen: bool  # only episodes that it did not learn from
    groups: tuple[Group, ...]

    def of(self, kind: GroupKind) -> list[Group]:
        return [g for g in self.groups if g.kind is kind]


def choose(data: Dataset, source: Source, every: bool) -> list[Recorded]:
    """The episodes to judge by. Raises UserError when nothing says which of them the classifier learned from."""
    if every:
        return data.episodes
    unseen = holdout.unseen(data, source.folder)
    if unseen is None:
        raise UserError(
            f"nothing says which episodes {source.name} learned from: no {holdout.FIT_FILE} beside it, no checkpoint "
            "in the run; --all judges by every episode"
        )
    return unseen


def labelled(data: Dataset, episodes: Sequence[Recorded], by: By) -> list[tuple[Recorded, dataset.I8]]:
    """Those of the episodes of which anything is known, with labels (T,)."""
    pairs = [(e, e.labels if by is By.LABELS else data.truth(e)) for e in episodes]
    return [(e, labels) for e, labels in pairs if labels.any()]


def groups(
    episodes: Sequence[Recorded], scored: Sequence[Scored], rule: reward.Rule, seed: int = 0
) -> tuple[Group, ...]:
    """All frames together, then by light, by phase and by episode."""

    def group(kind: GroupKind, name: str, members: Sequence[Scored]) -> Group:
        return Group(kind, name, frame_quality.frames(members, rule, seed), frame_quality.episodes(members, rule))

    found = [group(GroupKind.ALL, "all", scored)]
    for light in sorted({e.light for e in episodes}):
        found.append(
            group(GroupKind.LIGHT, f"light {light}", [s for e, s in zip(episodes, scored) if e.light == light])
        )
    for i, phase in enumerate(PHASES):
        # Probabilities stay whole: K frames in a row may begin in the phase before.
        members = [
            dataclasses.replace(s, labels=np.where(e.phases == i, s.labels, 0)) for e, s in zip(episodes, scored)
        ]
        found.append(group(GroupKind.PHASE, phase.value, members))
    found += [group(GroupKind.EPISODE, e.origin.name, [s]) for e, s in zip(episodes, scored)]
    return tuple(found)


# -- what is shown -----------------------------------------------------------------------------------------------------


def show(result: Judgement, console: Console) -> None:
    """The result as tables."""
    whose = "episodes that it did not learn from" if result.unseen else "every episode, learned from or not"
    judge = "people's labels" if result.by is By.LABELS else "the simulation's truth: an independent check"
    table = Table(
        title=f"classifier {result.classifier} on {whose}, by {judge}",
        caption=f"threshold {result.rule.threshold:.2f}, {result.rule.debounce_frames} frames in a row; intervals are "
        "of 95% over episodes",
    )
    shown = [g for kind in (GroupKind.ALL, GroupKind.LIGHT, GroupKind.PHASE) for g in result.of(kind)]
    table.add_column("", no_wrap=True)
    for group in shown:
        table.add_column(group.name, justify="right")
    for name, cells in zip(_MEASURES, zip(*(_measures(g) for g in shown))):
        table.add_row(name, *cells)
    console.print(table)
    _show_episodes(result.of(GroupKind.EPISODE), console)


_MEASURES = (
    *("frames, success", "frames, none", "accuracy", "balanced", "precision", "recall", "false positives"),
    *("  95% interval", "calibr. error", "false successes", "found successes"),
)


def _measures(group: Group) -> list[str]:
    """One cell for each of _MEASURES."""
    frames, episodes = group.frames, group.episodes
    rate = frames.false_positive_rate
    return [
        str(frames.positive),
        str(frames.negative),
        _percent(frames.accuracy),
        _percent(frames.balanced_accuracy),
        _percent(frames.precision),
        _percent(frames.recall),
        _percent(rate.value),
        "-" if rate.value is None else f"{100 * rate.lo:.1f}-{100 * rate.hi:.1f}",
        "-" if frames.calibration_error is None else f"{frames.calibration_error:.3f}",
        f"{episodes.false} of {episodes.refuted}",
        f"{episodes.found} of {episodes.confirmed}",
    ]


def _show_episodes(found: Sequence[Group], console: Console) -> None:
    """The episodes with mistakes, worst first."""
    wrong = sorted((g for g in found if _mistakes(g)), key=_mistakes, reverse=True)
    if wrong:
        table = Table(title="episodes with mistakes, worst first")
        table.add_column("episode", no_wrap=True)
        for column in ("accuracy", "false +", "missed", "ends in"):
            table.add_column(column, justify="right")
        for group in wrong[:SHOWN_EPISODES]:
            table.add_row(*_episode(group))
        console.print(table)
    more = f"{len(wrong) - SHOWN_EPISODES} more with mistakes, " if len(wrong) > SHOWN_EPISODES else ""
    console.print(f"{more}{len(found) - len(wrong)} of {len(found)} episodes without a mistake")


def _episode(group: Group) -> list[str]:
    frames, episodes = group.frames, group.episodes
    missed = episodes.confirmed and not episodes.found
    return [
        group.name,
        _percent(frames.accuracy),
        f"{frames.false_positive} of {frames.negative}",
        f"{frames.positive - frames.true_positive} of {frames.positive}",
        "a false success" if episodes.false else "a missed success" if missed else "the right way",
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _mistakes(group: Group) -> int:
    return group.frames.false_positive + group.frames.positive - group.frames.true_positive


def plain(result: Judgement) -> dict[str, Any]:
    """The result for programs."""
    return {
        "classifier": result.classifier,
        "rule": dataclasses.asdict(result.rule),
        "by": result.by.value,
        "held_out": result.unseen,
        "groups": [_plain_group(g) for g in result.groups],
    }


def _plain_group(group: Group) -> dict[str, Any]:
    frames, episodes = group.frames, group.episodes
    return {
        "kind": group.kind.value,
        "name": group.name,
        **dataclasses.asdict(frames),
        "accuracy": frames.accuracy,
        "balanced_accuracy": frames.balanced_accuracy,
        "precision": frames.precision,
        "recall": frames.recall,
        "false_success_episodes": dataclasses.asdict(episodes)
        | {"rate": dataclasses.asdict(episodes.false_rate), "recall": dataclasses.asdict(episodes.recall)},
    }


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier eval`."""
    chosen = toml.parse_command_line(ClassifierEvalSettings, argv, "steadyhand classifier eval", _DESCRIPTION)
    if chosen.gallery is not None:
        gallery.renderer(chosen.gallery)  # a name that is neither page nor picture is refused before anything is judged
    if not chosen.run:
        raise UserError("no run to judge by; give --run RUN_FOLDER")
    task = tasks.load(chosen.task)
    source = scoring.find(chosen.registry or RunFolder(chosen.run[0]).registry, chosen.version, chosen.artifact)
    scorer = scoring.scorer(source, task.contract())
    with progress.shown("reading") as tell:
        data = dataset.read(chosen.run, task, tell)
    pairs = labelled(data, choose(data, source, chosen.all), chosen.by)
    if not pairs:
        missing = "truth.csv of a simulated run" if chosen.by is By.TRUTH else "labelled frame"
        raise UserError(f"no episode to judge by has a {missing}; give other runs, or --all")
    episodes = [e for e, _ in pairs]
    with progress.shown("judging") as tell:
        found = scorer.episodes(data, episodes, tell)
    scored = [Scored(p, labels, e.cut) for p, (e, labels) in zip(found, pairs)]
    by_group = groups(episodes, scored, scorer.rule, chosen.seed)
    result = Judgement(source.name, scorer.rule, chosen.by, not chosen.all, by_group)
    show(result, Console())
    if chosen.json is not None:
        _write_json(chosen.json, result)
    if chosen.gallery is not None:
        title = f"classifier {source.name}: worst mistakes by {chosen.by.value}"
        truth = chosen.by is By.TRUTH
        shown = gallery.exhibits(data, episodes, scored, scorer.rule, chosen.gallery_frames, truth)
        gallery.write(chosen.gallery, title, shown)
        print(f"gallery: {chosen.gallery}")
    return 0


def _write_json(path: Path, result: Judgement) -> None:
    try:
        path.write_text(json.dumps(plain(result), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
