"""Inference: exported models in onnxruntime, checked against their golden vectors before anything relies on them."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_models.artifact import MAX_FEATURES, Artifact, ArtifactError, Golden, Manifest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_runtime import engine as engines
from steadyhand_runtime.cutoff import Cutoff
from steadyhand_runtime.engine import Engine

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Inputs = dict[str, npt.NDArray[Any]]

OUTPUTS = {Channel.POLICY: "action", Channel.CLASSIFIER: "probability", Channel.ENCODER: "features"}
MAX_HEADS = 64
FIRST_CALLS_S = 5.0  # a GPU prepares its kernels in the first calls


class ModelFailure(RuntimeError):
    """A model gave no usable output: it holds NaN or infinity, or onnxruntime failed."""


class EncoderFailure(ModelFailure):
    """The encoder in front of a model gave features that are not finite."""


class Encoder:
    """A frozen encoder's session, which writes features (1, F) into a buffer that models are bound to.

    `last_s` is how long the last call took. Twins share the session and nothing else, so that two threads may use one
    each.
    """

    def __init__(self, artifact: Artifact, contract: Contract, engine: Engine | None = None) -> None:
        """Build the session. Raises ArtifactError when the graph is not what the contract says, UserError when
        onnxruntime is missing, doubled, or does not give the engine's providers."""
        self.manifest, self.golden = artifact.manifest, artifact.golden
        self.last_s = 0.0
        self._session = engines.session(artifact.model, engine or Engine(), self.manifest.name)
        self._frames = np.zeros((1, *contract.frames_shape), np.uint8)
        _check_inputs(self.manifest, self._session, {"frames": self._frames})
        width = _output_width(self.manifest, self._session, range(1, MAX_FEATURES + 1))
        self.features = np.zeros((1, width), np.float32)
        self._bind()

    @property
    def providers(self) -> list[str]:
        """The providers that the session really got."""
        return list(self._session.get_providers())

    def twin(self) -> Encoder:
        """The same session with buffers of its own."""
        made = copy.copy(self)
        made._frames, made.features = np.zeros_like(self._frames), np.zeros_like(self.features)
        made._bind()
        return made

    def encode(self, frames: U8, options: Any = None) -> None:
        """Write the features of frames (C, H, W, 3) into `features`. Raises EncoderFailure where they are not finite,
        and whatever onnxruntime raises."""
        start_s = time.perf_counter()
        self._frames[0] = frames
        try:
            self._session.run_with_iobinding(self._binding, options)
        finally:
            self.last_s = time.perf_counter() - start_s
        if not np.isfinite(self.features).all():
            raise EncoderFailure(f"features of {self.manifest.name} are not finite")

    def check_golden(self) -> None:
        """Reproduce the trainer's golden features within the manifest's tolerance. Raises ArtifactError."""
        name, golden = self.manifest.name, self.golden
        if not len(golden.output) or len(golden.frames) != len(golden.output):
            raise ArtifactError(f"{name}: golden vectors are missing or of unequal length")
        for i, (frames, wanted) in enumerate(zip(golden.frames, golden.output)):
            try:
                self.encode(frames)
            except Exception as error:  # onnxruntime's exceptions share no base of their own
                raise ArtifactError(f"{name}: golden sample {i}: {str(error)[:300]}") from None
            _compare(f"{name}: golden sample {i}", self.features[0], wanted, self.manifest.allowed(self.providers))

    def _bind(self) -> None:
        self._binding = _binding(self._session, {"frames": self._frames}, OUTPUTS[Channel.ENCODER], self.features)


