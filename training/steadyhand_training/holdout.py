"""Which episodes a classifier never learned from: kept beside a fitted artifact, or in a run's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from steadyhand_models import settings as toml
from steadyhand_training import checkpoint
from steadyhand_training.dataset import Dataset, Recorded
from steadyhand_training.discards import Episode
from steadyhand_training.run_folder import RunFolder, write_whole

FIT_FILE = "fit.json"


@dataclass(frozen=True)
class FitRecord:
    """How a classifier was fitted beside a run: its standing, and the episodes that it learned from."""

    ready: bool
    objections: tuple[str, ...]
    figures: dict[str, float]
    taught: tuple[Episode, ...]
    held_out: tuple[Episode, ...]


def write(folder: Path, record: FitRecord) -> None:
    """Keep a record beside an artifact's files."""
    write_whole(folder / FIT_FILE, json.dumps(asdict(record), indent=1) + "\n")


def unseen(dataset: Dataset, artifact: Path) -> list[Recorded] | None:
    """The episodes that a classifier did not learn from, or None where nothing says which.

    An artifact of `classifier fit` says so itself; that of a trainer by the newest checkpoint of its run, where an
    episode is held out or not once and for all.
    """
    record = _fit_record(artifact / FIT_FILE)
    if record is not None:
        return [e for e in dataset.episodes if e.origin.episode not in record.taught]
    folders = {e.origin.folder for e in dataset.episodes}
    known = {folder: _held_out(folder) for folder in folders if _made_in(artifact, folder)}
    if not known or None in known.values():
        return None
    # Runs other than the one it was learned in are new to it.
    return [e for e in dataset.episodes if _is_held_out(e, known.get(e.origin.folder))]


def _is_held_out(episode: Recorded, held_out: dict[int, bool] | None) -> bool:
    return held_out is None or held_out.get(episode.memory_number, True)


def _made_in(artifact: Path, run: Path) -> bool:
    return run.resolve() in artifact.resolve().parents


def _fit_record(path: Path) -> FitRecord | None:
    if not path.is_file():
        return None
    try:
        return toml.validate(FitRecord, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise toml.SettingsError(f"{path}: cannot be read ({error}); use --all, or remove it") from None


def _held_out(run: Path) -> dict[int, bool] | None:
    """Whether each labelled episode of a run was held out, by its number in the trainer's memory."""
    saved: Sequence[Path] = checkpoint.listing(RunFolder(run).checkpoints)
    if not saved:
        return None
    try:
        data: dict[str, Any] = torch.load(saved[-1] / "correction.pt", map_location="cpu", weights_only=True)
        state = json.loads(data["state"])
        return {int(episode): bool(held) for episode, held in state["evidence"]["held_out"]}
    except (OSError, RuntimeError, UnpicklingError, KeyError, TypeError, ValueError, EOFError):
        return None
