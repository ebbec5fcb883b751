"""Loaded models: what standby, swap and whoever builds models need of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from steadyhand_models.artifact import Artifact, Manifest
from steadyhand_models.contract import Contract
from steadyhand_runtime.inference import Encoder

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class Loaded(Protocol):
    """A model that is ready to be called. `limit_s` is when a call is cut off, 0 for never."""

    manifest: Manifest
    last_s: float
    limit_s: float

    @property
    def version(self) -> int: ...

    @property
    def encoder(self) -> Encoder | None: ...

    def run(self, frames: U8, state: F32 | None = None, noise: F32 | None = None, encoded: bool = False) -> F32: ...

    def warm(self, runs: int) -> float: ...


class Build(Protocol):
    """Makes a model ready to be called; raises ArtifactError or UserError."""

    def __call__(self, artifact: Artifact, contract: Contract, encoder: Encoder | None = None, /) -> Loaded: ...


# A policy to measure with, how to wait, and the policy's encoder; returns whether models are to be built otherwise now.
Settle = Callable[[Artifact, Callable[[float], bool], Artifact | None], bool]
