"""Recorded runs and ready-made classifiers for tests of what works beside a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from training_steps import CONTRACT, RUN, TASK, demonstration, driven, label, records

from steadyhand_models.artifact import Artifact, Manifest, digest
from steadyhand_models.messages import Channel, Label, LabelKind, Source, Step
from steadyhand_models.nets import export
from steadyhand_models.registry import Registry
from steadyhand_training.journal import Journal
from steadyhand_training.run_folder import RunFolder

Messages = list[Step | Label]


def fill(root: Path, messages: Sequence[object], edge: str = "edge", first: int = 1) -> Path:
    """A run folder with these records; the folder."""
    root.mkdir(parents=True, exist_ok=True)
    journal = Journal(RunFolder(root).journal)
    journal.commit(edge, RUN, list(records(messages, first)), CONTRACT)
    journal.close()
    return root


def refuted(episode: int) -> Messages:
    """An episode that the policy did alone and a person called no success."""
    return [*driven(episode, Source.POLICY), label(episode, 9, LabelKind.VERDICT_FAILURE)]


def lessons(successes: int = 4, failures: int = 4) -> Messages:
    """Demonstrations, then episodes without success."""
    shown = [m for e in range(1, successes + 1) for m in demonstration(e)]
    return shown + [m for e in range(successes + 1, successes + failures + 1) for m in refuted(e)]


class Brightness(torch.nn.Module):
    """Calls frames a success that are brighter on average than `level`; three heads that agree."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor([level]))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        mean = frames.to(torch.float32).mean(dim=(1, 2, 3, 4))
        return torch.sigmoid((mean - self.level) / 20.0)[:, None].repeat(1, 3)


def by_brightness(level: float, version: int = 1) -> Artifact:
    """Frames of success are at about 209, others at about 49."""
    samples = np.stack([np.full(CONTRACT.frames_shape, value, np.uint8) for value in (0, 100, 250)])
    model, golden = export.classifier(Brightness(level), CONTRACT, samples)
    manifest = Manifest(
        channel=Channel.CLASSIFIER,
        version=version,
        parent=version - 1,
        contract_hash=CONTRACT.hash,
        sha256=digest(model, golden),
        training_step=0,
        created_unix_s=0.0,
        boundary="episode",
        tolerance=1e-4,
        threshold=0.5,
        debounce_frames=TASK.debounce_frames,
        pessimism=1.0,
    )
    return Artifact(manifest, model, golden)


def publish(root: Path, *levels: float) -> None:
    """Versions 1, 2, ... in a run's registry."""
    for version, level in enumerate(levels, 1):
        Registry(RunFolder(root).registry).publish(by_brightness(level, version))


def write_truth(root: Path, messages: Sequence[object]) -> None:
    """Ground truth that calls bright frames a success."""
    steps = [m for m in messages if isinstance(m, Step)]
    lines = [f"{s.stamp_ns},0,0,{int(s.frames.mean() > 128)},0,0" for s in steps]
    (root / "truth.csv").write_text("\n".join(["stamp_ns,a,b,success,c,d", *lines]) + "\n", encoding="ascii")


def moved(messages: Messages, tag: str) -> Messages:
    """The same with other identities of labels."""
    return [dataclasses.replace(m, event_id=tag + m.event_id) if isinstance(m, Label) else m for m in messages]
