"""`steadyhand models`: what people see of a registry, and what pin and rollback leave for the robot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx_models
import pytest

from steadyhand_models import models_command, signing
from steadyhand_models.artifact import ArtifactError
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry
from steadyhand_models.standing import QUARANTINE, Pins, Quarantine, Standing, Standings

CONTRACT = onnx_models.lift().contract()
KEY = bytes(range(32))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Policies 1 to 3 of a robot that uses 3, the last one signed, and a classifier."""
    made = Registry(tmp_path)
    for version in (1, 2):
        made.publish(onnx_models.policy(CONTRACT, version))
    last = onnx_models.policy(CONTRACT, 3)
    last = replace(last, manifest=replace(last.manifest, metrics={"success": 0.5}, created_unix_s=1000.0))
    made.publish(signing.sign(last, KEY))
    made.publish(onnx_models.classifier(CONTRACT, 1))
    in_force(made, 3, previous=1)
    return made


def in_force(registry: Registry, version: int, previous: int = 0) -> None:
    sha256 = registry.manifest(Channel.POLICY, version).sha256
    Standings(registry.root).write({Channel.POLICY: Standing(version, sha256, previous)})


def run(registry: Registry, *words: str) -> int:
    return models_command.main([*words, "--registry", str(registry.root)])


def quarantined(registry: Registry, version: int) -> bool:
    return registry.manifest(Channel.POLICY, version).sha256 in Quarantine(registry.root / QUARANTINE)


def test_the_list_says_what_is_current_pinned_signed_and_how_old(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    Pins(registry.root).put(Channel.POLICY, 2)
    assert run(registry, "list") == 0
    text = capsys.readouterr().out
    for word in ("policy", "classifier", "v3", "current", "previous", "pinned", "success=0.5", "none"):
        assert word in text
    assert signing.public_of(KEY).partition(":")[2][:8] in text


def test_the_list_for_programs_has_every_version(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run(registry, "list", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [(r["channel"], r["version"]) for r in rows] == [
        *(("policy", v) for v in (1, 2, 3)),
        ("classifier", 1),
    ]
    assert rows[2]["state"] == ["current"] and rows[2]["signer"] == signing.public_of(KEY)


def test_age_is_what_has_gone_by_since_it_was_made(registry: Registry) -> None:
    row = next(r for r in models_command.rows(registry, 1090.0) if r.version == 3)
    assert row.age_s == 90.0


def test_show_prints_the_manifest_and_checks_the_signature(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run(registry, "show", "3")
    out = capsys.readouterr()
    assert json.loads(out.out)["version"] == 3 and signing.public_of(KEY) in out.err
    manifest = registry.root / "policy" / "v000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"training_step": 0', '"training_step": 1'))
    run(registry, "show", "3")
    assert "does not fit" in capsys.readouterr().err


def test_pin_and_unpin_leave_word_for_the_robot(registry: Registry) -> None:
    run(registry, "pin", "policy", "2")
    assert Pins(registry.root).read() == {Channel.POLICY: 2}
    run(registry, "pin", "classifier", "1")
    run(registry, "unpin", "policy")
    assert Pins(registry.root).read() == {Channel.CLASSIFIER: 1}


def test_what_is_not_there_or_quarantined_cannot_be_pinned(registry: Registry) -> None:
    with pytest.raises(ArtifactError, match=r"no policy v9 .* newest: v1, v2, v3"):
        run(registry, "pin", "policy", "9")
    run(registry, "rollback", "policy")
    with pytest.raises(ArtifactError, match="in quarantine"):
        run(registry, "pin", "policy", "3")


def test_rollback_quarantines_the_present_version_and_prefers_the_one_that_was_in_force_before(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run(registry, "rollback", "policy")
    assert "policy v3 is in quarantine; v1 takes its place" in capsys.readouterr().out
    assert [quarantined(registry, v) for v in (1, 2, 3)] == [False, False, True]


def test_rollback_skips_what_is_in_quarantine_and_refuses_when_nothing_is_left(registry: Registry) -> None:
    quarantine = Quarantine(registry.root / QUARANTINE)
    quarantine.add(registry.manifest(Channel.POLICY, 1).sha256)
    quarantine.save()
    assert models_command.roll_back(registry, Channel.POLICY) == (3, 2)
    in_force(registry, 2)
    with pytest.raises(ArtifactError, match="no earlier version"):
        models_command.roll_back(registry, Channel.POLICY)
    assert not quarantined(registry, 2)


def test_rollback_of_a_pinned_version_unpins_it(registry: Registry) -> None:
    Pins(registry.root).put(Channel.POLICY, 3)
    run(registry, "rollback", "policy")
    assert Pins(registry.root).read() == {}


def test_without_a_robot_there_is_nothing_to_roll_back_and_a_pin_says_it_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = Registry(tmp_path)
    fresh.publish(onnx_models.policy(CONTRACT, 1))
    with pytest.raises(ArtifactError, match="no robot uses a policy"):
        run(fresh, "rollback", "policy")
    run(fresh, "pin", "policy", "1")
    assert "no robot has run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (2e5, "2 d")]
)
def test_ages_are_in_the_largest_unit_of_which_there_are_two(seconds: float, text: str) -> None:
    assert models_command._age(seconds) == text


def test_an_encoder_is_shown_with_what_names_it_and_cannot_be_ordered_about_by_itself(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    old, eye = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2)
    policy = onnx_models.policy_behind(eye, CONTRACT, 4)
    for one in (old, eye, policy):
        registry.publish(one)
    in_force(registry, 4, previous=3)
    found = {(r.channel, r.version): r for r in models_command.rows(registry, 0.0)}
    assert found[Channel.POLICY, 4].encoder == 2 and found[Channel.POLICY, 3].encoder == 0
    assert found[Channel.ENCODER, 2].state == ("current",) and found[Channel.ENCODER, 1].state == ()
    run(registry, "list")
    assert "encoder" in capsys.readouterr().out
    for words in (("pin", "encoder", "1"), ("unpin", "encoder"), ("rollback", "encoder")):
        with pytest.raises(UserError, match="give the policy"):
            run(registry, *words)


def test_a_policy_whose_encoder_is_not_there_cannot_be_pinned(registry: Registry) -> None:
    registry.publish(onnx_models.policy_behind(onnx_models.encoder(CONTRACT, 5), CONTRACT, 4))
    with pytest.raises(ArtifactError, match="policy v4 needs encoder v5"):
        run(registry, "pin", "policy", "4")
    assert Pins(registry.root).read() == {}
