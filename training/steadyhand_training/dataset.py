"""Recorded runs as data for the classifier: ended episodes, their frames, and what people said of them. Read only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steadyhand_models.cli import UserError
from steadyhand_models.messages import EndReason, Label, LabelKind
from steadyhand_models.task import Task
from steadyhand_training.discards import Discards, Episode
from steadyhand_training.facts import read_truth
from steadyhand_training.journal import Journal, Kind
from steadyhand_training.labels import Ledger, Provenance
from steadyhand_training.memory import Memory
from steadyhand_training.replay import Replay
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.strata import Lights, phases, signature

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """Where an episode was recorded."""

    folder: Path
    episode: Episode

    @property
    def name(self) -> str:
        return f"{self.folder.resolve().name} episode {self.episode.number}"


@dataclass(frozen=True)
class Recorded:
    """One ended episode of T frames. `memory_number` is its number in a trainer's memory of its run."""

    origin: Origin
    memory_number: int
    source: int  # place of its run in the data set
    rows: I64  # (T,) of the data set
    labels: I8  # (T,) what people say of its frames: +1 success, -1 none, 0 unknown
    words: tuple[Label, ...]  # those of its labels that stand
    phases: I8  # (T,) places in strata.PHASES
    light: int
    stamp_ns: I64
    seq: I64
    end: EndReason
    classifier_version: int

    @property
    def spoken_of(self) -> bool:
        return bool(self.labels.any())

    @property
    def cut(self) -> bool:
        """A success ended it: what would have come next was never recorded."""
        return self.end is EndReason.SUCCESS


@dataclass(frozen=True)
class _Run:
    folder: Path
    replay: Replay
    ledger: Ledger
    offset: int  # data set row of its first one


class Dataset:
    """Episodes of one or several runs; rows number all their frames, whichever run they are from."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.episodes: list[Recorded] = []
        self._runs: list[_Run] = []
        self._lights = Lights()

    @property
    def spoken_of(self) -> list[Recorded]:
        """Episodes with at least one labelled frame."""
        return [e for e in self.episodes if e.spoken_of]

    def add(self, folder: Path, progress: Callable[[float], None] = lambda share: None) -> None:
        """Read one run; progress in 0..1. Raises UserError when there is none, or one of another task."""
        path = RunFolder(folder).journal
        if not path.is_file():
            raise UserError(f"{folder}: no journal there; give --run a folder of `steadyhand train` or `collect`")
        journal = Journal(path)
        try:
            self._read(folder, journal, progress)
        finally:
            journal.close()

    def _read(self, folder: Path, journal: Journal, progress: Callable[[float], None]) -> None:
        total = max(1, journal.counts().steps)
        memory = Memory(Replay(self.task.contract(), total), Ledger(task=self.task))
        discards, names = Discards(RunFolder(folder).discards), dict[int, Episode]()
        for entry in journal.replay():
            if discards.hold(entry):
                continue
            row = memory.consume(entry).row
            if row is not None and entry.kind is Kind.STEP and entry.episode is not None:
                names[int(memory.replay.episode[row])] = Episode(entry.edge, entry.run, entry.episode)
                progress((row + 1) / total)
        if memory.tally.skipped and not memory.replay.size:
            raise UserError(f"{folder}: recorded for another task than '{self.task.name}'; give --task")
        run = _Run(folder, memory.replay, memory.ledger, sum(r.replay.size for r in self._runs))
        self._runs.append(run)
        self.episodes += [self._recorded(run, number, names[number]) for number in memory.replay.ended_episodes()]
        progress(1.0)

    def _recorded(self, run: _Run, number: int, episode: Episode) -> Recorded:
        replay, rows = run.replay, run.replay.rows(number)
        end = replay.ended(number)
        assert end is not None
        return Recorded(
            origin=Origin(run.folder, episode),
            memory_number=number,
            source=self._runs.index(run),
            rows=rows + run.offset,
            labels=run.ledger.frame_labels(number, replay),
            words=tuple(run.ledger.labels(number)),
            phases=phases(replay.state[rows], self.task),
            light=self._lights.number(signature(replay.frames[rows])),
            stamp_ns=replay.stamp_ns[rows].copy(),
            seq=replay.seq[rows].copy(),
            end=end,
            classifier_version=int(replay.classifier_version[rows[-1]]),
        )

    def frames(self, rows: I64) -> U8:
        """Frames (N, C, H, W, 3) of rows (N,)."""
        found = np.empty((len(rows), *self.task.contract().frames_shape), np.uint8)
        for run in self._runs:
            own = (rows >= run.offset) & (rows < run.offset + run.replay.size)
            found[own] = run.replay.frames[rows[own] - run.offset]
        return found

    def state(self, rows: I64) -> F32:
        """States (N, S) of rows (N,)."""
        found = np.empty((len(rows), len(self.task.contract().state)), np.float32)
        for run in self._runs:
            own = (rows >= run.offset) & (rows < run.offset + run.replay.size)
            found[own] = run.replay.state[rows[own] - run.offset]
        return found

    def truth(self, episode: Recorded) -> I8:
        """What the simulation knows of an episode's frames (T,): +1 success, -1 none, 0 where it recorded nothing."""
        success, known = read_truth(episode.origin.folder / "truth.csv").at(episode.stamp_ns)
        return np.where(known, np.where(success, 1, -1), 0).astype(np.int8)

    def said(self) -> list[tuple[Recorded, Provenance]]:
        """Every word on an ended episode and where it comes from, in order of arrival; also what was taken back."""
        known = {(e.source, e.memory_number): e for e in self.episodes}
        found = []
        for source, run in enumerate(self._runs):
            for label in run.ledger.after(0):
                episode = known.get((source, label.episode))
                if episode is not None and label.kind is not LabelKind.UNDO:
                    found.append((episode, run.ledger.provenance(label, run.replay)))
        return found

    def said_by(self, episode: Recorded, place: int) -> Label | None:
        """The word that made the label of a frame, the last one where several agree; None for an unlabelled frame."""
        run, found = self._runs[episode.source], None
        for word in sorted(episode.words, key=lambda w: w.stamp_ns):
            alone = Ledger(run.ledger.windows, self.task)
            alone.add(word)
            said = alone.frame_labels(episode.memory_number, run.replay)[place]
            found = word if said and said == episode.labels[place] else found
        return found


def read(folders: Sequence[Path], task: Task, progress: Callable[[float], None] = lambda share: None) -> Dataset:
    """Several runs as one data set. Raises UserError."""
    if not folders:
        raise UserError("no run to read; give --run RUN_FOLDER")
    dataset = Dataset(task)
    for i, folder in enumerate(folders):
        dataset.add(folder, lambda share, done=i: progress((done + share) / len(folders)))  # type: ignore[misc]
    return dataset
