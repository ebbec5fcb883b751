"""Fit a reward classifier from the labelled frames of recorded runs, and say whether it is ready."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from steadyhand_models import durable, keys, wire
from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.artifact import Artifact, Manifest, digest
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_models.nets import export
from steadyhand_models.registry import Registry
from steadyhand_training import crossfit, dataset, gallery, holdout, progress
from steadyhand_training.crossfit import Crossfit, CrossfitSettings
from steadyhand_training.dataset import Dataset, Recorded
from steadyhand_training.holdout import FitRecord
from steadyhand_training.run_folder import write_whole
from steadyhand_training.scoring import FILES

Count = Annotated[int, Field(ge=1)]
GOLDEN_FRAMES = 8
TOLERANCE = 1e-4  # as what a trainer publishes
SHOWN_EPISODES = 12
DEFAULT_OUT = Path("runs/classifier")
_DESCRIPTION = """Fit a reward classifier from the labelled frames of recorded runs.

Whole episodes are dealt into folds; each is judged by a network that learned from the others, and temperature and
threshold come from all of these verdicts. The network of the first fold is exported. A classifier below the target is
not written (exit code 1) unless --even-if-not-ready is given, and then it is marked.

Example: steadyhand classifier fit --run runs/lift --out runs/lift-classifier --gallery doubts.html
Example: steadyhand classifier fit --run runs/monday runs/tuesday --registry runs/lift/edge/models"""


@dataclass(frozen=True)
class ClassifierFitSettings:
    """What to fit from, what is enough, and where it goes."""

    run: tuple[Path, ...] = ()
    task: str = "lift"
    out: Path | None = None  # folder of the artifact; runs/classifier when there is no --registry either
    registry: Path | None = None  # published there as the next version instead
    positive_frames: Count = 200  # HIL-SERL's classifier; fewer are refused
    negative_frames: Count = 1000  # HIL-SERL's classifier; fewer are refused
    even_if_not_ready: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=1, le=256)] = 1  # as the trainer's
    json: Path | None = None  # the figures, for programs
    gallery: Path | None = None  # .html page or .png sheet of what the networks and people disagree on
    gallery_frames: Annotated[int, Field(ge=1, le=500)] = 24
    crossfit: CrossfitSettings = field(default_factory=CrossfitSettings)


def check_enough(data: Dataset, chosen: ClassifierFitSettings) -> None:
    """Raises UserError that says what is missing and how to collect it."""
    spoken = data.spoken_of
    have = [
        ("labelled frames of success", _frames(spoken, 1), chosen.positive_frames),
        ("labelled frames of anything else", _frames(spoken, -1), chosen.negative_frames),
        ("episodes with success", sum(bool((e.labels > 0).any()) for e in spoken), chosen.crossfit.folds),
        ("episodes with anything else", sum(bool((e.labels < 0).any()) for e in spoken), chosen.crossfit.folds),
    ]
    missing = [f"{wanted - count} {what} ({count} of {wanted})" for what, count, wanted in have if count < wanted]
    if missing:
        raise UserError(
            f"not enough to fit from: missing {', '.join(missing)}. Collect more with `steadyhand collect --run "
            f"{chosen.run[-1]}`; frames count once their episode has a word"
        )


def _frames(episodes: Sequence[Recorded], sign: int) -> int:
    return sum(int((e.labels == sign).sum()) for e in episodes)


def artifact_of(found: Crossfit, data: Dataset, version: int, parent: int, ready: bool) -> Artifact:
    """The network exported, checked, and signed where this user has a key. Raises ExportError."""
    contract = data.task.contract()
    total = sum(len(e.rows) for e in data.episodes)
    samples = data.frames(np.unique(np.linspace(0, total - 1, GOLDEN_FRAMES).astype(np.int64)))
    model, golden = export.classifier(found.net, contract, samples)
    return keys.signed(
        Artifact(
            Manifest(
                channel=Channel.CLASSIFIER,
                version=version,
                parent=parent,
                contract_hash=contract.hash,
                sha256=digest(model, golden),
                training_step=total,
                created_unix_s=time.time(),
                boundary="episode",
                tolerance=TOLERANCE,
                threshold=found.rule.threshold,
                debounce_frames=found.rule.debounce_frames,
                pessimism=found.rule.pessimism,
                metrics=figures(found) | {"ready": float(ready)},
            ),
            model,
            golden,
        )
    )


def figures(found: Crossfit) -> dict[str, float]:
    """What the manifest says of a fitted classifier; every episode is judged by a network that did not see it."""
    return {
        "threshold": found.rule.threshold,
        "temperature": float(found.net.temperature),
        "held_out_balanced_accuracy": found.quality.balanced_accuracy,
        "held_out_refuted_episodes": float(found.quality.refuted),
        "held_out_false_episodes": float(found.quality.false),
        "held_out_false_bound": found.quality.false_bound,
        "held_out_recall": found.quality.recall,
        "positive_frames": float(found.frames.positive),
        "negative_frames": float(found.frames.negative),
        "false_positive_rate": found.frames.false_positive_rate.value or 0.0,
        "calibration_error": found.frames.calibration_error or 0.0,
    }


def show(found: Crossfit, seconds: float, console: Console) -> None:
    """The figures as a table."""
    frames, episodes = found.frames, found.episodes
    table = Table(
        title=f"{frames.positive} frames of success and {frames.negative} of anything else, from {frames.episodes} "
        f"episodes, in {seconds / 60:.1f} minutes",
        caption="each episode judged by a network that never saw it",
        show_header=False,
    )
    rate, bound = frames.false_positive_rate, found.quality.false_bound
    rows = [
        ("balanced accuracy of frames", f"{found.quality.balanced_accuracy:.1%}"),
        ("false positive rate of frames", f"{rate.value:.2%} (95%: {rate.lo:.2%} to {rate.hi:.2%})"),
        ("false successes", f"{episodes.false} of {episodes.refuted} episodes, at most {bound:.1%} (95%)"),
        ("successes found", f"{episodes.found} of {episodes.confirmed} episodes"),
        ("calibration error", f"{frames.calibration_error or 0.0:.3f}"),
        ("threshold", f"{found.rule.threshold:.2f}, {found.rule.debounce_frames} frames in a row"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if found.contradicted:
        names = ", ".join(e.origin.name for e in found.contradicted[:SHOWN_EPISODES])
        more = len(found.contradicted) - SHOWN_EPISODES
        print(f"wrong there, or the words are: {names}{f' and {more} more' if more > 0 else ''}; --gallery shows them")


def write(artifact: Artifact, record: FitRecord, chosen: ClassifierFitSettings) -> Path:
    """Put the artifact and its record where they were wanted. Raises UserError when that cannot be written."""
    try:
        if chosen.registry is not None:
            folder = Registry(chosen.registry).publish(artifact)
            holdout.write(folder, record)
            return folder
        return _write_folder(artifact, record, chosen.out or DEFAULT_OUT)
    except OSError as error:
        raise UserError(f"{chosen.registry or chosen.out}: cannot be written ({error.strerror})") from None


def _write_folder(artifact: Artifact, record: FitRecord, out: Path) -> Path:
    """The artifact's files in a folder that appears whole."""
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    content = (artifact.manifest.to_json().encode(), wire.encode(artifact.golden), artifact.model)
    for name, data in zip(FILES, content):
        durable.write(aside / name, data)
    holdout.write(aside, record)
    if out.is_dir():
        out.rmdir()  # empty: `_check_destination` said so
    aside.rename(out)
    return out


