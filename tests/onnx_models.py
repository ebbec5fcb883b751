"""Tiny ONNX artifacts for tests of the runtime, written without torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from steadyhand_models.artifact import Artifact, Golden, Manifest, digest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_models.task import Task, load

GOLDEN = 4
POISON = 7.0


def lift() -> Task:
    return load("lift")


def policy(
    contract: Contract, version: int = 1, bias: float = 0.25, poison: bool = False, golden_off: float = 0.0
) -> Artifact:
    """action = tanh(bias + noise + 0 * state[:A] + 0 * mean(frames)). A poisoned one is 0 / 0 where the first joint's
    position is POISON, which neither golden vectors nor warming show."""
    action, state = len(contract.action), len(contract.state)
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["light"], axes=[1, 2, 3, 4], keepdims=0),
        helper.make_node("Mul", ["light", "zero"], ["dark"]),
        helper.make_node("MatMul", ["state", "select"], ["few"]),
        helper.make_node("Add", ["few", "dark"], ["seen"]),
        helper.make_node("Add", ["seen", "bias"], ["mean"]),
        helper.make_node("Add", ["mean", "noise"], ["free"]),
    ]
    last = "free"
    if poison:
        nodes += [
            helper.make_node("Gather", ["state", "first"], ["joint"], axis=1),
            helper.make_node("Sub", ["joint", "poison"], ["away"]),
            helper.make_node("Div", ["away", "away"], ["one"]),
            helper.make_node("Mul", ["free", "one"], ["broken"]),
        ]
        last = "broken"
    nodes.append(helper.make_node("Tanh", [last], ["action"]))
    constants = {
        "zero": np.zeros(1, np.float32),
        "select": np.zeros((state, action), np.float32),
        "bias": np.full((1, action), bias, np.float32),
    }
    if poison:
        constants |= {"first": np.zeros(1, np.int64), "poison": np.full(1, POISON, np.float32)}
    inputs = [_frames(contract), _floats("state", state), _floats("noise", action)]
    model = _model(nodes, inputs, _floats("action", action), constants)
    rng = np.random.default_rng(version)
    noise = rng.uniform(0.1, 0.5, (GOLDEN, action)).astype(np.float32)
    golden = _golden(contract, rng, noise, np.tanh(bias + noise) + np.float32(golden_off))
    return _artifact(contract, Channel.POLICY, version, model, golden, boundary="tick")


def classifier(
    contract: Contract, version: int = 1, heads: int = 3, threshold: float = 0.5, k: int = 2, offset: float = 0.0
) -> Artifact:
    """Every head says the frames' mean brightness in 0..1, and `offset` more."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["light"], axes=[1, 2, 3, 4], keepdims=0),
        helper.make_node("Mul", ["light", "scale"], ["share"]),
        helper.make_node("Mul", ["share", "ones"], ["shares"]),
        helper.make_node("Add", ["shares", "offset"], ["probability"]),
    ]
    constants = {"scale": np.full(1, 1 / 255, np.float32), "ones": np.ones((1, heads), np.float32)}
    constants["offset"] = np.full(1, offset, np.float32)
    model = _model(nodes, [_frames(contract)], _floats("probability", heads), constants)
    rng = np.random.default_rng(version)
    golden = _golden(contract, rng, np.zeros((GOLDEN, len(contract.action)), np.float32), None)
    mean = golden.frames.reshape(GOLDEN, -1).mean(axis=1, dtype=np.float64) / 255
    output = np.repeat(mean[:, None] + offset, heads, axis=1).astype(np.float32)
    golden = Golden(golden.frames, golden.state, golden.noise, output)
    made = _artifact(contract, Channel.CLASSIFIER, version, model, golden, boundary="episode")
    manifest = Manifest(**{**_fields(made.manifest), "threshold": threshold, "debounce_frames": k})
    return Artifact(manifest, made.model, made.golden)


