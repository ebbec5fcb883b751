"""The frozen encoder leaves the trainer once: named by every policy, published again only with other content, and both
graphs together compute what torch does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_backbone import lite0
from test_learner import CONTRACT, SMALL, make_learner
from test_trainer import DEMONSTRATIONS, LOCKSTEP, Bench
from training_steps import driven

from steadyhand_models.artifact import Artifact, pack
from steadyhand_models.messages import Channel, Source
from steadyhand_models.nets import export
from steadyhand_models.nets.export import ExportError
from steadyhand_models.registry import Registry
from steadyhand_runtime import encoders
from steadyhand_training.config import Algorithm, BackboneSettings, Encoders, Gripper, LearnerSettings
from steadyhand_training.learner import Learner

torch.set_num_threads(1)
TINY = dataclasses.replace(LOCKSTEP, utd_ratio=1.0)


def learned(settings: LearnerSettings) -> Learner:
    learner = make_learner(settings)
    learner.pretrain()
    for _ in range(3):
        learner.update()
    return learner


def with_encoder(learner: Learner, version: int = 1) -> tuple[Artifact, Artifact]:
    """Encoder and policy as they are published."""
    eye = learner.encoder(1)
    assert eye is not None
    return eye, learner.artifact(version, version - 1, eye)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "lite0.pt"
    torch.save(lite0(), path)
    return path


@pytest.mark.parametrize("kind", ["frozen", "discrete gripper", "drqv2", "backbone"])
def test_both_graphs_together_compute_on_the_robot_what_torch_does(kind: str, weights: Path, tmp_path: Path) -> None:
    settings = {
        "frozen": SMALL,
        "discrete gripper": dataclasses.replace(SMALL, gripper=Gripper.DISCRETE),
        "drqv2": dataclasses.replace(SMALL, algorithm=Algorithm.DRQV2, encoder=Encoders.FROZEN),
        "backbone": dataclasses.replace(SMALL, encoder=Encoders.BACKBONE, backbone=BackboneSettings(file=weights)),
    }[kind]
    learner = learned(settings)
    registry = Registry(tmp_path)
    eye, policy = with_encoder(learner)
    registry.publish(eye)
    model = encoders.load(registry, policy, CONTRACT)
    assert (policy.manifest.encoder_version, policy.manifest.encoder_sha256) == (1, eye.manifest.sha256)
    assert len(policy.golden.frames) == 0 and len(policy.golden.output) == len(eye.golden.output)
    random = np.random.default_rng(0)
    net = learner.published()
    for row in range(0, learner.replay.size, 5):
        frames, state = learner.replay.frames[row], learner.replay.state[row]
        noise = random.standard_normal(4).astype(np.float32)
        with torch.inference_mode():
            wanted = net(*(torch.tensor(v)[None] for v in (frames, state, noise)))[0].numpy()
        np.testing.assert_allclose(model.run(frames, state, noise), wanted, atol=export.TOLERANCE)


def test_a_policy_that_names_its_encoder_leaves_weights_and_frames_of_it_behind() -> None:
    learner = learned(dataclasses.replace(SMALL, features_per_camera=64))
    whole = learner.artifact(1, 0)
    eye, policy = with_encoder(learner)
    weights = sum(value.numel() * value.element_size() for value in learner.policy.encoder.state_dict().values())
    assert len(pack(whole)) - len(pack(policy)) > weights
    assert len(eye.model) > weights


def test_an_encoder_that_learns_stays_within_its_policy() -> None:
    learner = learned(dataclasses.replace(SMALL, encoder=Encoders.END_TO_END))
    assert learner.encoder(1) is None
    assert learner.artifact(1, 0).manifest.encoder_version == 0


def test_a_policy_whose_encoder_computes_something_else_is_not_published() -> None:
    """Golden features and frames must belong together, whatever each of the graphs does by itself."""
    learner = learned(SMALL)
    eye, _ = with_encoder(learner)
    other = dataclasses.replace(eye, golden=dataclasses.replace(eye.golden, output=eye.golden.output + 0.5))
    with pytest.raises(ExportError, match=r"behind encoder v1.*differs from torch"):
        learner.artifact(2, 1, other)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "run", TINY)
    yield made
    made.close()


def encoders_of(bench: Bench) -> list[int]:
    """The encoder that each published policy names."""
    registry = Registry(bench.folder.registry)
    return [registry.manifest(Channel.POLICY, v).encoder_version for v in registry.versions(Channel.POLICY)]


def test_one_encoder_serves_all_policies_of_a_run_and_a_restart_does_not_send_it_again(bench: Bench) -> None:
    bench.feed(DEMONSTRATIONS)
    bench.feed(driven(10, Source.POLICY, count=12))
    registry, before = Registry(bench.folder.registry), encoders_of(bench)
    assert len(before) >= 2
    bench.restart()
    bench.feed(driven(11, Source.POLICY, count=12))
    assert len(encoders_of(bench)) > len(before) and set(encoders_of(bench)) == {1}
    assert registry.versions(Channel.ENCODER) == [1]


def test_an_encoder_with_other_weights_goes_out_under_a_new_version(bench: Bench) -> None:
    bench.feed(DEMONSTRATIONS)
    trainer = bench.trainer
    other = Learner(trainer.contract, trainer.memory.replay, TINY.learner, seed=9)
    other.pretrain()
    first, second, again = (trainer.release.encoder(one.encoder) for one in (trainer.learner, other, other))
    assert first is not None and second is not None and again is not None
    assert [a.manifest.version for a in (first, second, again)] == [1, 2, 2]
    assert first.model != second.model


def test_a_policy_stays_back_when_its_encoder_cannot_be_published(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Registry.publish

    def full(self: Registry, artifact: Artifact) -> Path:
        if artifact.manifest.channel is Channel.ENCODER:
            raise OSError("no space left")
        return publish(self, artifact)

    monkeypatch.setattr(Registry, "publish", full)
    bench.feed(DEMONSTRATIONS)
    assert encoders_of(bench) == []
    assert "encoder v1 could not be published: no space left" in bench.trainer.release.message
    monkeypatch.undo()
    bench.feed(driven(10, Source.POLICY, count=12))
    assert set(encoders_of(bench)) == {1}
