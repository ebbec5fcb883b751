"""Artifacts are verified before use and registries never show half of one."""

import dataclasses

import numpy as np
import pytest

from steadyhand_models import artifact as a
from steadyhand_models import wire
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry

CONTRACT = "c" * 16


def make(version: int = 1, model: bytes = b"onnx", **changes: object) -> a.Artifact:
    golden = a.Golden(
        frames=np.zeros((2, 2, 4, 4, 3), np.uint8),
        state=np.zeros((2, 18), np.float32),
        noise=np.zeros((2, 4), np.float32),
        output=np.ones((2, 4), np.float32),
    )
    manifest = a.Manifest(
        channel=Channel.POLICY,
        version=version,
        parent=version - 1,
        contract_hash=CONTRACT,
        sha256=a.digest(model, golden),
        training_step=10,
        created_unix_s=1.0,
        boundary="tick",
        tolerance=1e-4,
        metrics={"success": 0.5},
    )
    return a.Artifact(dataclasses.replace(manifest, **changes), model, golden)


def test_a_bundle_comes_back_whole():
    back = a.unpack(a.pack(make()), CONTRACT)
    assert back.manifest == make().manifest
    assert back.model == b"onnx"
    np.testing.assert_array_equal(back.golden.output, make().golden.output)


def test_a_model_may_be_larger_than_a_message():
    model = bytes(wire.MAX_MESSAGE_BYTES + 1)
    assert a.unpack(a.pack(make(model=model)), CONTRACT).model == model


def test_a_changed_model_is_refused():
    with pytest.raises(a.ArtifactError, match="does not match its sha256"):
        a.unpack(a.pack(dataclasses.replace(make(), model=b"evil")), CONTRACT)


def test_another_contract_is_refused_by_name():
    with pytest.raises(a.ArtifactError, match=r"made for contract c+, this machine has d+"):
        a.unpack(a.pack(make()), "d" * 16)


def test_a_truncated_bundle_is_refused():
    with pytest.raises(a.ArtifactError, match="damaged bundle"):
        a.unpack(a.pack(make())[:-5], CONTRACT)


@pytest.mark.parametrize("text", ["", "{}", '{"channel": "policy", "surprise": 1}', '{"channel": "sound"}'])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(a.ArtifactError, match="not a manifest"):
        a.manifest_from_json(text)


def test_a_manifest_of_another_format_is_refused():
    text = dataclasses.replace(make().manifest, format=99).to_json()
    with pytest.raises(a.ArtifactError, match="artifact format 99"):
        a.manifest_from_json(text)


def test_a_registry_lists_and_loads_what_was_published(tmp_path):
    registry = Registry(tmp_path)
    assert registry.newest(Channel.POLICY) is None
    registry.publish(make(1))
    registry.publish(make(12, b"newer"))
    assert registry.versions(Channel.POLICY) == [1, 12]
    assert registry.load(Channel.POLICY, 12).model == b"newer"
    assert registry.versions(Channel.CLASSIFIER) == []


def test_versions_only_rise(tmp_path):
    registry = Registry(tmp_path)
    registry.publish(make(5))
    for version in (4, 5):
        with pytest.raises(a.ArtifactError, match="is not newer than v5"):
            registry.publish(make(version))


def test_half_a_publication_is_invisible(tmp_path):
    registry = Registry(tmp_path)
    registry.publish(make(1))
    (tmp_path / "policy" / ".v000002.77").mkdir()
    assert registry.newest(Channel.POLICY) == 1


def test_an_unknown_version_names_the_newest_ones(tmp_path):
    registry = Registry(tmp_path)
    registry.publish(make(3))
    with pytest.raises(a.ArtifactError, match=r"no policy v9 .* newest: v3"):
        registry.load(Channel.POLICY, 9)


def test_a_provider_may_have_a_tolerance_of_its_own_and_others_get_the_strictest():
    manifest = make(tolerances={"CUDAExecutionProvider": 1e-3}).manifest
    assert manifest.allowed(["CPUExecutionProvider"]) == manifest.allowed(["Unheard"]) == manifest.allowed([]) == 1e-4
    assert manifest.allowed(["CUDAExecutionProvider", "CPUExecutionProvider"]) == 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": "many"},
        {"sha256": "short"},
        {"boundary": "whenever"},
        {"tolerance": float("inf")},
        {"tolerance": float("nan")},
        {"tolerances": {"CUDAExecutionProvider": 99.0}},
        {"threshold": 2.0},
        {"debounce_frames": 0},
        {"metrics": {"loss": "low"}},
    ],
)
def test_a_manifest_with_a_value_out_of_bounds_is_refused_by_name(changes):
    text = dataclasses.replace(make().manifest, **changes).to_json()
    with pytest.raises(a.ArtifactError, match=f"not a manifest: {next(iter(changes))}"):
        a.manifest_from_json(text)


def test_a_field_of_a_newer_steadyhand_says_what_to_do():
    text = make().manifest.to_json().replace('"boundary"', '"colour": 1, "boundary"')
    with pytest.raises(a.ArtifactError, match="unknown field 'colour'; update"):
        a.manifest_from_json(text)
