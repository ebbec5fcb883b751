"""Where else a run's metrics go: TensorBoard and Weights & Biases, each only when it is asked for and installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from steadyhand_models.cli import UserError


@dataclass(frozen=True)
class WriterSettings:
    """metrics.jsonl in the run folder is always written; these come beside it."""

    tensorboard: bool = False  # event files below the run folder; see them with: tensorboard --logdir runs
    wandb: str = ""  # Weights & Biases project; empty: none. Its own variables choose account and offline mode


class MetricWriter(Protocol):
    """Takes scalars at a number of recorded steps."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorboardWriter:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when tensorboard is not installed."""
        self._writer: Any = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """One run of a Weights & Biases project; a run folder that is continued continues its run."""

    def __init__(self, project: str, folder: Path) -> None:
        """Raises UserError when wandb is not installed."""
        module = _module("wandb", "wandb")
        self._run: Any = module.init(project=project, name=folder.name, id=folder.name, dir=str(folder), resume="allow")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


def open_writers(settings: WriterSettings, run: Path) -> list[MetricWriter]:
    """The writers that were asked for. Raises UserError naming what to install."""
    writers: list[MetricWriter] = []
    if settings.tensorboard:
        writers.append(TensorboardWriter(run / "tensorboard"))
    if settings.wandb:
        writers.append(WandbWriter(settings.wandb, run.resolve()))
    return writers


def _module(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"metrics.{extra} was asked for, but {error.name or extra} is not installed; "
            f"`pip install 'steadyhand[{extra}]'` brings it"
        ) from None
