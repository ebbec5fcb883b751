"""Questions about a real trainer's frames, answered beside it; every answer arrives once, whoever is away."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_trainer import DEMONSTRATIONS, TINY, Bench, one_thread
from training_steps import CONTRACT, RUN, driven, label

from steadyhand_models import settings as toml
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Label, LabelKind, Source
from steadyhand_training import review
from steadyhand_training.asking import AskingSettings
from steadyhand_training.delivery import Outbox, leftovers
from steadyhand_training.journal import Journal
from steadyhand_training.questions import Question, read
from steadyhand_training.review import Answer, Sitting, send_leftovers

__all__ = ["one_thread"]
EAGER = dataclasses.replace(TINY, asking=AskingSettings(least_score=0.0))


class Run:
    """A trainer with questions, its folder locked as a running one's is, and its ingest listening."""

    def __init__(self, root: Path) -> None:
        self.bench = Bench(root, EAGER)
        self.folder = self.bench.folder
        self.folder.settings.write_text(toml.to_toml(EAGER), encoding="utf-8")
        self.lock: IO[str] | None = None
        self.bench.feed([*DEMONSTRATIONS, *driven(4, Source.POLICY), *driven(5, Source.POLICY)])

    def listen(self) -> None:
        """As a running trainer: the folder is taken and the link is open."""
        self.lock = self.folder.claim()
        self.bench.trainer.ingest.start()
        self.folder.write_addresses(self.bench.trainer.ingest.endpoint, "")

    def sitting(self) -> Sitting:
        return Sitting(self.folder, CONTRACT, "bea")

    def open(self) -> list[Question]:
        return self.bench.trainer.attention.questions.open

    def said(self, question: Question) -> list[int]:
        """What the trainer's ledger says of the frames in question."""
        memory = self.bench.trainer.memory
        episode = memory.episode(question.edge, question.run, question.episode)
        rows = memory.replay.rows(episode)
        labels = memory.ledger.frame_labels(episode, memory.replay)
        return [int(w) for w in labels[np.isin(memory.replay.seq[rows], question.steps)]]

    def reviews(self) -> list[Label]:
        journal = Journal(self.folder.journal)
        entries = [e for e in journal.all_labels() if e.edge.startswith("review-")]
        journal.close()
        return [e.message for e in entries if isinstance(e.message, Label)]

    def stop(self) -> None:
        self.bench.close()
        if self.lock is not None:
            self.lock.close()
            self.lock = None


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.stop()


def test_an_ended_episode_leaves_at_most_five_questions_with_pictures_of_both_cameras(run: Run) -> None:
    asked = run.open()
    assert 1 <= len(asked) <= 10 and {q.episode for q in asked} <= {1, 2, 3, 4, 5}
    assert [q.id for q in read(run.folder.questions) if not q.answered_by] != []
    height, width = CONTRACT.frames_shape[1:3]
    with Image.open(run.folder.picture(asked[0].id)) as image:
        assert image.size == (4 * 2 * width, 4 * height)
    assert run.bench.trainer._view().metrics["questions"] == len(asked)


def test_an_answer_reaches_a_running_trainer_trains_and_settles_its_question(run: Run) -> None:
    run.listen()
    sitting = run.sitting()
    question = sitting.open_questions()[0]
    sitting.answer(question, Answer.SUCCESS)
    sitting.close()
    run.bench.drain()
    assert sitting.problem == "" and run.said(question) == [1]
    assert question.id not in {q.id for q in run.open()}
    assert not list(run.folder.outbox.iterdir())


def test_who_said_it_how_of_which_frames_and_against_which_version_is_kept(run: Run) -> None:
    sitting = run.sitting()
    question = sitting.open_questions()[0]
    sitting.answer(question, Answer.NONE)
    sitting.close()
    (said,) = run.reviews()
    assert (said.who, said.device, said.kind) == ("bea", "review", LabelKind.REVIEW_NONE)
    assert (said.about, said.run, said.episode, said.steps) == ("edge", RUN, question.episode, question.steps)
    assert said.contradicts == question.version >= 1 and said.said_unix_s > 1e9