class Model:
    """One artifact's session with its buffers bound once: a call copies the inputs in and the output out.

    With an encoder the features are its buffer itself. `last_s` is how long the last call took. With a cutoff, a call
    that outlives `limit_s`, its encoder's time counted, fails; 0 is no limit. Not thread-safe.
    """

    def __init__(
        self,
        artifact: Artifact,
        contract: Contract,
        encoder: Encoder | None = None,
        engine: Engine | None = None,
        cutoff: Cutoff | None = None,
    ) -> None:
        """Build the session. Raises ArtifactError when the graph is not what the contract says or the encoder is not
        the one that the manifest names, UserError when onnxruntime is missing, doubled, or does not give the engine's
        providers."""
        self.manifest: Manifest = artifact.manifest
        self.encoder = _checked(self.manifest, encoder)
        self.last_s = 0.0
        self.limit_s = FIRST_CALLS_S
        self._cutoff = cutoff
        self._name = self.manifest.name
        self._session = engines.session(artifact.model, engine or Engine(), self._name)
        self._options = engines.import_onnxruntime().RunOptions
        self._frames_shape = contract.frames_shape
        self._inputs = self._buffers(contract)
        _check_inputs(self.manifest, self._session, self._inputs)
        policy = self.manifest.channel is Channel.POLICY
        widths = [len(contract.action)] if policy else range(1, MAX_HEADS + 1)
        self._output = np.zeros((1, _output_width(self.manifest, self._session, widths)), np.float32)
        self._bind()

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def providers(self) -> list[str]:
        """The providers that the session really got."""
        return list(self._session.get_providers())

    def attach(self, encoder: Encoder) -> None:
        """Take the features from this encoder's buffer from now on. Raises ArtifactError for another encoder."""
        self.encoder = _checked(self.manifest, encoder)
        self._inputs["features"] = encoder.features
        self._bind()

    def run(self, frames: U8, state: F32 | None = None, noise: F32 | None = None, encoded: bool = False) -> F32:
        """The output (A,) or (heads,) for frames (C, H, W, 3), state (S,) and noise (A,). Raises ModelFailure.

        `encoded` says that the encoder has already been run on these frames.
        """
        start_s = time.perf_counter()
        if self.encoder is None:
            self._inputs["frames"][0] = frames
        if "state" in self._inputs:
            self._inputs["state"][0] = state
            self._inputs["noise"][0] = noise
        try:
            self._compute(None if encoded else frames)
        finally:
            self.last_s = time.perf_counter() - start_s
        if not np.isfinite(self._output).all():
            raise ModelFailure(f"{self._name}: output is not finite")
        return self._output[0].copy()

    def check_golden(self, golden: Golden) -> None:
        """Reproduce the trainer's golden outputs within the manifest's tolerance. Raises ArtifactError.

        With an encoder twice: from its golden features, and from its golden frames through both.
        """
        seen = golden.frames if self.encoder is None else self.encoder.golden.frames
        if self.encoder is not None and len(golden.frames):
            raise ArtifactError(f"{self._name}: golden frames beside those of its encoder")
        if not len(golden.output) or any(len(p) != len(golden.output) for p in (seen, golden.state, golden.noise)):
            raise ArtifactError(f"{self._name}: golden vectors are missing or of unequal length")
        for i, wanted in enumerate(golden.output):
            sample = (seen[i], golden.state[i], golden.noise[i])
            if self.encoder is not None:
                self.encoder.features[0] = self.encoder.golden.output[i]
                self._check_sample(f"golden sample {i} from features", wanted, *sample, encoded=True)
            self._check_sample(f"golden sample {i}", wanted, *sample)

    def warm(self, runs: int) -> float:
        """Run on zeros a few times; returns the median seconds of a call. Raises ModelFailure."""
        frames = np.zeros(self._frames_shape, np.uint8)
        state, noise = (np.zeros_like(self._inputs[n][0]) if n in self._inputs else None for n in ("state", "noise"))
        took = []
        for _ in range(runs):
            self.run(frames, state, noise)
            took.append(self.last_s)
        return float(np.median(took))

    def _check_sample(self, what: str, wanted: F32, frames: U8, state: F32, noise: F32, encoded: bool = False) -> None:
        limit = self.manifest.allowed(self.providers)
        if self.encoder is not None and not encoded:  # what the encoder may be off by reaches the output
            limit = max(limit, self.manifest.allowed(self.encoder.providers))
        try:
            got = self.run(frames, state, noise, encoded)
        except (ModelFailure, ValueError) as error:
            raise ArtifactError(f"{self._name}: {what}: {error}") from None
        _compare(f"{self._name}: {what}", got, wanted, limit)

    def _compute(self, frames: U8 | None) -> None:
        options = self._options()
        options.log_severity_level = 4  # fatal: what goes wrong is told by the exception
        if self._cutoff is not None and self.limit_s > 0:
            self._cutoff.begin(options, self.limit_s)
        try:
            if self.encoder is not None and frames is not None:
                self.encoder.encode(frames, options)
            self._session.run_with_iobinding(self._binding, options)
        except EncoderFailure as error:
            raise EncoderFailure(f"{self._name}: {error}") from None
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            reason = f"cut off after {self.limit_s:.2g} s" if options.terminate else str(error)[:300]
            raise ModelFailure(f"{self._name}: {reason}") from None
        finally:
            if self._cutoff is not None:
                self._cutoff.end()

    def _buffers(self, contract: Contract) -> Inputs:
        seen: Inputs
        if self.encoder is None:
            seen = {"frames": np.zeros((1, *contract.frames_shape), np.uint8)}
        else:
            seen = {"features": self.encoder.features}
        if self.manifest.channel is Channel.POLICY:
            seen["state"] = np.zeros((1, len(contract.state)), np.float32)
            seen["noise"] = np.zeros((1, len(contract.action)), np.float32)
        return seen

    def _bind(self) -> None:
        self._binding = _binding(self._session, self._inputs, OUTPUTS[self.manifest.channel], self._output)


