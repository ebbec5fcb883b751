"""Models in onnxruntime: what is accepted, what is refused, and that the bound buffers are the ones that are used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_models
import pytest

from steadyhand_models.artifact import Artifact, ArtifactError, Golden
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_runtime import engine, inference

CONTRACT = onnx_models.lift().contract()
FRAMES = np.full(CONTRACT.frames_shape, 51, np.uint8)
STATE = np.zeros(18, np.float32)
NO_NOISE = np.zeros(4, np.float32)


def test_a_policy_answers_with_the_action_of_its_inputs() -> None:
    model = inference.load(onnx_models.policy(CONTRACT, bias=0.25), CONTRACT)
    np.testing.assert_allclose(model.run(FRAMES, STATE, NO_NOISE), np.tanh([0.25] * 4), atol=1e-6)
    noise = np.array([1, -1, 0, 2], np.float32)
    np.testing.assert_allclose(model.run(FRAMES, STATE, noise), np.tanh(0.25 + noise), atol=1e-6)
    assert model.last_s > 0 and model.version == 1


def test_an_answer_is_not_changed_by_the_next_call() -> None:
    model = inference.load(onnx_models.policy(CONTRACT), CONTRACT)
    first = model.run(FRAMES, STATE, NO_NOISE)
    kept = first.copy()
    model.run(FRAMES, STATE, np.ones(4, np.float32))
    np.testing.assert_array_equal(first, kept)


def test_a_classifier_gives_every_head_s_probability() -> None:
    model = inference.load(onnx_models.classifier(CONTRACT, heads=3), CONTRACT)
    np.testing.assert_allclose(model.run(FRAMES), [0.2] * 3, atol=1e-5)


def test_golden_vectors_that_are_not_reproduced_refuse_the_artifact() -> None:
    with pytest.raises(ArtifactError, match=r"golden sample 0 is off by 0\.01"):
        inference.load(onnx_models.policy(CONTRACT, golden_off=0.01), CONTRACT)


def test_missing_or_uneven_golden_vectors_refuse_the_artifact() -> None:
    made = onnx_models.policy(CONTRACT)
    empty = Golden(*(getattr(made.golden, n)[:0] for n in ("frames", "state", "noise", "output")))
    uneven = replace(made.golden, state=made.golden.state[:2])
    for golden in (empty, uneven):
        with pytest.raises(ArtifactError, match="golden vectors"):
            inference.load(Artifact(made.manifest, made.model, golden), CONTRACT)


def test_weights_that_are_nan_refuse_the_artifact() -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        inference.load(onnx_models.policy(CONTRACT, bias=float("nan")), CONTRACT)


def test_an_output_that_is_not_finite_is_an_error_and_never_an_action() -> None:
    model = inference.load(onnx_models.policy(CONTRACT, poison=True), CONTRACT)
    with pytest.raises(inference.ModelFailure):
        model.run(FRAMES, np.full(18, onnx_models.POISON, np.float32), NO_NOISE)


def test_a_graph_of_other_inputs_or_outputs_is_refused() -> None:
    policy, classifier = onnx_models.policy(CONTRACT), onnx_models.classifier(CONTRACT)
    wider = replace(CONTRACT, state=(*CONTRACT.state, CONTRACT.state[0]))
    with pytest.raises(ArtifactError, match="the contract gives"):
        inference.Model(policy, wider)
    disguised = Artifact(replace(policy.manifest, channel=Channel.CLASSIFIER), policy.model, policy.golden)
    with pytest.raises(ArtifactError, match="the contract gives"):
        inference.Model(disguised, CONTRACT)
    narrow = replace(CONTRACT, action=CONTRACT.action[:3])
    with pytest.raises(ArtifactError):
        inference.Model(policy, narrow)
    assert inference.Model(classifier, CONTRACT).version == 1


def test_bytes_that_are_no_model_are_refused_in_words() -> None:
    made = onnx_models.policy(CONTRACT)
    with pytest.raises(ArtifactError, match="policy v1: onnxruntime cannot build it"):
        inference.Model(Artifact(made.manifest, made.model[: len(made.model) // 2], made.golden), CONTRACT)


def test_the_provider_that_was_asked_for_is_the_one_in_use() -> None:
    made = onnx_models.policy(CONTRACT)
    assert inference.Model(made, CONTRACT).providers == ["CPUExecutionProvider"]
    with pytest.warns(UserWarning), pytest.raises(UserError, match="instead of NoSuchExecutionProvider"):
        inference.Model(made, CONTRACT, engine=engine.Engine(("NoSuchExecutionProvider",)))


def test_two_onnxruntimes_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "two_onnxruntimes", lambda: "both installed; uninstall one")
    with pytest.raises(UserError, match="uninstall one"):
        inference.Model(onnx_models.policy(CONTRACT), CONTRACT)


def test_warming_measures_a_call() -> None:
    model = inference.load(onnx_models.classifier(CONTRACT), CONTRACT)
    assert 0 < model.warm(3) < 1