def test_without_a_trainer_answers_go_into_the_journal_and_the_next_trainer_finds_them(run: Run) -> None:
    sitting = run.sitting()
    question = sitting.open_questions()[0]
    sitting.answer(question, Answer.SUCCESS)
    sitting.close()
    assert question.id not in {q.id for q in run.sitting().open_questions()}
    run.bench.restart()
    assert run.said(question) == [1] and question.id not in {q.id for q in run.open()}


def test_what_the_trainer_did_not_take_is_sent_next_time_and_once(run: Run) -> None:
    lock = run.folder.claim()  # a trainer that starts: it holds the folder and does not listen
    sitting = run.sitting()
    first, second = sitting.open_questions()[:2]
    sitting.answer(first, Answer.SUCCESS)
    sitting.answer(second, Answer.NONE)
    sitting.close()
    assert "not listening" in sitting.problem and run.reviews() == []
    lock.close()
    run.listen()
    copy = [p.read_bytes() for p in run.folder.outbox.iterdir()]
    assert send_leftovers(run.folder, CONTRACT) == 2 and send_leftovers(run.folder, CONTRACT) == 0
    # A sitting that died after the trainer had acknowledged leaves its box; it is dropped as known.
    (run.folder.outbox / "left.jsonl").write_bytes(copy[0])
    assert send_leftovers(run.folder, CONTRACT) == 2
    run.bench.drain()
    assert len(run.reviews()) == 2 and run.said(first) == [1] and run.said(second) == [-1]


def test_the_box_of_a_sitting_that_lasts_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "outbox" / "box.jsonl"
    folder = review.RunFolder(tmp_path)
    with Outbox(path, "review-bea", RUN) as box:
        box.add(label(1, 0, LabelKind.FAILURE))
        assert leftovers(folder) == []
    (left,) = leftovers(folder)
    with left:
        assert left.parcel.edge == "review-bea" and left.labels[0].kind is LabelKind.FAILURE


def test_an_answer_taken_back_leaves_the_frame_as_it_was_and_asks_again(run: Run) -> None:
    run.listen()
    sitting = run.sitting()
    question = sitting.open_questions()[0]
    sitting.answer(question, Answer.SUCCESS)
    run.bench.drain()
    assert run.said(question) == [1]
    assert sitting.undo() == question
    run.bench.drain()
    assert run.said(question) == [0] and question.id in {q.id for q in run.open()}
    assert sitting.answered == 0 and sitting.undo() is None
    sitting.close()


def test_a_question_passed_over_does_not_come_again_unless_that_is_undone(run: Run) -> None:
    sitting = run.sitting()
    question = sitting.open_questions()[0]
    sitting.answer(question, Answer.SKIP)
    assert question.id not in {q.id for q in run.sitting().open_questions()} and run.reviews() == []
    run.bench.feed(driven(6, Source.POLICY))
    assert question.id not in {q.id for q in run.open()}
    sitting.undo()
    assert question.id not in review.read_skipped(run.folder.skipped)
    sitting.close()


def test_questions_survive_a_restart(run: Run) -> None:
    before = run.open()
    run.bench.restart()
    assert [q.id for q in run.open()] == [q.id for q in before]


def test_a_doubted_flag_is_asked_about_first_and_the_answer_is_about_all_its_frames(run: Run) -> None:
    trainer = run.bench.trainer
    run.bench.feed([label(4, 9, LabelKind.FALSE_POSITIVE)])
    trainer.correction.evidence.set_aside([4])
    run.bench.feed(driven(6, Source.POLICY))
    first = run.open()[0]
    assert first.episode == 4 and first.word == "false positive (ann)" and len(first.steps) > 1
    assert run.said(first) == [-1] * len(first.steps)
    sitting = run.sitting()
    sitting.answer(first, Answer.SUCCESS)
    sitting.close()
    run.bench.drain()
    assert run.said(first) == [1] * len(first.steps) and first.id not in {q.id for q in run.open()}


