"""Questions to a person about stored frames: kept in the run folder with a picture each, until they are answered."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydantic
from PIL import Image

from steadyhand_models.cli import UserError
from steadyhand_models.messages import Label
from steadyhand_training.labels import REVIEWS
from steadyhand_training.run_folder import RunFolder, write_whole

U8 = npt.NDArray[np.uint8]
ENLARGED = 4  # pixels of a kept picture for each of a frame
ANSWERED_KEPT = 50  # so that an answer can be taken back


@dataclass(frozen=True)
class Question:
    """Does this frame show success? Terms and score say why it is asked; the better ones come first.

    `steps` are the frames that the answer is about, `shown` the one in the picture; `word` is what a person said of
    them already, where that is in doubt.
    """

    id: str
    edge: str
    run: str
    episode: int  # as the robot numbers it
    steps: tuple[int, ...]
    shown: int
    stamp_ns: int  # of the shown frame
    version: int  # classifier
    heads: tuple[float, ...]  # probability of each
    score: float
    disagreement: float = 0.0
    novelty: float = 0.0
    effect: float = 0.0
    word: str = ""
    answered_by: str = ""  # event id of the label that answered it

    @property
    def why(self) -> str:
        """In words, the strongest reason first."""
        if self.word:
            return f"a person said {self.word}; classifier and similar frames say otherwise"
        terms = {
            "the heads disagree": self.disagreement,
            "nothing like it is labelled": self.novelty,
            "the answer changes a reward": self.effect,
        }
        told = [name for name, value in sorted(terms.items(), key=lambda t: -t[1]) if value >= 0.2]
        return ", ".join(told) or "it may be unclear"


_FILE = pydantic.TypeAdapter(list[Question])


def read(path: Path) -> list[Question]:
    """Questions of a file, none where there is no file. Raises UserError when it cannot be read."""
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error)[:200]}); remove it to be asked anew") from None


def read_skipped(path: Path) -> set[str]:
    """Ids of the questions that a person did not want to answer."""
    try:
        return set(pydantic.TypeAdapter(list[str]).validate_json(path.read_bytes()))
    except (OSError, ValueError):
        return set()


def picture(frames: U8) -> bytes:
    """A PNG of frames (C, H, W, 3): the cameras side by side, enlarged."""
    row = np.concatenate(list(frames), axis=1)
    data = io.BytesIO()
    Image.fromarray(row.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)).save(data, "PNG")
    return data.getvalue()


class Questions:
    """A run's questions, open and lately answered; every change is written at once."""

    def __init__(self, folder: RunFolder) -> None:
        """Raises UserError when there are questions that cannot be read."""
        self._folder = folder
        self._all = {q.id: q for q in read(folder.questions)}

    @property
    def open(self) -> list[Question]:
        """What waits for an answer, the most urgent first: doubted words, then the highest score."""
        return sorted((q for q in self._all.values() if not q.answered_by), key=lambda q: (not q.word, -q.score))

    @property
    def known(self) -> list[Question]:
        """Open and answered ones."""
        return list(self._all.values())

    @property
    def skipped(self) -> set[str]:
        return read_skipped(self._folder.skipped)

    def ask(self, asked: Iterable[tuple[Question, U8]], budget: int) -> None:
        """Add questions with their frames (C, H, W, 3); of more than `budget` open ones the least urgent go."""
        new = [(q, frames) for q, frames in asked if q.id not in self._all]
        for question, frames in new:
            self._all[question.id] = question
            write_whole(self._picture(question), picture(frames))
        surplus = self.open[budget:]
        self._drop(surplus)
        if new or surplus:
            self._write()

    def withdraw(self, ids: Collection[str]) -> None:
        """Take questions away that nobody need answer any more."""
        gone = [q for q in self._all.values() if q.id in ids]
        if gone:
            self._drop(gone)
            self._write()

    def answered(self, label: Label, edge: str, number: int) -> None:
        """A review's label came, about an episode of that edge's numbering: it settles what it is about."""
        if label.kind not in REVIEWS:
            return
        place = (edge, label.run, number)
        about = [q for q in self.open if (q.edge, q.run, q.episode) == place and set(q.steps) & set(label.steps)]
        for q in about:
            self._all[q.id] = dataclasses.replace(self._all.pop(q.id), answered_by=label.event_id)
        self._drop([q for q in self._all.values() if q.answered_by][:-ANSWERED_KEPT])
        if about:
            self._write()

    def taken_back(self, event_id: str) -> None:
        """An answer was taken back: its question is open again."""
        found = [q for q in self._all.values() if q.answered_by == event_id]
        for q in found:
            self._all[q.id] = dataclasses.replace(q, answered_by="")
        if found:
            self._write()

    def _drop(self, questions: Iterable[Question]) -> None:
        for q in questions:
            del self._all[q.id]
            self._picture(q).unlink(missing_ok=True)

    def _picture(self, question: Question) -> Path:
        return self._folder.picture(question.id)

    def _write(self) -> None:
        write_whole(self._folder.questions, _FILE.dump_json(list(self._all.values()), indent=1).decode() + "\n")
