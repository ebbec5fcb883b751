"""Export of networks to ONNX, with golden vectors and proof that the graph computes what torch did."""

from __future__ import annotations

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from steadyhand_models.artifact import Artifact, Golden
from steadyhand_models.contract import Contract

# The oldest supported onnxruntime is 1.23, the last for Python 3.10; it reads these.
OPSET = 17
IR_VERSION = 10
TOLERANCE = 1e-4
POLICY_INPUTS = ("frames", "state", "noise")
POLICY_ON_FEATURES_INPUTS = ("features", "state", "noise")
POLICY_OUTPUT = "action"
ENCODER_INPUTS = ("frames",)
ENCODER_OUTPUT = "features"
CLASSIFIER_INPUTS = ("frames",)
CLASSIFIER_OUTPUT = "probability"

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Evaluate = Callable[[dict[str, npt.NDArray[Any]]], F32]
Samples = tuple[npt.NDArray[Any], ...]


class ExportError(RuntimeError):
    """A model that must not be published; the message says why."""


class Exporter:
    """Exports one network again and again: the graph is traced once, afterwards only its weights are replaced."""

    def __init__(self) -> None:
        self._graph: onnx.ModelProto | None = None
        self._seen: tuple[str, F32] | None = None

    def policy(self, net: nn.Module, contract: Contract, frames: U8, state: F32, seed: int = 0) -> tuple[bytes, Golden]:
        """ONNX bytes and golden vectors of a policy, from samples frames (N, C, H, W, 3) and state (N, S).

        The second half of the golden vectors has noise. Raises ExportError where onnxruntime, or onnx's own evaluator
        where that is not installed, differs from torch by more than TOLERANCE, or where anything is not finite.
        """
        noise = _noise(len(frames), contract, seed)
        model, output = self._export(net, POLICY_INPUTS, POLICY_OUTPUT, (frames, state, noise))
        return model, Golden(frames, state, noise, output)

    def policy_on_features(
        self, net: nn.Module, contract: Contract, encoder: Artifact, state: F32, seed: int = 0
    ) -> tuple[bytes, Golden]:
        """The same of a policy (features, state, noise) behind a published encoder, from as many states (N, S) as that
        has golden vectors: its golden features are the inputs.

        Raises ExportError as `policy`, and where golden frames through both exported graphs give anything else.
        """
        features, none = encoder.golden.output, np.zeros((0, *encoder.golden.frames.shape[1:]), np.uint8)
        noise = _noise(len(features), contract, seed)
        model, output = self._export(net, POLICY_ON_FEATURES_INPUTS, POLICY_OUTPUT, (features, state, noise))
        seen = self._through(encoder)
        problem = _difference(model, POLICY_ON_FEATURES_INPUTS, (seen, state, noise), output)
        if problem is not None:
            raise ExportError(f"behind {encoder.manifest.name}: {problem}")
        return model, Golden(none, state, noise, output)

    def encoder(self, net: nn.Module, contract: Contract, frames: U8) -> tuple[bytes, Golden]:
        """ONNX bytes and golden vectors of an encoder to (N, F), from samples frames (N, C, H, W, 3); raises as
        `policy`."""
        model, output = self._export(net, ENCODER_INPUTS, ENCODER_OUTPUT, (frames,))
        return model, Golden(frames, *_unused(len(frames), contract), output)

    def classifier(self, net: nn.Module, contract: Contract, frames: U8) -> tuple[bytes, Golden]:
        """ONNX bytes and golden vectors of a classifier, from samples frames (N, C, H, W, 3); raises as `policy`."""
        model, output = self._export(net, CLASSIFIER_INPUTS, CLASSIFIER_OUTPUT, (frames,))
        return model, Golden(frames, *_unused(len(frames), contract), output)

    def _through(self, encoder: Artifact) -> F32:
        """What an encoder's exported graph makes of its golden frames; computed once."""
        sha256 = encoder.manifest.sha256
        if self._seen is None or self._seen[0] != sha256:
            self._seen = sha256, _evaluated(encoder.model, ENCODER_INPUTS, (encoder.golden.frames,))
        return self._seen[1]

    def _export(self, net: nn.Module, names: Sequence[str], output_name: str, samples: Samples) -> tuple[bytes, F32]:
        _refuse_broken_weights(net)
        output = _run_torch(net, samples)
        problem: str | None = "no graph yet"
        if self._graph is not None and _takes(self._graph, names) and _replace_weights(self._graph, net):
            model = self._graph.SerializeToString()
            problem = _difference(model, names, samples, output)
        if problem is not None:
            self._graph = _trace(net, names, output_name, samples)
            model = self._graph.SerializeToString()
            problem = _difference(model, names, samples, output)
        if problem is not None:
            self._graph = None
            raise ExportError(problem)
        return model, output


def policy(net: nn.Module, contract: Contract, frames: U8, state: F32, seed: int = 0) -> tuple[bytes, Golden]:
    """One export of a policy; see `Exporter.policy`."""
    return Exporter().policy(net, contract, frames, state, seed)


