"""What a trainer remembers of its run: entries taken into memory, checkpoints, and the way back after a crash."""

from __future__ import annotations

import json
from pathlib import Path

from steadyhand_models.cli import UserError
from steadyhand_training import checkpoint, log
from steadyhand_training.attention import Attention, Champion
from steadyhand_training.correction import Correction, CorrectionError
from steadyhand_training.discards import Discards
from steadyhand_training.journal import Entry, Journal
from steadyhand_training.learner import CheckpointError, Learner
from steadyhand_training.memory import Memory, News
from steadyhand_training.run_folder import RunFolder

ENTRIES_PER_TURN = 64


class Past:
    """Keeps learner, correction and attention in checkpoints, and brings all of them back together."""

    def __init__(
        self, folder: RunFolder, memory: Memory, learner: Learner, correction: Correction, attention: Attention
    ) -> None:
        self._folder, self._memory, self._learner = folder, memory, learner
        self._correction, self._attention = correction, attention
        self._journal = Journal(folder.journal)
        self._discards = Discards(folder.discards)
        self._saver = checkpoint.Saver(folder.checkpoints)

    def close(self) -> None:
        """Wait until a checkpoint that is being written is whole. Raises OSError where that failed."""
        try:
            self._saver.wait()
        finally:
            self._journal.close()

    def news(self, limit: int = ENTRIES_PER_TURN) -> list[Entry]:
        """The journal's next entries that memory has not taken in."""
        return self._journal.after(self._memory.position, limit)

    def remember(self, entry: Entry) -> News:
        """Take an entry into memory unless its episode was taken back."""
        if self._discards.hold(entry):
            self._memory.position = entry.position
            return News()
        return self._memory.consume(entry)

    @property
    def saving(self) -> bool:
        return self._saver.busy

    def save(self, learn_from_step: int, wait: bool) -> None:
        """A checkpoint of what cannot be worked out from the journal, written beside learning unless it is waited for.

        Raises OSError where it cannot be written.
        """
        snapshot = self._learner.snapshot()

        def fill(folder: Path) -> None:
            self._correction.save(folder / "correction.pt")
            state = {
                "position": self._memory.position,
                "learn_from_step": learn_from_step,
                "attention": self._attention.state(),
            }
            (folder / "trainer.json").write_text(json.dumps(state), encoding="utf-8")

        self._saver.start(fill, lambda folder: snapshot.write(folder / "learner.pt"))
        if wait:
            self._saver.wait()

    def resume(self) -> int | None:
        """Back to the newest checkpoint that can be read; the recorded steps at which learning began.

        None where there is no checkpoint. Raises UserError where none can be read.
        """
        folders = checkpoint.listing(self._folder.checkpoints)
        for folder in reversed(folders):
            try:
                learn_from_step = self._restore(folder)
            except (OSError, ValueError, KeyError, CorrectionError) as problem:
                log.warn("checkpoint.unusable", folder=folder, reason=problem)
                continue
            log.info("trainer.resumed", checkpoint=folder.name, updates=self._learner.updates)
            return learn_from_step
        if folders:
            raise UserError(
                f"{self._folder.checkpoints}: no checkpoint can be read; "
                "move the folder away to learn again from the journal"
            )
        return None

    def _restore(self, folder: Path) -> int:
        state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
        self._recall(int(state["position"]))
        self._correction.load(folder / "correction.pt")
        self._learner.load(folder / "learner.pt")
        learn_from_step = int(state["learn_from_step"])
        self._attention.restore(state["attention"], champion_of(self._correction))
        return learn_from_step

    def _recall(self, position: int) -> None:
        """Remember the journal up to a checkpoint's position, without learning from it again."""
        while self._memory.position < position:
            entries = self.news()
            if not entries:
                raise CheckpointError(f"the journal ends at {self._memory.position}, the checkpoint is of {position}")
            for entry in entries:
                if entry.position <= position:
                    self.remember(entry)


def champion_of(correction: Correction) -> Champion | None:
    """The classifier in force, for those who look at it."""
    if correction.scores is None:
        return None
    return Champion(correction.version, correction.since, correction.scores, correction.rule)
