"""Episodes that their operator took back: they stay in the journal, and nothing is learned from them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from steadyhand_models.cli import UserError
from steadyhand_training.journal import Entry
from steadyhand_training.run_folder import write_whole


@dataclass(frozen=True)
class Episode:
    """One episode of one robot's run."""

    edge: str
    run: str
    number: int


class Discards:
    """The list in a run folder, in the order of taking back; every change is written at once."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file is there and cannot be read."""
        self.path = path
        self._episodes: list[Episode] = []
        if path.is_file():
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
                self._episodes = [Episode(str(r["edge"]), str(r["run"]), int(r["number"])) for r in rows]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: cannot be read ({error!r}); mend it, or remove it to keep all") from None

    def __len__(self) -> int:
        return len(self._episodes)

    def hold(self, entry: Entry) -> bool:
        """Whether a record of the journal belongs to a discarded episode."""
        return entry.episode is not None and Episode(entry.edge, entry.run, entry.episode) in self._episodes

    def add(self, episode: Episode) -> None:
        """Take an episode back."""
        self._episodes.append(episode)
        self._write()

    def restore(self) -> Episode | None:
        """Count the episode again that was taken back last; None when there is none."""
        if not self._episodes:
            return None
        episode = self._episodes.pop()
        self._write()
        return episode

    def _write(self) -> None:
        write_whole(self.path, json.dumps([asdict(episode) for episode in self._episodes], indent=1) + "\n")
