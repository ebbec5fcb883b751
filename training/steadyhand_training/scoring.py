"""A published classifier at work on recorded frames: read, verified and run as the robot would run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steadyhand_models import artifact as artifacts
from steadyhand_models import reward, wire
from steadyhand_models.artifact import MAX_MODEL_BYTES, Artifact, ArtifactError, Golden, manifest_from_json
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_models.nets import export
from steadyhand_models.registry import Registry
from steadyhand_training.dataset import Dataset, Recorded

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
FILES = ("manifest.json", "golden.msgpack", "model.onnx")


@dataclass(frozen=True)
class Source:
    """Where a classifier is: a version of a registry, or a folder with an artifact's three files."""

    folder: Path
    name: str  # for people


def find(registry: Path, version: int, artifact: Path | None) -> Source:
    """The folder `artifact`, else a version of a registry, 0 for its newest. Raises UserError."""
    if artifact is not None:
        return Source(artifact, str(artifact))
    newest = Registry(registry).newest(Channel.CLASSIFIER)
    if newest is None:
        raise UserError(f"{registry}: no classifier there; give --version with its --registry, or --artifact FOLDER")
    chosen = version or newest
    Registry(registry).manifest(Channel.CLASSIFIER, chosen)  # says which versions there are when it is none of them
    return Source(registry / Channel.CLASSIFIER.value / f"v{chosen:06d}", f"v{chosen}")


def load(folder: Path) -> Artifact:
    """Read an artifact's three files. Raises ArtifactError when they are not one of a classifier."""
    try:
        if sum((folder / name).stat().st_size for name in FILES) > MAX_MODEL_BYTES:
            raise ArtifactError(f"{folder}: larger than any artifact may be")
        text, golden, model = ((folder / name).read_bytes() for name in FILES)
        made = Artifact(manifest_from_json(text.decode()), model, wire.decode(golden, Golden, max_bytes=len(golden)))
    except (OSError, wire.WireError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{folder}: no artifact ({error}); it holds {', '.join(FILES)}") from None
    if made.manifest.channel is not Channel.CLASSIFIER:
        raise ArtifactError(f"{folder}: holds a {made.manifest.channel.value}, not a classifier")
    return made


class Scorer:
    """Probabilities of frames by an artifact, through onnxruntime where it is installed, else onnx's evaluator."""

    def __init__(self, artifact: Artifact, contract: Contract) -> None:
        """Raises ArtifactError when the artifact is damaged, of another contract, or does not repeat its vectors."""
        artifacts.verify(artifact, contract.hash)
        manifest = artifact.manifest
        self.manifest = manifest
        self.rule = reward.Rule(manifest.threshold, manifest.debounce_frames, manifest.pessimism)
        self._evaluate = export.evaluator(artifact.model)
        apart = float(np.abs(self.probabilities(artifact.golden.frames) - artifact.golden.output).max(initial=0.0))
        # Written so that a NaN fails too.
        if not apart <= manifest.tolerance:
            raise ArtifactError(f"classifier v{manifest.version}: differs from its golden vectors by {apart:.1e}")

    def probabilities(self, frames: U8) -> F32:
        """(N, heads) of frames (N, C, H, W, 3), one by one as on the robot."""
        name = export.CLASSIFIER_INPUTS[0]
        return np.concatenate([self._evaluate({name: frames[i : i + 1]}) for i in range(len(frames))])

    def episodes(
        self, dataset: Dataset, chosen: Sequence[Recorded], progress: Callable[[float], None] = lambda share: None
    ) -> list[F32]:
        """Probabilities (T, heads) of every frame of each episode; progress in 0..1."""
        found = []
        for i, episode in enumerate(chosen):
            found.append(self.probabilities(dataset.frames(episode.rows)))
            progress((i + 1) / len(chosen))
        return found


def scorer(source: Source, contract: Contract) -> Scorer:
    """Read and verify a classifier. Raises ArtifactError."""
    return Scorer(load(source.folder), contract)