def test_of_a_doubted_word_on_the_whole_episode_the_frames_are_asked_about_that_the_champion_sees_otherwise(
    run: Run,
) -> None:
    trainer, replay = run.bench.trainer, run.bench.trainer.memory.replay
    run.bench.feed([label(4, 9, LabelKind.VERDICT_FAILURE)])
    champion, rows = trainer.correction.champion, replay.rows(4)
    denied = rows[trainer.memory.ledger.frame_labels(4, replay) < 0]
    assert champion is not None and len(denied) > 4
    champion.scores.of(rows)
    champion.scores._probabilities[rows] = 0.1
    champion.scores._probabilities[denied[:3]] = 0.99
    trainer.correction.evidence.set_aside([4])
    run.bench.feed(driven(6, Source.POLICY))
    first = run.open()[0]
    assert (first.episode, first.word) == (4, "verdict failure (ann)")
    assert first.steps == tuple(replay.seq[denied[:3]])


def test_open_questions_are_bounded_and_the_better_ones_stay(tmp_path: Path) -> None:
    settings = dataclasses.replace(EAGER, asking=AskingSettings(least_score=0.0, most_open=3, spacing_steps=1))
    bench = Bench(tmp_path, settings)
    bench.feed([*DEMONSTRATIONS, *(m for e in range(4, 8) for m in driven(e, Source.POLICY))])
    kept = bench.trainer.attention.questions.open
    assert len(kept) == 3 and len(list(bench.folder.picture("x").parent.glob("*.png"))) == 3
    assert [q.score for q in kept] == sorted((q.score for q in kept), reverse=True)
    bench.close()


def test_nothing_is_asked_where_that_is_switched_off(tmp_path: Path) -> None:
    bench = Bench(tmp_path, dataclasses.replace(TINY, asking=AskingSettings(enabled=False, least_score=0.0)))
    bench.feed([*DEMONSTRATIONS, *driven(4, Source.POLICY)])
    assert bench.trainer.attention.questions.open == [] and not bench.folder.questions.exists()
    bench.close()


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_file_of_answers_is_taken_and_what_it_does_not_know_is_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = run.sitting().open_questions()[:2]
    path = tmp_path / "answers.jsonl"
    lines = [{"question": q, "answer": a} for q, a in ((first.id, "none"), (second.id, "skip"), ("e9-s9", "success"))]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    words = ["--run", str(run.folder.root), "--who", "bea", "--answers", str(path)]
    assert review.main(words) == 1
    out = capsys.readouterr()
    assert "1 answered, 1 skipped" in out.out and "no open question e9-s9" in out.err
    run.bench.drain()
    assert run.said(first) == [-1] and run.said(second) == [0]


@pytest.mark.parametrize("text", ["no json", '{"question": "e1-s1", "answer": "perhaps"}', '{"answer": "success"}'])
def test_a_file_that_holds_no_answers_is_refused_whole(run: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"answers\.jsonl"):
        review.main(["--run", str(run.folder.root), "--answers", str(path)])
    assert run.reviews() == []


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of a trainer"):
        review.main(["--run", str(tmp_path / "none"), "--answers", "x"])


class Typist(io.StringIO):
    """A terminal's output that types the next keys whenever it is asked for one."""

    def __init__(self, terminal: int, *keys: str) -> None:
        super().__init__()
        self._terminal, self._keys = terminal, list(keys)

    def write(self, text: str) -> int:
        if review.KEYS in text and self._keys:
            os.write(self._terminal, self._keys.pop(0).encode())
        return super().write(text)


def test_keys_of_a_terminal_answer_one_question_after_the_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run.sitting().open_questions()[:2]
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        console = Console(file=Typist(master, "n", "xu", "y", "y", "q"), width=80, record=True)
        sitting = run.sitting()
        review.ask_all(sitting, console)
        sitting.close()
    os.close(master)
    run.bench.drain()
    assert run.said(first) == [1] and run.said(second) == [1] and sitting.answered == 2
    shown = console.export_text()
    assert "▀" in shown and first.why in shown.replace("\n", " ") and review.KEYS in shown
    assert str(run.folder.picture(first.id)) in shown.replace("\n", "")


def test_a_picture_is_drawn_within_the_width_two_rows_to_a_line() -> None:
    pixels = np.zeros((6, 10, 3), np.uint8)
    pixels[0, 0], pixels[1, 0] = (255, 0, 0), (0, 0, 255)
    text = review.half_blocks(pixels, 10)
    assert text.plain == ("▀" * 10 + "\n") * 3
    assert str(text.spans[0].style) == "rgb(255,0,0) on rgb(0,0,255)"
    assert max(map(len, review.half_blocks(pixels, 4).plain.splitlines())) <= 4