def load(
    artifact: Artifact,
    contract: Contract,
    encoder: Encoder | None = None,
    engine: Engine | None = None,
    cutoff: Cutoff | None = None,
) -> Model:
    """Build one verified artifact and reproduce its golden vectors. Raises ArtifactError or UserError."""
    model = Model(artifact, contract, encoder, engine, cutoff)
    model.check_golden(artifact.golden)
    return model


def load_encoder(artifact: Artifact, contract: Contract, engine: Engine | None = None) -> Encoder:
    """Build one verified encoder and reproduce its golden features. Raises ArtifactError or UserError."""
    encoder = Encoder(artifact, contract, engine)
    encoder.check_golden()
    return encoder


def _checked(manifest: Manifest, encoder: Encoder | None) -> Encoder | None:
    """The encoder, if it is what the manifest asks for."""
    got = encoder.manifest.sha256 if encoder is not None else ""
    if got != manifest.encoder_sha256:
        wanted = f"encoder v{manifest.encoder_version}" if manifest.encoder_version else "no encoder"
        raise ArtifactError(f"{manifest.name} needs {wanted} and got {encoder.manifest.name if encoder else 'none'}")
    return encoder


def _compare(what: str, got: F32, wanted: F32, allowed: float) -> None:
    off = float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")
    if not off <= allowed:  # a NaN is refused too
        raise ArtifactError(f"{what} is off by {off:.2g}, allowed {allowed:.2g}")


def _check_inputs(manifest: Manifest, session: Any, wanted: Inputs) -> None:
    got = {i.name: (i.type, list(i.shape)) for i in session.get_inputs()}
    types = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
    want = {name: (types[a.dtype.name], list(a.shape)) for name, a in wanted.items()}
    if got != want:
        raise ArtifactError(f"{manifest.name}: the graph takes {got}, the contract gives {want}")


def _output_width(manifest: Manifest, session: Any, allowed: range | list[int]) -> int:
    """Length of the output's last axis."""
    name = OUTPUTS[manifest.channel]
    outputs = {o.name: o for o in session.get_outputs()}
    if name not in outputs or outputs[name].type != "tensor(float)":
        raise ArtifactError(f"{manifest.name}: the graph has no float output '{name}'")
    shape = outputs[name].shape
    if len(shape) != 2 or shape[0] != 1 or shape[1] not in allowed:
        raise ArtifactError(f"{manifest.name}: output '{name}' has shape {shape}")
    return int(shape[1])


def _binding(session: Any, inputs: Inputs, output_name: str, output: F32) -> Any:
    """The arrays as the session's inputs and output, none of them copied."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output(output_name, "cpu", 0, np.float32, output.shape, output.ctypes.data)
    return binding