def encoder(net: nn.Module, contract: Contract, frames: U8) -> tuple[bytes, Golden]:
    """One export of an encoder; see `Exporter.encoder`."""
    return Exporter().encoder(net, contract, frames)


def classifier(net: nn.Module, contract: Contract, frames: U8) -> tuple[bytes, Golden]:
    """One export of a classifier; see `Exporter.classifier`."""
    return Exporter().classifier(net, contract, frames)


def _noise(count: int, contract: Contract, seed: int) -> F32:
    """Golden noise (N, A), the first half of it zero."""
    noise = np.random.default_rng(seed).standard_normal((count, len(contract.action)), np.float32)
    noise[: count // 2] = 0.0
    return noise


def _unused(count: int, contract: Contract) -> tuple[F32, F32]:
    """Golden state and noise of what takes neither."""
    return np.zeros((count, len(contract.state)), np.float32), np.zeros((count, len(contract.action)), np.float32)


def _refuse_broken_weights(net: nn.Module) -> None:
    for name, value in net.state_dict().items():
        if not torch.isfinite(value).all():
            raise ExportError(f"{name} has values that are not finite")


def _run_torch(net: nn.Module, samples: Samples) -> F32:
    """Outputs (N, ...) one sample at a time, as the robot will ask for them."""
    with torch.inference_mode():
        rows = [net(*(torch.tensor(s[i : i + 1]) for s in samples)) for i in range(len(samples[0]))]
    output: F32 = torch.cat(rows).numpy()
    if not np.isfinite(output).all():
        raise ExportError("the network's output is not finite")
    return output


def _trace(net: nn.Module, names: Sequence[str], output_name: str, samples: Samples) -> onnx.ModelProto:
    """The graph for a batch of one. Constants are not folded, so that every weight keeps its name in it."""
    stand_in = copy.deepcopy(net)
    with torch.no_grad():
        # The exporter merges weights that are equal, as fresh biases are; random ones all keep a place of their own.
        for value in stand_in.state_dict().values():
            value.copy_(torch.rand(value.shape))
    inputs: tuple[Tensor, ...] = tuple(torch.tensor(s[:1]) for s in samples)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces its newer exporter, which needs another package
        torch.onnx.export(
            stand_in,
            inputs,
            buffer,  # type: ignore[arg-type]  # the stub wants a path; a buffer is documented
            input_names=list(names),
            output_names=[output_name],
            opset_version=OPSET,
            do_constant_folding=False,
            dynamo=False,
        )
    graph = onnx.load_model_from_string(buffer.getvalue())
    graph.ir_version = IR_VERSION
    if not _replace_weights(graph, net):
        raise ExportError("the exported graph does not keep every weight under its own name")
    onnx.checker.check_model(graph)
    return graph


def _takes(graph: onnx.ModelProto, names: Sequence[str]) -> bool:
    return [i.name for i in graph.graph.input] == list(names)


def _replace_weights(graph: onnx.ModelProto, net: nn.Module) -> bool:
    """Write the network's weights into the graph; false when a weight has no place of its own there."""
    places = {tensor.name: tensor for tensor in graph.graph.initializer}
    weights = {name: value.detach().contiguous().numpy() for name, value in net.state_dict().items()}
    for name, value in weights.items():
        place = places.get(name)
        if place is None or tuple(place.dims) != value.shape or not place.HasField("raw_data"):
            return False
    for name, value in weights.items():
        places[name].raw_data = value.tobytes()
    return True


def _difference(model: bytes, names: Sequence[str], samples: Samples, expected: F32) -> str | None:
    """How the exported model differs from what torch computed, or None within TOLERANCE."""
    got = _evaluated(model, names, samples)
    if got.shape != expected.shape:
        return f"the exported model gives {got.shape}, torch gave {expected.shape}"
    apart = float(np.abs(got - expected).max())
    # Written so that a NaN fails too.
    return None if apart <= TOLERANCE else f"the exported model differs from torch by {apart:.2e}, over {TOLERANCE:.0e}"


def _evaluated(model: bytes, names: Sequence[str], samples: Samples) -> F32:
    """What the exported model answers to samples (N, ...), one at a time."""
    evaluate = evaluator(model)
    feeds = [{name: sample[i : i + 1] for name, sample in zip(names, samples)} for i in range(len(samples[0]))]
    return np.concatenate([evaluate(feed) for feed in feeds])


def evaluator(model: bytes) -> Evaluate:
    """Runs exported bytes on the CPU: by onnxruntime, or by onnx's own evaluator where that is not installed."""
    return _onnxruntime(model) if importlib.util.find_spec("onnxruntime") else _reference(model)


def _onnxruntime(model: bytes) -> Evaluate:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: np.asarray(session.run(None, feed)[0])


def _reference(model: bytes) -> Evaluate:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model))
    return lambda feed: np.asarray(next(iter(evaluator.run(None, feed))))
