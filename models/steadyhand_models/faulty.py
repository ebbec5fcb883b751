"""Faulty policies for tests and benches: exported graphs that pass every check and misbehave when triggered."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from steadyhand_models.artifact import Artifact, digest

TRIGGER = 1e6  # the first number of the state beyond which the fault shows; no joint is ever there
_WIDTH = 1000
_CLEAN = "clean_action"


class Fault(str, enum.Enum):
    """What a faulty policy does once it is triggered."""

    NAN = "nan"
    ERROR = "error"  # onnxruntime fails
    SLOW = "slow"  # the answer is right, and late


def make(artifact: Artifact, fault: Fault, version: int, iterations: int = 0) -> Artifact:
    """A policy with a fault in it, as a new version with the same golden vectors.

    A slow one takes `iterations` turns of a loop, some 10 us each.
    """
    model = onnx.load_model_from_string(artifact.model)
    _rename_output(model.graph)
    _add(model.graph, fault, iterations)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    manifest = dataclasses.replace(
        artifact.manifest,
        version=version,
        parent=artifact.manifest.version,
        sha256=digest(data, artifact.golden),
        signature="",
    )
    return Artifact(manifest, data, artifact.golden)


def _rename_output(graph: onnx.GraphProto) -> None:
    """Give the policy's own answer another name, so that `action` is free."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "action":
                    names[i] = _CLEAN


def _add(graph: onnx.GraphProto, fault: Fault, iterations: int) -> None:
    """Nodes from `clean_action` and `state` to `action`; `triggered` is a bool (1,)."""
    constants: dict[str, npt.NDArray[Any]] = {
        "fault_first": np.zeros(1, np.int64),
        "fault_trigger": np.full((1, 1), TRIGGER, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["state", "fault_first"], ["fault_joint"], axis=1),
        helper.make_node("Greater", ["fault_joint", "fault_trigger"], ["fault_shows"]),
    ]
    if fault is Fault.NAN:
        constants["fault_nan"] = np.full((1, 1), np.nan, np.float32)
        nodes.append(helper.make_node("Where", ["fault_shows", "fault_nan", _CLEAN], ["action"]))
    elif fault is Fault.ERROR:
        actions = graph.output[0].type.tensor_type.shape.dim[1].dim_value
        constants |= {"fault_places": np.arange(actions).reshape(1, -1), "fault_far": np.full((1, 1), 1000)}
        nodes += [
            helper.make_node("Cast", ["fault_shows"], ["fault_one"], to=TensorProto.INT64),
            helper.make_node("Mul", ["fault_one", "fault_far"], ["fault_off"]),
            helper.make_node("Add", ["fault_places", "fault_off"], ["fault_where"]),
            helper.make_node("GatherElements", [_CLEAN, "fault_where"], ["action"], axis=1),
        ]
    else:
        constants |= {
            "fault_turns": np.full((1, 1), iterations, np.int64),
            "fault_always": np.array(True),
            "fault_work": np.ones((1, _WIDTH), np.float32),
            "fault_zero": np.zeros(1, np.float32),
        }
        nodes += [
            helper.make_node("Cast", ["fault_shows"], ["fault_one"], to=TensorProto.INT64),
            helper.make_node("Mul", ["fault_one", "fault_turns"], ["fault_count"]),
            helper.make_node("ReduceMax", ["fault_count"], ["fault_trips"], keepdims=0),
            helper.make_node("Loop", ["fault_trips", "fault_always", "fault_work"], ["fault_done"], body=_body()),
            helper.make_node("ReduceMean", ["fault_done"], ["fault_mean"], keepdims=0),
            helper.make_node("Mul", ["fault_mean", "fault_zero"], ["fault_nothing"]),
            helper.make_node("Add", [_CLEAN, "fault_nothing"], ["action"]),
        ]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def _body() -> onnx.GraphProto:
    """One turn of the slow loop: a sine of a thousand numbers."""
    shape = [1, _WIDTH]
    nodes = [helper.make_node("Identity", ["on"], ["on_out"]), helper.make_node("Sin", ["work"], ["work_out"])]
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("work", TensorProto.FLOAT, shape),
    ]
    outputs = [
        helper.make_tensor_value_info("on_out", TensorProto.BOOL, []),
        helper.make_tensor_value_info("work_out", TensorProto.FLOAT, shape),
    ]
    return helper.make_graph(nodes, "turn", inputs, outputs)
