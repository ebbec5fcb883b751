"""The trainer's side of a run folder: where its files lie, and the lock that keeps a second trainer out."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from steadyhand_models.cli import UserError


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "settings" / "trainer.toml"

    @property
    def journal(self) -> Path:
        return self.root / "journal.sqlite"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def decisions(self) -> Path:
        """Every decision about a classifier, with the figures that it rests on."""
        return self.root / "decisions.jsonl"

    @property
    def discards(self) -> Path:
        """Episodes that were taken back."""
        return self.root / "discarded.json"

    @property
    def questions(self) -> Path:
        """What the trainer asks; its pictures lie in a folder beside it."""
        return self.root / "questions.json"

    def picture(self, question: str) -> Path:
        return self.root / "questions" / f"{question}.png"

    @property
    def skipped(self) -> Path:
        """Questions that a person would not answer."""
        return self.root / "questions_skipped.json"

    @property
    def outbox(self) -> Path:
        """Answers that no trainer has acknowledged yet."""
        return self.root / "outbox"

    @property
    def address(self) -> Path:
        """The addresses that a running trainer really got."""
        return self.root / "trainer.json"

    def claim(self) -> IO[str]:
        """Make the folder and lock it until the file is closed. Raises UserError when it cannot be ours."""
        try:
            self.settings.parent.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "trainer.lock").open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.root}: cannot be written ({error.strerror}); choose another --run folder") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise UserError(f"{self.root}: another trainer works there; stop it or choose another --run") from None
        return lock

    def write_addresses(self, link: str, status: str) -> None:
        text = json.dumps({"pid": os.getpid(), "link": link, "status": status})
        write_whole(self.address, text)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file, and the folder it lies in, so that a reader sees the old or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    aside.replace(path)
