"""Show what is labelled in a run: frames and episodes by light, by place in the workspace and by phase of the task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.task import Task
from steadyhand_training import dataset, progress
from steadyhand_training.collection import COLUMNS, ROWS, cell_of
from steadyhand_training.dataset import Dataset, Recorded
from steadyhand_training.journal import is_import
from steadyhand_training.review import task_name
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.strata import PHASES, Phase

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]

IMPORTED = "imported"  # frames without a state: nobody knows where the arm was
FEW_EPISODES = 4  # below it a row is marked: so little says little about what else looks alike
_DESCRIPTION = """Show what is labelled in a run: by light, by place of the object and by phase of the task.

The place is where the jaws closed, or where the arm ended if they did not. Rows with few episodes are marked.

Example: steadyhand classifier coverage --run runs/lift"""


@dataclass(frozen=True)
class CoverageSettings:
    """Which run, and how it is shown."""

    run: Path = Path("runs/latest")
    task: str = ""  # empty means the run's
    json: bool = False


@dataclass(frozen=True)
class Share:
    """One part of what is labelled: frames of success and without, and the episodes they are from."""

    what: str
    positive: int
    negative: int
    episodes: int

    @property
    def scarce(self) -> bool:
        return self.episodes < FEW_EPISODES


@dataclass(frozen=True)
class Coverage:
    """All that is labelled, and by light, place (near to far, right to left) and phase."""

    whole: Share
    lights: tuple[Share, ...]
    places: tuple[Share, ...]
    phases: tuple[Share, ...]


def place(state: F32, phases: I8, task: Task) -> int | None:
    """The cell of the workspace of an episode's states (T, S) where its jaws closed, else where it ended.

    A proxy of the object's place that needs no ground truth. None for a contract without a tip.
    """
    closed = np.flatnonzero(phases != PHASES.index(Phase.APPROACH))
    return cell_of(state[int(closed[0]) if len(closed) else -1], task)


def gather(data: Dataset) -> Coverage:
    """Count what people said of every ended episode."""
    spoken = data.spoken_of
    recorded, imported = [e for e in spoken if not _imported(e)], [e for e in spoken if _imported(e)]
    cells = [place(data.state(e.rows), e.phases, data.task) for e in recorded]
    phases = [_share(phase.value, [e.labels[e.phases == i] for e in recorded]) for i, phase in enumerate(PHASES)]
    return Coverage(
        whole=_share("all", [e.labels for e in spoken]),
        lights=tuple(
            _share(f"light {n}", [e.labels for e in spoken if e.light == n]) for n in sorted({e.light for e in spoken})
        ),
        places=tuple(
            _share(_place_name(n), [e.labels for e, cell in zip(recorded, cells) if cell == n])
            for n in range(ROWS * COLUMNS)
        ),
        phases=(*phases, *([_share(IMPORTED, [e.labels for e in imported])] if imported else [])),
    )


def _imported(episode: Recorded) -> bool:
    return is_import(episode.origin.episode.edge)


def _share(what: str, labels: Sequence[I8]) -> Share:
    """What the labels of so many episodes make together."""
    return Share(
        what=what,
        positive=sum(int((w > 0).sum()) for w in labels),
        negative=sum(int((w < 0).sum()) for w in labels),
        episodes=sum(bool(w.any()) for w in labels),
    )


def _place_name(cell: int) -> str:
    row, column = divmod(cell, COLUMNS)
    return f"row {row + 1}, column {column + 1}"


def table(title: str, shares: Sequence[Share]) -> Table:
    """One way of cutting what is labelled."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for name in ("success", "anything else", "episodes"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    for s in shares:
        shown.add_row(s.what, str(s.positive), str(s.negative), str(s.episodes), "few" if s.scarce else "")
    return shown


def show(coverage: Coverage, console: Console) -> None:
    console.print(table("all that is labelled", [coverage.whole]))
    console.print(table("by light", coverage.lights))
    console.print(
        table(f"by place ({ROWS} rows from near to far, {COLUMNS} columns from right to left)", coverage.places)
    )
    console.print(table("by phase of the task", coverage.phases))


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier coverage`."""
    chosen = toml.parse_command_line(CoverageSettings, argv, "steadyhand classifier coverage", _DESCRIPTION)
    task = tasks.load(chosen.task or task_name(RunFolder(chosen.run)))
    with progress.shown("reading the journal") as told:
        coverage = gather(dataset.read([chosen.run], task, told))
    if chosen.json:
        print(json.dumps(dataclasses.asdict(coverage), indent=1))
    else:
        show(coverage, Console())
    return 0
