"""Inference: one exported model in onnxruntime, checked against its golden vectors before anything relies on it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_models.artifact import Artifact, ArtifactError, Manifest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_runtime import engine as engines
from steadyhand_runtime.cutoff import Cutoff
from steadyhand_runtime.engine import Engine

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

OUTPUTS = {Channel.POLICY: "action", Channel.CLASSIFIER: "probability"}
MAX_HEADS = 64
FIRST_CALLS_S = 5.0  # a GPU prepares its kernels in the first calls


class ModelFailure(RuntimeError):
    """A model gave no usable output: it holds NaN or infinity, or onnxruntime failed."""


class Model:
    """One artifact's session with its buffers bound once: a call copies the inputs in and the output out.

    `last_s` is how long the last call took. With a cutoff, a call that outlives `limit_s` fails; 0 is no limit. Not
    thread-safe.
    """

    def __init__(
        self, artifact: Artifact, contract: Contract, engine: Engine | None = None, cutoff: Cutoff | None = None
    ) -> None:
        """Build the session. Raises ArtifactError when the graph is not what the contract says, UserError when
        onnxruntime is missing, doubled, or does not give the engine's providers."""
        self.manifest: Manifest = artifact.manifest
        self.last_s = 0.0
        self.limit_s = FIRST_CALLS_S
        self._cutoff = cutoff
        self._name = f"{self.manifest.channel.value} v{self.manifest.version}"
        self._session = engines.session(artifact.model, engine or Engine(), self._name)
        self._options = engines.import_onnxruntime().RunOptions
        state, action = len(contract.state), len(contract.action)
        wanted: dict[str, npt.NDArray[Any]] = {"frames": np.zeros((1, *contract.frames_shape), np.uint8)}
        if self.manifest.channel is Channel.POLICY:
            wanted |= {"state": np.zeros((1, state), np.float32), "noise": np.zeros((1, action), np.float32)}
        self._check_inputs(wanted)
        self._inputs = wanted
        self._output = np.zeros((1, self._width(action)), np.float32)
        self._binding = self._bind()

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def providers(self) -> list[str]:
        """The providers that the session really got."""
        return list(self._session.get_providers())

    def run(self, frames: U8, state: F32 | None = None, noise: F32 | None = None) -> F32:
        """The output (A,) or (heads,) for frames (C, H, W, 3), state (S,) and noise (A,). Raises ModelFailure."""
        start_s = time.perf_counter()
        self._inputs["frames"][0] = frames
        if "state" in self._inputs:
            self._inputs["state"][0] = state
            self._inputs["noise"][0] = noise
        try:
            self._compute()
        finally:
            self.last_s = time.perf_counter() - start_s
        if not np.isfinite(self._output).all():
            raise ModelFailure(f"{self._name}: output is not finite")
        return self._output[0].copy()

    def check_golden(self, golden: Any) -> None:
        """Reproduce the trainer's golden outputs within the manifest's tolerance. Raises ArtifactError."""
        count = len(golden.output)
        if count == 0 or any(len(part) != count for part in (golden.frames, golden.state, golden.noise)):
            raise ArtifactError(f"{self._name}: golden vectors are missing or of unequal length")
        for i in range(count):
            try:
                got = self.run(golden.frames[i], golden.state[i], golden.noise[i])
                off = float(np.abs(got - golden.output[i]).max())
            except (ModelFailure, ValueError) as error:
                raise ArtifactError(f"{self._name}: golden sample {i}: {error}") from None
            if not off <= (limit := self.manifest.allowed(self.providers)):
                raise ArtifactError(f"{self._name}: golden sample {i} is off by {off:.2g}, allowed {limit:.2g}")

    def warm(self, runs: int) -> float:
        """Run on zeros a few times; returns the median seconds of a call. Raises ModelFailure."""
        zeros = [np.zeros_like(self._inputs[name][0]) for name in self._inputs]
        took = []
        for _ in range(runs):
            self.run(*zeros)
            took.append(self.last_s)
        return float(np.median(took))

    def _compute(self) -> None:
        options = self._options()
        options.log_severity_level = 4  # fatal: what goes wrong is told by the exception
        if self._cutoff is not None and self.limit_s > 0:
            self._cutoff.begin(options, self.limit_s)
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            reason = f"cut off after {self.limit_s:.2g} s" if options.terminate else str(error)[:300]
            raise ModelFailure(f"{self._name}: {reason}") from None
        finally:
            if self._cutoff is not None:
                self._cutoff.end()

    def _check_inputs(self, wanted: dict[str, npt.NDArray[Any]]) -> None:
        got = {i.name: (i.type, list(i.shape)) for i in self._session.get_inputs()}
        types = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
        want = {name: (types[a.dtype.name], list(a.shape)) for name, a in wanted.items()}
        if got != want:
            raise ArtifactError(f"{self._name}: the graph takes {got}, the contract gives {want}")

    def _width(self, action: int) -> int:
        """Length of the output's last axis."""
        name = OUTPUTS[self.manifest.channel]
        outputs = {o.name: o for o in self._session.get_outputs()}
        if name not in outputs or outputs[name].type != "tensor(float)":
            raise ArtifactError(f"{self._name}: the graph has no float output '{name}'")
        shape = outputs[name].shape
        allowed = [action] if self.manifest.channel is Channel.POLICY else range(1, MAX_HEADS + 1)
        if len(shape) != 2 or shape[0] != 1 or shape[1] not in allowed:
            raise ArtifactError(f"{self._name}: output '{name}' has shape {shape}")
        return int(shape[1])

    def _bind(self) -> Any:
        binding = self._session.io_binding()
        for name, array in self._inputs.items():
            binding.bind_cpu_input(name, array)
        name = OUTPUTS[self.manifest.channel]
        binding.bind_output(name, "cpu", 0, np.float32, self._output.shape, self._output.ctypes.data)
        return binding


def load(artifact: Artifact, contract: Contract, engine: Engine | None = None, cutoff: Cutoff | None = None) -> Model:
    """Build one verified artifact and reproduce its golden vectors. Raises ArtifactError or UserError."""
    model = Model(artifact, contract, engine, cutoff)
    model.check_golden(artifact.golden)
    return model
