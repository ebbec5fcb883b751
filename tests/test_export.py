"""Export: the graph computes what torch did, keeps to the oldest onnxruntime's format, and refuses broken models."""

import numpy as np
import onnx
import pytest
import torch

from steadyhand_models import task
from steadyhand_models.nets import export
from steadyhand_models.nets.actor_critic import Policy
from steadyhand_models.nets.export import IR_VERSION, OPSET, TOLERANCE, Exporter, ExportError

torch.set_num_threads(1)
CONTRACT = task.load("lift").contract()
RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (4, *CONTRACT.frames_shape), np.uint8)
STATE = (CONTRACT.state_offset + CONTRACT.state_scale * RANDOM.uniform(-1, 1, (4, len(CONTRACT.state)))).astype(
    np.float32
)


def make_policy(seed: int) -> Policy:
    torch.manual_seed(seed)
    return Policy(CONTRACT, 8, 32)


def run_onnx(model: bytes, frames: np.ndarray, state: np.ndarray, noise: np.ndarray) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["action"], {"frames": frames, "state": state, "noise": noise})[0]


class Judge(torch.nn.Module):
    """A stand-in for a classifier: two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.Linear(int(np.prod(CONTRACT.frames_shape)), 2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.heads(frames.to(torch.float32).flatten(1) / 255.0))


def test_a_policy_has_the_agreed_inputs_output_and_format() -> None:
    model, _ = export.policy(make_policy(0), CONTRACT, FRAMES, STATE)
    graph = onnx.load_model_from_string(model)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.graph.input}
    assert shapes == {"frames": [1, *CONTRACT.frames_shape], "state": [1, 18], "noise": [1, 4]}
    assert [o.name for o in graph.graph.output] == ["action"]
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert (graph.ir_version, graph.opset_import[0].version) == (IR_VERSION, OPSET) == (10, 17)


def test_golden_vectors_are_reproduced_and_cover_the_action_with_and_without_noise() -> None:
    policy = make_policy(1)
    model, golden = export.policy(policy, CONTRACT, FRAMES, STATE, seed=3)
    assert not golden.noise[:2].any() and golden.noise[2:].all()
    for i in range(4):
        got = run_onnx(model, *(v[i : i + 1] for v in (golden.frames, golden.state, golden.noise)))
        assert np.abs(got[0] - golden.output[i]).max() <= TOLERANCE


def test_weights_replaced_in_a_graph_equal_a_full_export() -> None:
    exporter = Exporter()
    exporter.policy(make_policy(1), CONTRACT, FRAMES, STATE)
    replaced, golden = exporter.policy(make_policy(2), CONTRACT, FRAMES, STATE, seed=5)
    full, _ = export.policy(make_policy(2), CONTRACT, FRAMES, STATE, seed=5)
    inputs = [v[3:] for v in (golden.frames, golden.state, golden.noise)]
    assert np.array_equal(run_onnx(replaced, *inputs), run_onnx(full, *inputs))


def test_the_second_export_does_not_trace_again(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = Exporter()
    exporter.policy(make_policy(1), CONTRACT, FRAMES, STATE)
    monkeypatch.setattr(export, "_trace", lambda *_: pytest.fail("traced again"))
    exporter.policy(make_policy(2), CONTRACT, FRAMES, STATE)


def test_a_network_of_another_shape_is_traced_anew() -> None:
    exporter = Exporter()
    exporter.policy(make_policy(1), CONTRACT, FRAMES, STATE)
    wider = Policy(CONTRACT, 12, 48)
    model, golden = exporter.policy(wider, CONTRACT, FRAMES, STATE)
    got = run_onnx(model, golden.frames[:1], golden.state[:1], golden.noise[:1])
    assert np.abs(got[0] - golden.output[0]).max() <= TOLERANCE


def test_a_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = export._trace

    def spoiled(net: torch.nn.Module, *rest: object) -> onnx.ModelProto:
        graph = trace(net, *rest)
        bias = next(t for t in graph.graph.initializer if t.name == "actor.mean.bias")
        bias.raw_data = np.full(4, 0.5, np.float32).tobytes()
        return graph

    monkeypatch.setattr(export, "_trace", spoiled)
    with pytest.raises(ExportError, match="differs from torch"):
        export.policy(make_policy(1), CONTRACT, FRAMES, STATE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    policy = make_policy(1)
    with torch.no_grad():
        policy.actor.log_std.bias[2] = value
    with pytest.raises(ExportError, match=r"actor\.log_std\.bias"):
        export.policy(policy, CONTRACT, FRAMES, STATE)


def test_a_refused_export_does_not_spoil_the_next() -> None:
    exporter, broken = Exporter(), make_policy(1)
    exporter.policy(make_policy(1), CONTRACT, FRAMES, STATE)
    with torch.no_grad():
        broken.actor.mean.bias[0] = float("nan")
    with pytest.raises(ExportError):
        exporter.policy(broken, CONTRACT, FRAMES, STATE)
    exporter.policy(make_policy(2), CONTRACT, FRAMES, STATE)


def test_a_classifier_is_exported_through_the_same_proof() -> None:
    torch.manual_seed(0)
    model, golden = export.classifier(Judge(), CONTRACT, FRAMES)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    got = session.run(["probability"], {"frames": golden.frames[2:3]})[0]
    assert golden.output.shape == (4, 2)
    assert np.abs(got[0] - golden.output[2]).max() <= TOLERANCE
    assert not golden.noise.any()


def test_without_onnxruntime_the_reference_evaluator_gives_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(export, "_onnxruntime", lambda model: pytest.fail("asked onnxruntime"))
    export.classifier(Judge(), CONTRACT, FRAMES[:2])
