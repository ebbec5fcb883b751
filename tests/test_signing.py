"""Signatures: what a key signs, what a robot that trusts it refuses, and where keys are kept."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import onnx_models
import pytest

from steadyhand_models import artifact as artifacts
from steadyhand_models import keys, signing
from steadyhand_models.artifact import Artifact, ArtifactError, Golden
from steadyhand_models.cli import UserError

CONTRACT = onnx_models.lift().contract()
MINE, OTHER = bytes(range(32)), bytes(range(1, 33))


def signed(key: bytes = MINE) -> Artifact:
    return signing.sign(onnx_models.policy(CONTRACT, 3), key)


def with_manifest(made: Artifact, **changes: object) -> Artifact:
    return dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, **changes))


def test_the_key_and_signature_of_the_standard_s_first_test_vector() -> None:
    # RFC 8032, section 7.1, TEST 1
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert signing.public_bytes(signing.public_of(secret)) == public


def test_a_trusted_signature_passes_and_survives_the_bundle() -> None:
    made = artifacts.unpack(artifacts.pack(signed()), CONTRACT.hash)
    signing.check(made, [signing.public_of(OTHER), signing.public_of(MINE)])
    assert signing.verify(made) == signing.public_of(MINE)


def test_without_trusted_keys_everything_passes_and_with_them_nothing_unsigned_does() -> None:
    unsigned = onnx_models.policy(CONTRACT)
    signing.check(unsigned, [])
    with pytest.raises(ArtifactError, match=r"policy v1: not signed.*link.trusted_keys"):
        signing.check(unsigned, [signing.public_of(MINE)])


def test_a_stranger_s_signature_is_refused_by_name() -> None:
    with pytest.raises(ArtifactError, match="not among this robot's"):
        signing.check(signed(OTHER), [signing.public_of(MINE)])


@pytest.mark.parametrize(
    "changes",
    [{"version": 4}, {"threshold": 0.1}, {"tolerance": 1.0}, {"boundary": "episode"}, {"metrics": {"a": 1.0}}],
)
def test_a_manifest_changed_after_signing_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="does not fit its content"):
        signing.verify(with_manifest(signed(), **changes))


def test_contents_changed_after_signing_are_refused_even_with_a_hash_that_fits() -> None:
    made = signed()
    golden = Golden(made.golden.frames, made.golden.state, made.golden.noise, made.golden.output + 1)
    for model, vectors in ((made.model + b"x", made.golden), (made.model, golden)):
        forged = dataclasses.replace(made, model=model, golden=vectors)
        forged = with_manifest(forged, sha256=artifacts.digest(model, vectors))
        with pytest.raises(ArtifactError, match="does not fit its content"):
            signing.verify(forged)


def test_a_signature_put_under_another_key_s_name_is_refused() -> None:
    made = signed(OTHER)
    body = made.manifest.signature.rsplit(":", 1)[1]
    with pytest.raises(ArtifactError, match="does not fit"):
        signing.check(with_manifest(made, signature=f"{signing.public_of(MINE)}:{body}"), [signing.public_of(MINE)])


@pytest.mark.parametrize("text", ["x", "rsa:AA==:AA==", "ed25519:!!:AA==", "ed25519:AA==:AA=="])
def test_what_is_no_signature_is_refused_in_words(text: str) -> None:
    with pytest.raises(ArtifactError, match="is no signature"):
        signing.verify(with_manifest(signed(), signature=text))


def test_a_signature_does_not_depend_on_how_a_number_is_written() -> None:
    made = with_manifest(onnx_models.policy(CONTRACT, 3), created_unix_s=12)
    made = signing.sign(made, MINE)
    text = made.manifest.to_json()
    assert json.loads(text)["created_unix_s"] == 12
    back = dataclasses.replace(made, manifest=artifacts.manifest_from_json(text.replace(": 12,", ": 12.0,")))
    assert signing.verify(back) == signing.public_of(MINE)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "AAAA", "rsa:" + "A" * 43 + "="])
def test_what_is_no_public_key_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(UserError, match="steadyhand keys show"):
        signing.public_bytes(text)


def test_a_new_key_is_private_and_never_replaces_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "signing.key"
    assert keys.main(["new", "--path", str(path)]) == 0
    public = capsys.readouterr().out.strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.main(["show", "--path", str(path)]) == 0
    assert capsys.readouterr().out.strip() == public
    with pytest.raises(UserError, match="holds a key already"):
        keys.main(["new", "--path", str(path)])
    made = keys.signed(onnx_models.policy(CONTRACT), path)
    signing.check(made, [public])


def test_without_a_key_artifacts_stay_unsigned(tmp_path: Path) -> None:
    made = onnx_models.policy(CONTRACT)
    assert keys.signed(made, tmp_path / "none") is made
    with pytest.raises(UserError, match="keys new"):
        keys.main(["show", "--path", str(tmp_path / "none")])


def test_a_key_that_others_may_read_or_that_is_none_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    keys.make(path)
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        keys.load(path)
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(UserError, match="is no key"):
        keys.load(path)


def test_keys_live_where_the_desktop_s_settings_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keys.default_path() == tmp_path / "steadyhand" / "signing.key"
