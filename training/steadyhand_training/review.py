"""Answer the trainer's questions about stored frames: in a terminal by single keys, or from a file."""

from __future__ import annotations

import enum
import getpass
import json
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydantic
from PIL import Image
from rich.console import Console
from rich.text import Text

from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Label, LabelKind
from steadyhand_training.collect import Keys
from steadyhand_training.delivery import DeliveryError, Outbox, deliver, leftovers
from steadyhand_training.journal import REVIEW_EDGE, Journal
from steadyhand_training.labels import REVIEWS
from steadyhand_training.questions import ENLARGED, Question, read, read_skipped
from steadyhand_training.run_folder import RunFolder, write_whole

U8 = npt.NDArray[np.uint8]
DEVICE = "review"
LOOK_S = 0.2
KEYS = "y success   n not success   s skip   u undo the last   q end"
_DESCRIPTION = """Answer the trainer's questions about stored frames; it need not run meanwhile.

Answers are labels like any other, win over the classifier, and train it. Keys: y success, n not, s skip, u undo, q end.

A file of answers holds lines such as {"question": "e12-s40", "answer": "none"}; answers are success, none and skip.

Example: steadyhand classifier review --run runs/lift

Example: steadyhand classifier review --run runs/lift --answers answers.jsonl"""


class Answer(str, enum.Enum):
    """What a person says of a frame."""

    SUCCESS = "success"
    NONE = "none"
    SKIP = "skip"


ANSWER_KEYS = {"y": Answer.SUCCESS, "n": Answer.NONE, "s": Answer.SKIP}


@dataclass(frozen=True)
class ReviewSettings:
    """Which run, who answers, and from where."""

    run: Path = Path("runs/latest")
    who: str = ""  # kept with every answer; empty means the login name
    answers: Path | None = None  # JSON lines instead of keys


@dataclass(frozen=True)
class Line:
    """One line of an answers file."""

    question: str
    answer: Answer


@dataclass(frozen=True)
class _Given:
    question: Question
    event_id: str  # empty for a skip


def task_name(folder: RunFolder) -> str:
    """The task of a run, from the settings of whoever made it. Raises UserError."""
    for name in ("trainer.toml", "collect.toml"):
        path = folder.settings.with_name(name)
        if path.is_file():
            found = toml.tomllib.loads(path.read_text(encoding="utf-8")).get("task")
            if isinstance(found, str):
                return found
    raise UserError(f"{folder.root}: no run of a trainer; give --run the folder that `steadyhand train` was given")


class Sitting:
    """One person's answers: each is kept in the outbox, then handed over at once where that is possible."""

    def __init__(self, folder: RunFolder, contract: Contract, who: str) -> None:
        self.folder, self.who = folder, who
        self.problem = ""  # why the last answer is still in the outbox
        self.answered = 0
        self.passed_over = 0
        self._contract = contract
        self._name = f"{REVIEW_EDGE}{_plain(who)}-{time.time_ns():x}"
        self._boxes: dict[str, Outbox] = {}
        self._given: list[_Given] = []

    def open_questions(self) -> list[Question]:
        """What waits for an answer, the most urgent first; not what was answered while no trainer ran."""
        skipped = read_skipped(self.folder.skipped)
        said = _said(self.folder)
        waiting = [q for q in read(self.folder.questions) if not q.answered_by and q.id not in skipped]
        waiting = [q for q in waiting if not said & {(q.edge, q.run, q.episode, s) for s in q.steps}]
        return sorted(waiting, key=lambda q: (not q.word, -q.score))

    def answer(self, question: Question, answer: Answer) -> None:
        if answer is Answer.SKIP:
            self._skip(question.id, True)
            self._given.append(_Given(question, ""))
            self.passed_over += 1
            return
        kind = LabelKind.REVIEW_SUCCESS if answer is Answer.SUCCESS else LabelKind.REVIEW_NONE
        self._given.append(_Given(question, self._say(question, kind)))
        self.answered += 1

    def undo(self) -> Question | None:
        """Take the last answer back; the question that is open again, None when nothing was answered."""
        if not self._given:
            return None
        last = self._given.pop()
        if last.event_id:
            self._say(last.question, LabelKind.UNDO, undo_of=last.event_id)
            self.answered -= 1
        else:
            self._skip(last.question.id, False)
            self.passed_over -= 1
        return last.question

    def close(self) -> None:
        """Hand over what is left, and tidy up what has been."""
        for box in self._boxes.values():
            self._hand_over(box)
            if not self.problem:
                box.empty()
            box.close()

    def _say(self, q: Question, kind: LabelKind, undo_of: str = "") -> str:
        box = self._box(q.run)
        event_id = f"{self._name}-{len(box.parcel.records) + 1}"
        box.add(
            Label(
                event_id=event_id,
                kind=kind,
                stamp_ns=q.stamp_ns,
                who=self.who,
                device=DEVICE,
                reaction_s=0.0,
                run=q.run,
                episode=q.episode,
                contradicts=q.version,
                undo_of=undo_of,
                steps=q.steps,
                about=q.edge,
                said_unix_s=time.time(),
            )
        )
        self._hand_over(box)
        return event_id

    def _box(self, run: str) -> Outbox:
        if run not in self._boxes:
            path = self.folder.outbox / f"{self._name}-{len(self._boxes)}.jsonl"
            self._boxes[run] = Outbox(path, self._name, run)
        return self._boxes[run]

    def _hand_over(self, box: Outbox) -> None:
        self.problem = ""
        try:
            deliver(self.folder, self._contract, box.parcel)
        except DeliveryError as error:
            self.problem = str(error)

    def _skip(self, question: str, skip: bool) -> None:
        skipped = read_skipped(self.folder.skipped) - {question} | ({question} if skip else set())
        write_whole(self.folder.skipped, json.dumps(sorted(skipped)) + "\n")


