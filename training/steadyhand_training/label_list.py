"""List every word that was said of a run: who, when and how, of which frames, and which version it contradicted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_training import dataset, progress
from steadyhand_training.dataset import Dataset
from steadyhand_training.review import task_name
from steadyhand_training.run_folder import RunFolder

NS_PER_S = 1e9
_DESCRIPTION = """List every word that people said of a run, in order of arrival. What was taken back stays listed.

Seconds count from the episode's first frame to the key; frames are places in the episode, from 0.

Example: steadyhand classifier labels --run runs/lift
Example: steadyhand classifier labels --run runs/lift --episode 12 --json"""


@dataclass(frozen=True)
class LabelListSettings:
    """Which run, and which of its episodes."""

    run: Path = Path("runs/latest")
    task: str = ""  # empty means the run's
    episode: Annotated[int, Field(ge=0)] = 0  # 0: all
    json: bool = False


@dataclass(frozen=True)
class Said:
    """One word: `at_s` after the episode's first frame; frames without success and with it; `version` contradicted."""

    episode: int
    word: str
    at_s: float
    who: str
    device: str
    negative: tuple[int, ...]
    positive: tuple[int, ...]
    version: int
    stands: bool


def gather(data: Dataset, episode: int = 0) -> list[Said]:
    """The words on one episode, or on all with 0."""
    return [
        Said(
            episode=recorded.origin.episode.number,
            word=word.kind.value,
            at_s=round((word.stamp_ns - int(recorded.stamp_ns[0])) / NS_PER_S, 2),
            who=word.who,
            device=word.device,
            negative=word.negative,
            positive=word.positive,
            version=word.contradicts,
            stands=word.stands,
        )
        for recorded, word in data.said()
        if episode in (0, recorded.origin.episode.number)
    ]


def spans(frames: Sequence[int]) -> str:
    """Rising places as spans: 3-7, 9."""
    parts: list[list[int]] = []
    for frame in frames:
        if parts and frame == parts[-1][-1] + 1:
            parts[-1][1:] = [frame]
        else:
            parts.append([frame])
    return ", ".join("-".join(str(end) for end in part) for part in parts)


def show(words: Sequence[Said], console: Console) -> None:
    """One row per word."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("episode", "word", "s", "who, how", "none on", "success on", "model", ""):
        table.add_column(name, overflow="fold", no_wrap=name in ("word", "who, how", ""))
    for w in words:
        version = f"v{w.version}" if w.version else "-"
        frames = spans(w.negative), spans(w.positive)
        state = "" if w.stands else "undone"
        table.add_row(str(w.episode), w.word, f"{w.at_s:.1f}", f"{w.who}, {w.device}", *frames, version, state)
    console.print(table)
    standing = sum(w.stands for w in words)
    console.print(f"{len(words)} words, {standing} of them stand")


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier labels`."""
    chosen = toml.parse_command_line(LabelListSettings, argv, "steadyhand classifier labels", _DESCRIPTION)
    task = tasks.load(chosen.task or task_name(RunFolder(chosen.run)))
    with progress.shown("reading the journal") as told:
        words = gather(dataset.read([chosen.run], task, told), chosen.episode)
    if chosen.json:
        print(json.dumps([dataclasses.asdict(w) for w in words], indent=1))
    else:
        show(words, Console())
    return 0