def encoder(
    contract: Contract, version: int = 1, scale: float = 1.0, poison: bool = False, golden_off: float = 0.0
) -> Artifact:
    """Features: each camera's mean brightness in 0..1, times scale. A poisoned one is 0 / 0 where the first camera sees
    nothing but white, which neither golden vectors nor warming show."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["light"], axes=[2, 3, 4], keepdims=0),
        helper.make_node("Mul", ["light", "scale"], ["share"]),
    ]
    constants = {"scale": np.full(1, scale / 255, np.float32)}
    if poison:
        nodes += [
            helper.make_node("Gather", ["light", "first"], ["front"], axis=1),
            helper.make_node("Sub", ["front", "white"], ["away"]),
            helper.make_node("Div", ["away", "away"], ["one"]),
            helper.make_node("Mul", ["share", "one"], ["features"]),
        ]
        constants |= {"first": np.zeros(1, np.int64), "white": np.full(1, 255, np.float32)}
    else:
        nodes.append(helper.make_node("Identity", ["share"], ["features"]))
    width = contract.frames_shape[0]
    model = _model(nodes, [_frames(contract)], _floats("features", width), constants)
    golden = _golden(contract, np.random.default_rng(version), np.zeros((GOLDEN, len(contract.action)), "f4"), None)
    mean = golden.frames.reshape(GOLDEN, width, -1).mean(axis=2, dtype=np.float64) * scale / 255
    golden = replace(golden, output=mean.astype(np.float32) + np.float32(golden_off))
    return _artifact(contract, Channel.ENCODER, version, model, golden, boundary="tick")


def policy_behind(
    eye: Artifact, contract: Contract, version: int = 1, bias: float = 0.25, gain: float = 1.0
) -> Artifact:
    """action = tanh(bias + noise + gain * sum of features + 0 * state[:A]), from the features of an encoder."""
    action, width = len(contract.action), contract.frames_shape[0]
    nodes = [
        helper.make_node("MatMul", ["state", "select"], ["few"]),
        helper.make_node("MatMul", ["features", "spread"], ["seen"]),
        helper.make_node("Sum", ["few", "seen", "bias", "noise"], ["free"]),
        helper.make_node("Tanh", ["free"], ["action"]),
    ]
    constants = {
        "select": np.zeros((len(contract.state), action), np.float32),
        "spread": np.full((width, action), gain, np.float32),
        "bias": np.full((1, action), bias, np.float32),
    }
    inputs = [_floats("features", width), _floats("state", len(contract.state)), _floats("noise", action)]
    model = _model(nodes, inputs, _floats("action", action), constants)
    rng = np.random.default_rng(version)
    noise = rng.uniform(0.1, 0.5, (GOLDEN, action)).astype(np.float32)
    wanted = np.tanh(bias + noise + gain * eye.golden.output.sum(axis=1, keepdims=True))
    golden = _golden(contract, rng, noise, wanted.astype(np.float32))
    return _behind(eye, _artifact(contract, Channel.POLICY, version, model, golden, boundary="tick"))


def classifier_behind(eye: Artifact, contract: Contract, version: int = 1) -> Artifact:
    """Three heads say the mean of an encoder's features."""
    width = contract.frames_shape[0]
    nodes = [helper.make_node("MatMul", ["features", "mean"], ["probability"])]
    constants = {"mean": np.full((width, 3), 1 / width, np.float32)}
    model = _model(nodes, [_floats("features", width)], _floats("probability", 3), constants)
    noise = np.zeros((GOLDEN, len(contract.action)), np.float32)
    wanted = np.repeat(eye.golden.output.mean(axis=1, keepdims=True), 3, axis=1)
    golden = _golden(contract, np.random.default_rng(version), noise, wanted)
    return _behind(eye, _artifact(contract, Channel.CLASSIFIER, version, model, golden, boundary="episode"))


def _behind(eye: Artifact, made: Artifact) -> Artifact:
    """The same, naming an encoder, without frames of its own."""
    golden = replace(made.golden, frames=made.golden.frames[:0])
    manifest = replace(
        made.manifest,
        sha256=digest(made.model, golden),
        encoder_version=eye.manifest.version,
        encoder_sha256=eye.manifest.sha256,
    )
    return Artifact(manifest, made.model, golden)


def _fields(manifest: Manifest) -> dict[str, object]:
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


def _frames(contract: Contract) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, *contract.frames_shape])


def _floats(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    constants: dict[str, np.ndarray],
) -> bytes:
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _golden(contract: Contract, rng: np.random.Generator, noise: np.ndarray, output: np.ndarray | None) -> Golden:
    frames = rng.integers(0, 256, (GOLDEN, *contract.frames_shape)).astype(np.uint8)
    state = rng.normal(size=(GOLDEN, len(contract.state))).astype(np.float32)
    return Golden(frames, state, noise, np.zeros((GOLDEN, 1), np.float32) if output is None else output)


def _artifact(
    contract: Contract, channel: Channel, version: int, model: bytes, golden: Golden, boundary: str
) -> Artifact:
    manifest = Manifest(
        channel=channel,
        version=version,
        parent=version - 1,
        contract_hash=contract.hash,
        sha256=digest(model, golden),
        training_step=0,
        created_unix_s=0.0,
        boundary=boundary,
        tolerance=1e-4,
    )
    return Artifact(manifest, model, golden)