def _said(folder: RunFolder) -> set[tuple[str, str, int, int]]:
    """(edge, run, episode, step) of every frame that a review in the journal speaks of and was not taken back."""
    if not folder.journal.is_file():
        return set()
    journal = Journal(folder.journal)
    try:
        entries = [e for e in journal.all_labels() if e.edge.startswith(REVIEW_EDGE)]
    finally:
        journal.close()
    labels = [label for e in entries if isinstance(label := e.message, Label)]
    undone = {v.undo_of for v in labels if v.kind is LabelKind.UNDO}
    spoken = [v for v in labels if v.kind in REVIEWS and v.event_id not in undone]
    return {(v.about, v.run, v.episode, step) for v in spoken for step in v.steps}


def _plain(who: str) -> str:
    """A name as it may stand in a file's name."""
    return "".join(c for c in who if c.isascii() and c.isalnum()) or "someone"


def send_leftovers(folder: RunFolder, contract: Contract) -> int:
    """Hand over what earlier sittings could not; how many answers that were."""
    sent = 0
    for box in leftovers(folder):
        with box:
            try:
                deliver(folder, contract, box.parcel)
            except DeliveryError:
                continue
            sent += len(box.parcel.records)
            box.empty()
    return sent


# -- the terminal ------------------------------------------------------------------------------------------------------


def half_blocks(pixels: U8, width: int) -> Text:
    """A picture (H, W, 3) as text of at most `width` columns: the upper pixel of two in front, the lower behind."""
    every = max(1, -(-pixels.shape[1] // max(1, width)))
    small = pixels[::every, ::every]
    if len(small) % 2:
        small = np.concatenate([small, small[-1:]])
    text = Text(no_wrap=True)
    for upper, lower in zip(small[::2], small[1::2]):
        for (r, g, b), (x, y, z) in zip(upper.tolist(), lower.tolist()):
            text.append("▀", f"rgb({r},{g},{b}) on rgb({x},{y},{z})")
        text.append("\n")
    return text


def show(console: Console, folder: RunFolder, question: Question, place: int, total: int) -> None:
    """One question: its picture, why it is asked, and what the classifier thinks."""
    path = folder.picture(question.id)
    console.rule(f"{place} of {total}: is this success?")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[::ENLARGED, ::ENLARGED]
        console.print(half_blocks(pixels, console.width))
    except OSError as error:
        console.print(f"(the picture cannot be read: {error})", markup=False)
    heads = " ".join(f"{p:.2f}" for p in question.heads)
    console.print(f"{path}", markup=False, soft_wrap=True)
    console.print(
        f"{question.id}: episode {question.episode}, step {question.shown}; "
        f"classifier v{question.version} says {heads}\n"
        f"asked because {question.why}\n{KEYS}",
        markup=False,
        highlight=False,
    )


def ask_all(sitting: Sitting, console: Console) -> None:
    """Every open question, by keys, until they are answered or q is pressed."""
    waiting = sitting.open_questions()
    place = 0
    with Keys() as keys:
        while place < len(waiting):
            show(console, sitting.folder, waiting[place], place + 1, len(waiting))
            key = _key(keys)
            if key == "q":
                return
            if key == "u":
                place -= sitting.undo() is not None
            elif key in ANSWER_KEYS:
                sitting.answer(waiting[place], ANSWER_KEYS[key])
                place += 1
            if sitting.problem:
                console.print(f"kept here until the trainer takes it: {sitting.problem}", markup=False)


def _key(keys: Keys) -> str:
    """The next key that means something."""
    while True:
        select.select([sys.stdin], [], [], LOOK_S)
        key = keys.read().lower()
        if key in (*ANSWER_KEYS, "u", "q"):
            return key


def answer_from(sitting: Sitting, path: Path) -> int:
    """Answers of a file of JSON lines; how many of its lines were of no use. Raises UserError when it is not one."""
    try:
        texts = [t for t in path.read_text(encoding="utf-8").splitlines() if t.strip()]
        lines = [pydantic.TypeAdapter(Line).validate_json(text) for text in texts]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    waiting = {q.id: q for q in sitting.open_questions()}
    for line in lines:
        question = waiting.pop(line.question, None)
        if question is None:
            print(f"no open question {line.question}", file=sys.stderr)
            continue
        sitting.answer(question, line.answer)
    return len(lines) - sitting.answered - sitting.passed_over


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier review`: 0 when all that was given was of use, 1 when some lines of a file were not."""
    chosen = toml.parse_command_line(ReviewSettings, argv, "steadyhand classifier review", _DESCRIPTION)
    folder = RunFolder(chosen.run)
    contract = tasks.load(task_name(folder)).contract()
    if chosen.answers is None and not sys.stdin.isatty():
        raise UserError("keys come from a terminal and this is none; give --answers FILE")
    sent = send_leftovers(folder, contract)
    if sent:
        print(f"{sent} answers of earlier sittings handed over")
    sitting, useless = Sitting(folder, contract, chosen.who or getpass.getuser()), 0
    try:
        if chosen.answers is not None:
            useless = answer_from(sitting, chosen.answers)
        else:
            ask_all(sitting, Console())
    finally:
        sitting.close()
        print(f"{sitting.answered} answered, {sitting.passed_over} skipped, {len(sitting.open_questions())} open")
        if sitting.problem:
            print(f"kept in {folder.outbox} and sent next time: {sitting.problem}")
    return 1 if useless else 0
