"""A frozen encoder of its own: verified with what names it, run once a tick for all of it, swapped and taken back with
it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest

from steadyhand_models import signing
from steadyhand_models.artifact import Artifact, ArtifactError, digest, manifest_from_json, pack, unpack
from steadyhand_models.messages import Channel, Swap, SwapOutcome
from steadyhand_models.registry import EncoderMissing, Registry
from steadyhand_models.standing import Quarantine, Standings
from steadyhand_runtime import encoders, inference
from steadyhand_runtime.engine import Engine
from steadyhand_runtime.inference import Encoder
from steadyhand_runtime.probation import Probation
from steadyhand_runtime.standby import Rules
from steadyhand_runtime.swap import Models, Pace, Standby

CONTRACT = onnx_models.lift().contract()
GREY = np.full(CONTRACT.frames_shape, 51, np.uint8)  # brightness 0.2 in both cameras
DARK = np.zeros(CONTRACT.frames_shape, np.uint8)
WHITE = np.full(CONTRACT.frames_shape, 255, np.uint8)
STATE, NO_NOISE = np.zeros(18, np.float32), np.zeros(4, np.float32)
KEY = bytes(range(32))


class Desk:
    """A robot's registry, standby, and models as control sees them."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.registry = Registry(folder)
        self.quarantine = Quarantine(folder / "quarantine.txt")
        self.standby = Standby(self.registry, CONTRACT, self.quarantine, rules=Rules(**rules))
        self.models = Models(self.standby, self.quarantine)
        self.tick = 0

    def take(self, *artifacts: Artifact) -> list[Swap]:
        """Have artifacts arrive, look, and let two ticks go by; what became of them."""
        for one in artifacts:
            self.registry.publish(one)
        self.standby.look()
        return [*self.turn(), *self.turn()]

    def turn(self) -> list[Swap]:
        self.tick += 1
        self.models.turn(self.tick, self.tick * 100, Pace(), policy_free=True, episode_free=True)
        return self.models.records()

    def act(self, frames: np.ndarray = GREY) -> float:
        """All dimensions of the action are one number here."""
        action = self.models.act(frames, STATE, NO_NOISE)
        assert action is not None and np.ptp(action) == 0.0
        return float(action[0])

    @property
    def pair(self) -> tuple[int, int]:
        """Versions of the policy in force and of the encoder that it really uses."""
        policy = self.models.policy.current
        assert policy is not None and policy.encoder is not None
        return policy.version, policy.encoder.manifest.version


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions of the encoders that were run, as they were."""
    ran: list[int] = []
    encode = Encoder.encode

    def counted(self: Encoder, frames: np.ndarray, options: Any = None) -> None:
        ran.append(self.manifest.version)
        encode(self, frames, options)

    monkeypatch.setattr(Encoder, "encode", counted)
    return ran


def expected(bias: float, features: float, gain: float = 1.0) -> float:
    return float(np.tanh(bias + gain * features))


def test_a_policy_answers_from_the_features_of_the_encoder_that_it_names(desk: Desk) -> None:
    eye = onnx_models.encoder(CONTRACT)
    (swap,) = desk.take(eye, onnx_models.policy_behind(eye, CONTRACT, bias=0.1))
    assert (swap.outcome, desk.pair) == (SwapOutcome.SWAPPED, (1, 1))
    assert desk.act(GREY) == pytest.approx(expected(0.1, 0.4), abs=1e-6)
    desk.turn()
    assert desk.act(DARK) == pytest.approx(expected(0.1, 0.0), abs=1e-6)


def test_an_encoder_that_policy_and_classifier_name_runs_once_a_tick(desk: Desk, runs: list[int]) -> None:
    eye = onnx_models.encoder(CONTRACT)
    desk.take(eye, onnx_models.policy_behind(eye, CONTRACT), onnx_models.classifier_behind(eye, CONTRACT))
    runs.clear()
    for frames, light in ((GREY, 0.2), (DARK, 0.0), (WHITE, 1.0)):
        desk.turn()
        probability = desk.models.judge(frames)
        assert probability is not None and probability == pytest.approx([light] * 3, abs=1e-6)
        assert desk.act(frames) == pytest.approx(expected(0.25, 2 * light), abs=1e-6)
    assert runs == [1, 1, 1]


def test_policy_and_classifier_of_different_encoders_each_get_their_own(desk: Desk, runs: list[int]) -> None:
    old, new = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2, scale=0.5)
    desk.take(old, new, onnx_models.policy_behind(new, CONTRACT), onnx_models.classifier_behind(old, CONTRACT))
    runs.clear()
    desk.turn()
    assert desk.models.judge(GREY) == pytest.approx([0.2] * 3, abs=1e-6)
    assert desk.act(GREY) == pytest.approx(expected(0.25, 0.2), abs=1e-6)
    assert runs == [1, 2]


def test_features_go_from_encoder_to_models_without_being_copied(desk: Desk) -> None:
    eye = onnx_models.encoder(CONTRACT)
    desk.take(eye, onnx_models.policy_behind(eye, CONTRACT), onnx_models.classifier_behind(eye, CONTRACT))
    policy, judge = desk.models.policy.current, desk.models.classifier.current
    assert policy is not None and judge is not None and policy.encoder is not None
    assert policy.encoder is judge.encoder
    policy.encoder.features[:] = 0.3  # written where the encoder writes, read by both without any call in between
    assert policy.run(GREY, STATE, NO_NOISE, encoded=True)[0] == pytest.approx(expected(0.25, 0.6), abs=1e-6)
    assert judge.run(GREY, encoded=True)[0] == pytest.approx(0.3, abs=1e-6)


def test_trying_a_model_leaves_the_features_of_the_tick_alone(desk: Desk) -> None:
    """The candidate answers what the present pair was asked, in the middle of a tick."""
    eye = onnx_models.encoder(CONTRACT)
    desk.take(eye, onnx_models.policy_behind(eye, CONTRACT), onnx_models.classifier_behind(eye, CONTRACT))
    for _ in range(3):
        desk.turn()
        desk.models.judge(DARK)
        desk.act(DARK)
    desk.turn()
    desk.models.judge(WHITE)
    desk.registry.publish(onnx_models.policy_behind(eye, CONTRACT, 2, bias=0.3))
    desk.standby.look()
    assert desk.standby.take(Channel.POLICY) is not None
    assert desk.act(WHITE) == pytest.approx(expected(0.25, 2.0), abs=1e-6)


def test_encoder_and_policy_change_between_the_same_two_ticks(desk: Desk) -> None:
    old, new = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2, scale=0.5)
    desk.take(old, onnx_models.policy_behind(old, CONTRACT, 1, bias=0.1))
    desk.registry.publish(new)
    desk.registry.publish(onnx_models.policy_behind(new, CONTRACT, 2, bias=0.3))
    desk.standby.look()
    assert desk.pair == (1, 1) and desk.act() == pytest.approx(expected(0.1, 0.4), abs=1e-6)
    desk.turn()
    assert desk.pair == (2, 2) and desk.act() == pytest.approx(expected(0.3, 0.2), abs=1e-6)


def test_features_that_are_not_finite_take_the_pair_back_within_the_call(desk: Desk) -> None:
    good, bad = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2, scale=0.5, poison=True)
    desk.take(good, onnx_models.policy_behind(good, CONTRACT, 1, bias=0.1))
    desk.take(bad, onnx_models.policy_behind(bad, CONTRACT, 2))
    assert desk.pair == (2, 2)
    desk.turn()
    assert desk.act(WHITE) == pytest.approx(expected(0.1, 2.0), abs=1e-6)
    assert desk.pair == (1, 1)
    (record,) = desk.models.records()
    assert (record.outcome, record.version, record.previous) == (SwapOutcome.ROLLED_BACK, 2, 1)
    assert "encoder v2" in record.reason and "not finite" in record.reason
    assert bad.manifest.sha256 in desk.quarantine and good.manifest.sha256 not in desk.quarantine


def test_a_policy_that_names_a_quarantined_encoder_is_refused_by_that_name(desk: Desk) -> None:
    good, bad = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2)
    desk.quarantine.add(bad.manifest.sha256)
    desk.take(good, onnx_models.policy_behind(good, CONTRACT, 1))
    (refused,) = desk.take(bad, onnx_models.policy_behind(bad, CONTRACT, 2))
    assert refused.outcome is SwapOutcome.REFUSED
    assert "policy v2 needs encoder v2" in refused.reason and "quarantine" in refused.reason
    assert desk.pair == (1, 1)


def test_a_policy_waits_for_its_encoder_and_is_staged_when_that_arrives(desk: Desk) -> None:
    eye = onnx_models.encoder(CONTRACT, 3)
    (refused,) = desk.take(onnx_models.policy_behind(eye, CONTRACT, 7))
    assert refused.outcome is SwapOutcome.REFUSED and "needs encoder v3, which is not in" in refused.reason
    assert desk.take() == [] and desk.models.policy.version == 0
    (swap,) = desk.take(eye)
    assert (swap.outcome, desk.pair) == (SwapOutcome.SWAPPED, (7, 3))


def test_a_pinned_policy_that_lacked_its_encoder_is_used_once_that_arrives(desk: Desk) -> None:
    from steadyhand_models.standing import Pins

    old, eye = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2)
    desk.take(old, onnx_models.policy_behind(old, CONTRACT, 1))
    Pins(desk.registry.root).put(Channel.POLICY, 2)
    assert desk.take(onnx_models.policy_behind(eye, CONTRACT, 2))[0].outcome is SwapOutcome.REFUSED
    desk.take(eye)
    assert desk.pair == (2, 2)


@pytest.mark.parametrize("how", ["golden", "content", "graph", "unsigned"])
def test_an_encoder_that_fails_a_check_costs_the_policy_its_place_and_is_named(tmp_path: Path, how: str) -> None:
    desk = Desk(tmp_path, trusted_keys=(signing.public_of(KEY),))
    eye = onnx_models.encoder(CONTRACT, 4, golden_off=0.01 if how == "golden" else 0.0)
    if how == "graph":
        other = onnx_models.classifier(CONTRACT).model
        eye = Artifact(replace(eye.manifest, sha256=digest(other, eye.golden)), other, eye.golden)
    policy = signing.sign(onnx_models.policy_behind(eye, CONTRACT, 9), KEY)
    if how == "content":
        eye = onnx_models.encoder(CONTRACT, 4, scale=0.9)
    (refused,) = desk.take(eye if how == "unsigned" else signing.sign(eye, KEY), policy)
    assert refused.outcome is SwapOutcome.REFUSED and refused.version == 9
    assert "policy v9 needs encoder v4" in refused.reason
    words = {"golden": "off by", "content": "sha256", "graph": "no float output", "unsigned": "sign"}
    assert words[how] in refused.reason


def test_what_both_make_of_golden_frames_is_checked_beside_each_alone(desk: Desk) -> None:
    """Features that are off by less than is allowed may still end far away."""
    eye = onnx_models.encoder(CONTRACT, golden_off=0.00008)
    (refused,) = desk.take(eye, onnx_models.policy_behind(eye, CONTRACT, bias=-100.0, gain=100.0))
    assert "golden sample 0 is off by" in refused.reason
    (swap,) = desk.take(onnx_models.policy_behind(eye, CONTRACT, 2, gain=0.5))
    assert swap.outcome is SwapOutcome.SWAPPED


def test_a_pair_is_in_force_again_after_a_restart(desk: Desk, tmp_path: Path) -> None:
    old, new = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2, scale=0.5)
    desk.take(old, onnx_models.policy_behind(old, CONTRACT, 1))
    desk.take(new, onnx_models.policy_behind(new, CONTRACT, 2))
    desk.standby.stop()
    again = Desk(tmp_path)
    again.take()
    assert again.pair == (2, 2)
    assert set(Standings(tmp_path).read()) == set(Channel)


def test_one_session_serves_every_policy_of_the_same_encoder(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    session = inference.engines.session

    def counted(model: bytes, engine: Engine, name: str) -> Any:
        built.append(name)
        return session(model, engine, name)

    monkeypatch.setattr(inference.engines, "session", counted)
    eye = onnx_models.encoder(CONTRACT)
    desk.take(eye, onnx_models.policy_behind(eye, CONTRACT, 1))
    for version in (2, 3):
        desk.take(onnx_models.policy_behind(eye, CONTRACT, version))
    assert built == ["encoder v1", "policy v1", "policy v2", "policy v3"]


def test_a_shared_encoder_s_time_counts_for_a_policy_on_probation(desk: Desk) -> None:
    eye = onnx_models.encoder(CONTRACT)
    desk.take(eye, onnx_models.policy_behind(eye, CONTRACT, 1), onnx_models.classifier_behind(eye, CONTRACT))
    slot = desk.models.policy
    slot.probation = Probation(10, budget_s=0.0)  # whatever a call takes is too long
    desk.turn()
    desk.models.judge(GREY)
    assert slot.current is not None
    own_s = slot.current.last_s
    assert slot.current.encoder is not None
    desk.models._encoded[slot.current.encoder] = 5.0
    assert desk.models._cost_s(slot.current, 0.0) == pytest.approx(5.0 + own_s)


def test_a_model_gets_the_encoder_that_it_names_and_no_other() -> None:
    eye, other = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2, scale=0.5)
    behind, plain = onnx_models.policy_behind(eye, CONTRACT), onnx_models.policy(CONTRACT)
    with pytest.raises(ArtifactError, match="policy v1 needs encoder v1 and got encoder v2"):
        inference.load(behind, CONTRACT, inference.load_encoder(other, CONTRACT))
    with pytest.raises(ArtifactError, match="needs encoder v1 and got none"):
        inference.load(behind, CONTRACT)
    with pytest.raises(ArtifactError, match="needs no encoder and got encoder v1"):
        inference.load(plain, CONTRACT, inference.load_encoder(eye, CONTRACT))


def test_a_registry_s_policy_is_loaded_with_its_encoder_or_refused_for_lack_of_it(tmp_path: Path) -> None:
    eye = onnx_models.encoder(CONTRACT)
    policy = onnx_models.policy_behind(eye, CONTRACT, bias=0.1)
    with pytest.raises(EncoderMissing, match="needs encoder v1"):
        encoders.load(Registry(tmp_path), policy, CONTRACT)
    Registry(tmp_path).publish(eye)
    model = encoders.load(Registry(tmp_path), policy, CONTRACT)
    assert model.run(GREY, STATE, NO_NOISE)[0] == pytest.approx(expected(0.1, 0.4), abs=1e-6)
    plain = encoders.load(Registry(tmp_path), onnx_models.policy(CONTRACT, bias=0.1), CONTRACT)
    assert plain.run(GREY, STATE, NO_NOISE)[0] == pytest.approx(np.tanh(0.1), abs=1e-6)


def test_a_manifest_without_an_encoder_means_frames_and_one_half_named_is_refused() -> None:
    made = onnx_models.policy(CONTRACT)
    text = made.manifest.to_json()
    assert manifest_from_json(text).encoder_version == 0
    old = "\n".join(line for line in text.splitlines() if "encoder_" not in line)
    assert manifest_from_json(old) == made.manifest
    with pytest.raises(ArtifactError, match="belong together"):
        manifest_from_json(text.replace('"encoder_version": 0', '"encoder_version": 3'))
    behind = onnx_models.policy_behind(onnx_models.encoder(CONTRACT), CONTRACT)
    assert unpack(pack(behind), CONTRACT.hash).manifest == behind.manifest
    with pytest.raises(ArtifactError, match="no other encoder"):
        manifest_from_json(behind.manifest.to_json().replace('"policy"', '"encoder"'))


def test_an_encoder_older_than_the_newest_may_still_arrive(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for version in (2, 1):
        registry.publish(onnx_models.encoder(CONTRACT, version))
    assert registry.versions(Channel.ENCODER) == [1, 2]
    with pytest.raises(ArtifactError, match="there already"):
        registry.publish(onnx_models.encoder(CONTRACT, 1))
