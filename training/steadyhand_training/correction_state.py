"""What a checkpoint keeps of the classifier's correction, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

Weights = dict[str, torch.Tensor]


class CorrectionError(RuntimeError):
    """The classifier cannot be fitted or restored; the message says what is missing."""


@dataclass
class Kept:
    """Counts and decisions that cannot be worked out from the journal."""

    promotions: int = 0
    rejections: int = 0
    rollbacks: int = 0
    last_rejection: str = ""
    rolled_back: str = ""  # the last roll-back in words


def write(path: Path, state: dict[str, Any], weights: dict[str, Weights]) -> None:
    torch.save({"state": json.dumps(state), "weights": weights}, path)


def read(path: Path, restore: Callable[[dict[str, Any], dict[str, Weights]], None]) -> None:
    """Hand what `write` wrote to `restore`. Raises CorrectionError where either fails."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        restore(json.loads(data["state"]), data["weights"])
    except (OSError, RuntimeError, UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
        raise CorrectionError(f"{path}: no usable classifier checkpoint ({error}); remove it to fit anew") from None
