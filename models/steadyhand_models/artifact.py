"""Artifacts: one exported model with its manifest and golden vectors, immutable, named by channel and version."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from steadyhand_models import wire
from steadyhand_models.messages import Channel

MAX_MODEL_BYTES = 256 << 20
FORMAT = 1


class ArtifactError(ValueError):
    """An artifact that must not be used; the message says why."""


@dataclass(frozen=True)
class Golden:
    """Inputs of the model and the outputs that the trainer saw, to be reproduced wherever it is loaded."""

    frames: Annotated[npt.NDArray[np.uint8], wire.Array("|u1", (None, None, None, None, 3))]  # (N, cameras, H, W, 3)
    state: Annotated[npt.NDArray[np.float32], wire.Array("<f4", (None, None))]  # (N, S)
    noise: Annotated[npt.NDArray[np.float32], wire.Array("<f4", (None, None))]  # (N, A); zeros for a classifier
    output: Annotated[npt.NDArray[np.float32], wire.Array("<f4", (None, None))]  # (N, A) actions or (N, heads)


@dataclass(frozen=True)
class Manifest:
    """What an artifact is. `sha256` covers model and golden vectors; `signature` is empty until keys are set up."""

    channel: Channel
    version: int
    parent: int
    contract_hash: str
    sha256: str
    training_step: int
    created_unix_s: float
    boundary: str  # "tick" or "episode": where a robot may swap it in
    tolerance: float  # largest difference from the golden outputs on the CPU
    threshold: float = 0.5  # classifier: lower bound above which a frame is a success
    debounce_frames: int = 1
    pessimism: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)
    signature: str = ""
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, default=lambda v: v.value)


@dataclass(frozen=True)
class Artifact:
    """Manifest, ONNX bytes and golden vectors."""

    manifest: Manifest
    model: bytes
    golden: Golden


@dataclass(frozen=True)
class _Bundle:
    manifest: str
    model: bytes
    golden: bytes


def manifest_from_json(text: str) -> Manifest:
    """Parse and check a manifest. Raises ArtifactError."""
    try:
        data: dict[str, Any] = json.loads(text)
        data["channel"] = Channel(data["channel"])
        manifest = Manifest(**data)
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"not a manifest: {error}") from None
    if manifest.format != FORMAT:
        raise ArtifactError(f"artifact format {manifest.format}; this version reads {FORMAT}")
    return manifest


def digest(model: bytes, golden: Golden) -> str:
    """SHA-256 over the model's bytes and its golden vectors."""
    return hashlib.sha256(model + wire.encode(golden)).hexdigest()


def pack(artifact: Artifact) -> bytes:
    """The whole artifact as one transferable bundle."""
    return wire.encode(_Bundle(artifact.manifest.to_json(), artifact.model, wire.encode(artifact.golden)))


def unpack(data: bytes, contract_hash: str) -> Artifact:
    """Rebuild and verify a bundle against its own hash and this machine's contract. Raises ArtifactError."""
    try:
        bundle = wire.decode(data, _Bundle, max_bytes=MAX_MODEL_BYTES)
        golden = wire.decode(bundle.golden, Golden, max_bytes=MAX_MODEL_BYTES)
    except wire.WireError as error:
        raise ArtifactError(f"damaged bundle: {error}") from None
    artifact = Artifact(manifest_from_json(bundle.manifest), bundle.model, golden)
    verify(artifact, contract_hash)
    return artifact


def verify(artifact: Artifact, contract_hash: str) -> None:
    """Check hash and contract. Raises ArtifactError naming what does not fit."""
    manifest = artifact.manifest
    name = f"{manifest.channel.value} v{manifest.version}"
    if digest(artifact.model, artifact.golden) != manifest.sha256:
        raise ArtifactError(f"{name}: content does not match its sha256; fetch it again")
    if manifest.contract_hash != contract_hash:
        raise ArtifactError(f"{name}: made for contract {manifest.contract_hash}, this machine has {contract_hash}")