def _check_destination(chosen: ClassifierFitSettings) -> None:
    """Before minutes of fitting. Raises UserError."""
    if chosen.out is not None and chosen.registry is not None:
        raise UserError("--out and --registry are two places for one classifier; give one of them")
    out = chosen.out or DEFAULT_OUT
    if chosen.registry is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose another --out, or remove it")
    if chosen.gallery is not None:
        gallery.renderer(chosen.gallery)


def _next_version(chosen: ClassifierFitSettings) -> tuple[int, int]:
    """(version, parent) of what is about to be written."""
    newest = 0 if chosen.registry is None else Registry(chosen.registry).newest(Channel.CLASSIFIER) or 0
    return newest + 1, newest


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier fit`: 0 when a classifier was written, 1 when it is not ready."""
    chosen = toml.parse_command_line(ClassifierFitSettings, argv, "steadyhand classifier fit", _DESCRIPTION)
    _check_destination(chosen)
    torch.set_num_threads(chosen.threads)
    begun_s = time.monotonic()
    with progress.shown("reading") as tell:
        data = dataset.read(chosen.run, tasks.load(chosen.task), tell)
    check_enough(data, chosen)
    with progress.shown("fitting") as tell:
        found = crossfit.crossfit(data, chosen.crossfit, chosen.seed, tell)
    show(found, time.monotonic() - begun_s, Console())
    against = crossfit.objections(found, chosen.crossfit.gate)
    record = FitRecord(
        ready=not against,
        objections=against,
        figures=figures(found),
        taught=tuple(e.origin.episode for e in found.taught),
        held_out=tuple(e.origin.episode for e in found.held_out),
    )
    if chosen.json is not None:
        _write_json(chosen.json, record)
    if chosen.gallery is not None:
        shown = gallery.exhibits(data, found.judged, found.scored, found.rule, chosen.gallery_frames, truth=False)
        gallery.write(chosen.gallery, "people and a classifier that never heard them", shown)
        print(f"gallery: {chosen.gallery}")
    return _finish(found, data, record, chosen)


def _finish(found: Crossfit, data: Dataset, record: FitRecord, chosen: ClassifierFitSettings) -> int:
    """Write what may be written and say so; the exit code."""
    print("ready" if record.ready else "\n".join(f"not ready: {why}" for why in record.objections))
    if not record.ready and not chosen.even_if_not_ready:
        print("nothing was written; label more episodes, or write it all the same with --even-if-not-ready")
        return 1
    folder = write(artifact_of(found, data, *_next_version(chosen), record.ready), record, chosen)
    print(f"written: {folder}{'' if record.ready else ', marked as not ready'}")
    return 0


def _write_json(path: Path, record: FitRecord) -> None:
    try:
        write_whole(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
