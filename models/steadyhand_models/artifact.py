"""Artifacts: one exported model with its manifest and golden vectors, immutable, named by channel and version."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field

from steadyhand_models import wire
from steadyhand_models.messages import Channel

MAX_MODEL_BYTES = 256 << 20
MAX_FEATURES = 1 << 16  # of an encoder; a pretrained one's maps of two cameras are some thousands
# What a robot swaps by itself; an encoder comes and goes with them.
ANSWERING = (Channel.POLICY, Channel.CLASSIFIER)
FORMAT = 1
CPU = "CPUExecutionProvider"
# Where arithmetic may be coarser than the trainer's: CUDA reorders sums and may use TF32, TensorRT may fuse and choose
# half precision. Starting points, not measured: neither has been run.
COARSER = {"CUDAExecutionProvider": 1e-3, "TensorrtExecutionProvider": 1e-2}

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Tolerance = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class ArtifactError(ValueError):
    """An artifact that must not be used; the message says why."""


@dataclass(frozen=True)
class Golden:
    """Inputs of the model and the outputs that the trainer saw, to be reproduced wherever it is loaded.

    A model that names an encoder has no frames of its own (0, ...): its inputs are that encoder's golden features, and
    with the encoder in front of it its outputs belong to that encoder's golden frames.
    """

    frames: Annotated[npt.NDArray[np.uint8], wire.Array("|u1", (None, None, None, None, 3))]  # (N, cameras, H, W, 3)
    state: Annotated[npt.NDArray[np.float32], wire.Array("<f4", (None, None))]  # (N, S); zeros where not asked for
    noise: Annotated[npt.NDArray[np.float32], wire.Array("<f4", (None, None))]  # (N, A); zeros where not asked for
    output: Annotated[  # (N, A) actions, (N, heads) probabilities or (N, F) features
        npt.NDArray[np.float32], wire.Array("<f4", (None, None), MAX_FEATURES)
    ]


@dataclass(frozen=True)
class Manifest:
    """What an artifact is. `sha256` covers model and golden vectors; without a signing key `signature` is empty.

    A model that names an encoder takes its features instead of frames; `encoder_sha256` is that artifact's `sha256`.
    """

    channel: Channel
    version: Annotated[int, Field(ge=1)]
    parent: int
    contract_hash: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    training_step: Count
    created_unix_s: Finite
    boundary: Literal["tick", "episode"]  # where a robot may swap it in; a classifier always waits for an episode's end
    tolerance: Tolerance  # largest difference from the golden outputs on the CPU, and wherever nothing else is said
    threshold: Share = 0.5  # classifier: lower bound above which a frame is a success
    debounce_frames: Annotated[int, Field(ge=1)] = 1
    pessimism: Finite = 1.0
    metrics: dict[str, float] = field(default_factory=dict)
    signature: str = ""
    format: int = FORMAT
    tolerances: dict[str, Tolerance] = field(default_factory=lambda: dict(COARSER))  # by execution provider
    encoder_version: Count = 0  # 0: the model takes frames
    encoder_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    def __post_init__(self) -> None:
        """Raises ValueError for an encoder that is not named whole, or that names one itself."""
        if bool(self.encoder_version) != bool(self.encoder_sha256):
            raise ValueError("encoder_version and encoder_sha256 belong together")
        if self.encoder_version and self.channel is Channel.ENCODER:
            raise ValueError("an encoder takes frames, and no other encoder's features")

    @property
    def name(self) -> str:
        """For people: channel and version."""
        return f"{self.channel.value} v{self.version}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, default=lambda v: v.value)

    def allowed(self, providers: Sequence[str]) -> float:
        """Largest difference from the golden outputs for a session that got these providers, the first of which counts.

        A provider that the manifest does not name has to be as exact as the CPU.
        """
        return (
            self.tolerances.get(providers[0], self.tolerance) if providers and providers[0] != CPU else self.tolerance
        )


_MANIFEST = pydantic.TypeAdapter(Manifest)


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
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"not a manifest: {error}") from None
    if not isinstance(data, dict):
        raise ArtifactError("not a manifest: no JSON object")
    if data.get("format", FORMAT) != FORMAT:
        raise ArtifactError(f"artifact format {data['format']!r:.20}; this version reads {FORMAT}")
    unknown = sorted(set(data) - {f.name for f in dataclasses.fields(Manifest)})
    if unknown:
        raise ArtifactError(f"not a manifest: unknown field {unknown[0]!r:.40}; update this machine's Steadyhand")
    try:
        return _MANIFEST.validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"not a manifest: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


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
    if digest(artifact.model, artifact.golden) != manifest.sha256:
        raise ArtifactError(f"{manifest.name}: content does not match its sha256; fetch it again")
    if manifest.contract_hash != contract_hash:
        raise ArtifactError(
            f"{manifest.name}: made for contract {manifest.contract_hash}, this machine has {contract_hash}"
        )
