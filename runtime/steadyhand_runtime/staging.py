"""Staging: what standby and swap tell each other: models ready to be called, what was refused, what is in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from steadyhand_models.artifact import Artifact, Manifest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
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


@dataclass(frozen=True, slots=True)
class Staged:
    """A model that waits for its boundary; `missed_before` were missed when its build began. `instead_of` is the reason
    when it replaces a newer version that a person has rolled back; a `proven` one needs no probation. It was whole on
    this robot at `found_ns`, and staged at `staged_ns`."""

    model: Loaded
    build_s: float
    missed_before: int
    instead_of: str = ""
    proven: bool = False
    found_ns: int = 0
    staged_ns: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An artifact that will not be used."""

    channel: Channel
    version: int
    reason: str
    build_s: float


@dataclass(frozen=True, slots=True)
class InForce:
    """What control uses now (version 0: nothing), the version before it, and whether it has passed its probation."""

    version: int = 0
    sha256: str = ""
    previous: int = 0
    proven: bool = True
