"""What has been collected for a first policy and a first classifier: episodes, labelled frames, places and light."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models.messages import EndReason, Source
from steadyhand_models.task import Task
from steadyhand_training.discards import Discards, Episode
from steadyhand_training.journal import Entry, Kind
from steadyhand_training.labels import Ledger
from steadyhand_training.memory import Memory, News, Tally
from steadyhand_training.replay import SOURCES, Replay
from steadyhand_training.strata import PHASES, Lights, phases, signature

ROWS, COLUMNS = 3, 4  # cells of the workspace seen from above: near to far, right to left
CAPACITY = 200_000  # steps of collecting that fit


@dataclass(frozen=True)
class Collected:
    """One ended episode."""

    episode: Episode
    steps: int
    end: EndReason
    demonstration: bool
    positive: int  # frames labelled as success
    negative: int
    cell: int | None  # where it went lowest, in rows of the workspace; None for a contract without a tip
    brightness: float  # mean of its pictures, 0..255
    light: int
    phases: npt.NDArray[np.int64]  # (PHASES, 2) frames labelled as success and as anything else


@dataclass(frozen=True)
class Progress:
    """All that is not discarded, in numbers. `cells` (ROWS, COLUMNS) counts successful demonstrations by place."""

    demonstrations: int
    failed: int
    positive: int
    negative: int
    cells: npt.NDArray[np.int64]
    brightness: tuple[float, float]  # of the darkest and the brightest episode
    lights: int
    phases: npt.NDArray[np.int64]  # (PHASES, 2) frames labelled as success and as anything else

    @property
    def places(self) -> int:
        return int((self.cells > 0).sum())


class Collection:
    """The journal's entries as they come, counted. Built anew from the journal when an episode is discarded."""

    def __init__(self, task: Task, discards: Discards) -> None:
        self.discards = discards
        self.memory = Memory(Replay(task.contract(), CAPACITY), Ledger(task=task))
        self._task = task
        self._fields = [field.name for field in task.contract().state]
        self._names: dict[int, Episode] = {}  # episode numbers of the memory, which are unique over robots
        self._ended: dict[int, Collected] = {}
        self._lights = Lights()

    @property
    def tally(self) -> Tally:
        return self.memory.tally

    @property
    def position(self) -> int:
        """Of the last entry that was taken in."""
        return self.memory.position

    def take_in(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if self.discards.hold(entry):
                self.memory.position = entry.position
                continue
            news = self.memory.consume(entry)
            if news.row is not None and entry.kind is Kind.STEP and entry.episode is not None:
                number = int(self.memory.replay.episode[news.row])
                self._names[number] = Episode(entry.edge, entry.run, entry.episode)
            self._settle(news)

    @property
    def last(self) -> Collected | None:
        """The episode that ended last."""
        return next(reversed(self._ended.values()), None)

    def progress(self) -> Progress:
        shown = self._ended.values()
        demonstrations = [c for c in shown if c.demonstration]
        won = [c for c in demonstrations if c.end is EndReason.SUCCESS]
        cells = np.zeros(ROWS * COLUMNS, np.int64)
        for collected in won:
            if collected.cell is not None:
                cells[collected.cell] += 1
        light = [c.brightness for c in shown]
        return Progress(
            demonstrations=len(won),
            failed=sum(c.end is EndReason.FAILURE for c in demonstrations),
            positive=sum(c.positive for c in shown),
            negative=sum(c.negative for c in shown),
            cells=cells.reshape(ROWS, COLUMNS),
            brightness=(min(light, default=0.0), max(light, default=0.0)),
            lights=len({c.light for c in shown}),
            phases=sum((c.phases for c in shown), np.zeros((len(PHASES), 2), np.int64)),
        )

    def _settle(self, news: News) -> None:
        for number in news.settled:
            end = self.memory.replay.ended(number)
            if end is not None:
                self._ended[number] = self._collected(number, end)

    def _collected(self, number: int, end: EndReason) -> Collected:
        replay = self.memory.replay
        rows = replay.rows(number)
        said = self.memory.ledger.frame_labels(number, replay)
        at = phases(replay.state[rows], self._task)
        return Collected(
            episode=self._names[number],
            steps=len(rows),
            end=end,
            demonstration=SOURCES[replay.source[rows[0]]] is Source.DEMONSTRATION,
            positive=int((said > 0).sum()),
            negative=int((said < 0).sum()),
            cell=self._cell(replay.state[rows]),
            brightness=float(replay.frames[rows].mean()),
            light=self._light(number, rows),
            phases=np.array([[(said[at == i] > 0).sum(), (said[at == i] < 0).sum()] for i in range(len(PHASES))]),
        )

    def _light(self, number: int, rows: npt.NDArray[np.int64]) -> int:
        """The light of an episode, which further words about it do not change."""
        known = self._ended.get(number)
        return known.light if known else self._lights.number(signature(self.memory.replay.frames[rows]))

    def _cell(self, state: npt.NDArray[np.float32]) -> int | None:
        """The cell of the workspace above which the tip of states (T, S) went lowest: where something was grasped."""
        if "tip_z" not in self._fields:
            return None
        return cell_of(state[int(state[:, self._fields.index("tip_z")].argmin())], self._task)


def cell_of(state: npt.NDArray[np.float32], task: Task) -> int | None:
    """The cell of the workspace above which the tip of a state (S,) is; None for a contract without a tip."""
    fields = [field.name for field in task.contract().state]
    if not {"tip_x", "tip_y"} <= set(fields):
        return None
    x, y = (float(state[fields.index(f"tip_{axis}")]) for axis in "xy")
    space = task.workspace
    row = _share(x, space.lo_m[0], space.hi_m[0], ROWS)
    return row * COLUMNS + _share(y, space.lo_m[1], space.hi_m[1], COLUMNS)


def _share(value: float, lo: float, hi: float, parts: int) -> int:
    """Which of so many equal parts of [lo, hi] holds a value; the outer ones hold what lies beyond."""
    return int(np.clip((value - lo) / (hi - lo) * parts, 0, parts - 1))
