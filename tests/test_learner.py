"""The learner: pretraining, the feature cache, updates, artifacts and exact resume, on a small task of its own."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from steadyhand_models import artifact, reward, settings, task
from steadyhand_models.messages import Channel, EndReason, Source, Step
from steadyhand_models.nets.export import ExportError
from steadyhand_training.config import Algorithm, Device, DrqV2Settings, Encoders, LearnerSettings
from steadyhand_training.learner import CHECK_EVERY, CheckpointError, Diverged, Learner
from steadyhand_training.replay import Refusal, Replay
from steadyhand_training.response import Response, ResponseSettings
from steadyhand_training.watch import WarningCode

torch.set_num_threads(1)
LIFT = task.load("lift").contract()
CAMERA = dataclasses.replace(LIFT.cameras[0], native_px=(16, 16), crop_px=(0, 0, 16, 16), size_px=(16, 16))
CONTRACT = dataclasses.replace(LIFT, cameras=(CAMERA,))
SMALL = LearnerSettings(
    batch=16, hidden=16, features_per_camera=8, pretrain_batches=4, pretrain_batch=8, warmup_updates=2, shift_px=1
)


def record(replay: Replay, episode: int, source: Source, actions: int = 6) -> None:
    """An episode whose picture shows a square, whose action is to move to its side, and which succeeds at its end."""
    random = np.random.default_rng(episode)
    for seq in range(actions + 1):
        end = EndReason.SUCCESS if seq == actions else None
        side = random.integers(0, 2)
        frames = np.zeros(CONTRACT.frames_shape, np.uint8)
        frames[0, 4:12, 9 * side : 9 * side + 6] = 255
        action = None if end else np.array([2.0 * side - 1.0, 0.0, 0.0, 0.5], np.float32) * 0.8
        replay.append(
            Step(
                run="run",
                episode=episode,
                seq=seq,
                tick=seq,
                stamp_ns=seq,
                contract=CONTRACT.hash,
                frames=frames,
                state=CONTRACT.state_offset.copy(),
                proposed=action,
                executed=action,
                source=Source.NONE if end else source,
                reasons=(),
                classifier=None,
                policy_version=0,
                classifier_version=0,
                frame_age_s=0.0,
                state_age_s=0.0,
                end=end,
            )
        )
    success = np.zeros(actions + 1, np.bool_)
    success[-1] = True
    replay.set_outcome(episode, reward.outcome(success, EndReason.SUCCESS))


def make_learner(chosen: LearnerSettings = SMALL, seed: int = 0, episodes: int = 4) -> Learner:
    replay = Replay(CONTRACT, 4000)
    for episode in range(episodes):
        record(replay, episode, Source.DEMONSTRATION)
    return Learner(CONTRACT, replay, chosen, seed)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    encoder = {f"encoder.{k}": v for k, v in learner.policy.encoder.state_dict().items()}
    return {k: v.clone() for k, v in (learner.algorithm.networks() | encoder).items()}


def test_pretraining_clones_the_demonstrations() -> None:
    learner = make_learner(dataclasses.replace(SMALL, pretrain_batches=150, warmup_updates=0))
    heard: list[float] = []
    learner.pretrain(lambda share, what: heard.append(share))
    rows = learner.replay.guided_rows()
    frames, state = (torch.from_numpy(v[rows]) for v in (learner.replay.frames, learner.replay.state))
    got = learner.policy(frames, state, torch.zeros(len(rows), 4)).detach().numpy()
    assert np.abs(got - learner.replay.executed[rows]).mean() < 0.1
    assert heard == sorted(heard) and heard[-1] == 1.0


def test_pretraining_without_demonstrations_says_so() -> None:
    with pytest.raises(ValueError, match="needs demonstrations"):
        make_learner(episodes=0).pretrain()


def test_updates_change_actor_and_critics_but_never_the_frozen_encoder() -> None:
    learner = make_learner()
    learner.pretrain()
    before = weights(learner)
    for _ in range(4):
        learner.update()
    after = weights(learner)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith("encoder.")}


def test_a_robot_gets_the_running_average_of_the_actor() -> None:
    learner = make_learner(dataclasses.replace(SMALL, average_rate=0.25, actor_every=1))
    learner.pretrain()
    name = "actor.mean.weight"
    before = learner.published().state_dict()[name].clone()
    learner.update()
    after, trained = learner.published().state_dict()[name], learner.policy.state_dict()[name]
    assert torch.allclose(after, before + 0.25 * (trained - before), atol=1e-7)
    assert not torch.equal(after, trained)
    golden = learner.artifact(1, 0).golden
    inputs = [torch.from_numpy(v) for v in (golden.frames, golden.state, golden.noise)]
    with torch.no_grad():
        assert np.allclose(learner.published()(*inputs).numpy(), golden.output, atol=1e-5)


def test_warm_up_moves_the_critics_and_not_the_cloned_actor() -> None:
    cold, warm = (make_learner(dataclasses.replace(SMALL, warmup_updates=n)) for n in (0, 5))
    for learner in (cold, warm):
        learner.pretrain()
    one, two = weights(cold), weights(warm)
    moved = {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}
    assert moved == {"critics", "targets"}
    assert warm.updates == 0


def test_cached_features_are_those_of_the_encoder_for_plain_and_shifted_frames() -> None:
    learner = make_learner(dataclasses.replace(SMALL, shifted_copies=2))
    learner.pretrain()
    with torch.no_grad():
        plain = learner.policy.encoder(torch.from_numpy(learner.replay.frames[:10]))
    views = learner._sights._views
    assert torch.allclose(views[:10, 0], plain, atol=1e-6)
    assert not torch.allclose(views[:10, 1], plain, atol=1e-3)


def test_rows_recorded_after_pretraining_are_encoded_whether_or_not_anybody_said_so() -> None:
    learner = make_learner()
    learner.pretrain()
    for episode in range(10, 200):
        record(learner.replay, episode, Source.POLICY)
    for _ in range(40):
        learner.update()
    row = int(learner.replay.rows(199)[0])
    learner.observe(np.array([row]))
    with torch.no_grad():
        fresh = learner.policy.encoder(torch.from_numpy(learner.replay.frames[row : row + 1]))
    assert torch.allclose(learner._sights._views[row, :1], fresh, atol=1e-6)
    seen = learner._sights.of(np.array([row + 1]), np.random.default_rng(0))  # of which nobody has said anything
    assert learner._sights.knows(np.array([row + 1])).all() and seen.view.abs().sum() > 0


def test_cloning_fades_by_its_half_life() -> None:
    learner = make_learner(dataclasses.replace(SMALL, bc_weight=1.0, bc_weight_end=0.2, bc_half_life_updates=100))
    assert learner.bc_weight == 1.0
    learner.updates = 100
    assert learner.bc_weight == pytest.approx(0.6)
    learner.updates = 100_000
    assert learner.bc_weight == pytest.approx(0.2)


def test_weights_that_stop_being_finite_return_to_the_last_good_ones_and_are_counted() -> None:
    learner = make_learner()
    learner.pretrain()
    for _ in range(CHECK_EVERY):
        learner.update()
    good = weights(learner)
    with torch.no_grad():
        learner.algorithm.critics.layers[0].weight.fill_(float("nan"))
    for _ in range(CHECK_EVERY):
        learner.update()
    assert learner.restores == 1
    assert all(torch.equal(value, good[name]) for name, value in weights(learner).items())
    learner.update()
    assert all(torch.isfinite(value).all() for value in weights(learner).values())


def test_a_learner_that_diverges_again_and_again_gives_up_with_a_reason() -> None:
    learner = make_learner()
    learner.pretrain()
    with pytest.raises(Diverged, match=r"diverged 4 times by update \d+: .*nan"):
        for _ in range(6 * CHECK_EVERY):
            with torch.no_grad():
                learner.algorithm.actor.mean.weight.fill_(float("nan"))
            learner.update()


def test_a_resumed_learner_continues_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    learner = make_learner()
    learner.pretrain()
    for _ in range(7):
        learner.update()
    learner.save(tmp_path / "learner.pt")
    resumed = make_learner(seed=99)
    resumed.load(tmp_path / "learner.pt")
    for each in (learner, resumed):
        record(each.replay, 50, Source.TAKEOVER)
        for _ in range(5):
            each.update()
    one, two = weights(learner), weights(resumed)
    assert resumed.updates == 12 and resumed.pretrained
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_before_pretraining_resumes_to_the_same_pretraining(tmp_path: Path) -> None:
    learner = make_learner()
    learner.save(tmp_path / "learner.pt")
    resumed = make_learner(seed=5)
    resumed.load(tmp_path / "learner.pt")
    assert not resumed.pretrained and not resumed.ready
    resumed.pretrain()
    learner.pretrain()
    one, two = weights(learner), weights(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one if not name.startswith(("critics", "targets")))


def test_checkpoints_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path) -> None:
    learner = make_learner()
    learner.save(tmp_path / "learner.pt")
    wider = make_learner(dataclasses.replace(SMALL, hidden=24))
    with pytest.raises(CheckpointError, match="other learner settings"):
        wider.load(tmp_path / "learner.pt")
    levels = make_learner(dataclasses.replace(SMALL, light_invariant=False))
    with pytest.raises(CheckpointError, match="light_invariant was True"):
        levels.load(tmp_path / "learner.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "learner.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        learner.load(tmp_path / "torn.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        learner.load(tmp_path / "absent.pt")
    other = Learner(LIFT, Replay(LIFT, 100), SMALL, 0)
    with pytest.raises(CheckpointError, match="contract"):
        other.load(tmp_path / "learner.pt")


def test_an_artifact_is_whole_verified_and_names_its_step() -> None:
    learner = make_learner()
    learner.pretrain()
    for _ in range(3):
        learner.update()
    made = learner.artifact(version=7, parent=6)
    back = artifact.unpack(artifact.pack(made), CONTRACT.hash)
    assert (back.manifest.channel, back.manifest.version, back.manifest.parent) == (Channel.POLICY, 7, 6)
    assert (back.manifest.training_step, back.manifest.boundary) == (3, "tick")
    assert back.golden.output.shape == (4, 4)


def test_an_artifact_of_a_broken_policy_or_without_any_frame_is_refused() -> None:
    learner = make_learner()
    with torch.no_grad():
        learner.algorithm.average["actor"].mean.bias[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        learner.artifact(1, 0)
    with pytest.raises(ExportError, match="no frames"):
        make_learner(episodes=0).artifact(1, 0)


def test_settings_out_of_bounds_are_named() -> None:
    with pytest.raises(settings.SettingsError, match="discount"):
        settings.validate(LearnerSettings, {"discount": 1.0}, "here")
    with pytest.raises(settings.SettingsError, match="temperature"):
        settings.validate(LearnerSettings, {"temprature": 0.1}, "here")


END_TO_END = dataclasses.replace(SMALL, encoder=Encoders.END_TO_END)


def test_an_encoder_end_to_end_learns_from_the_critics_on_shifted_frames() -> None:
    learner = make_learner(END_TO_END)
    learner.pretrain()
    before = weights(learner)
    learner.update()
    moved = {name for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoder.") for name in moved)
    rows = learner.replay.guided_rows()[:8]
    one, two = (learner._sight(rows).view for _ in range(2))
    assert one.dtype is torch.uint8 and not torch.equal(one, two)


def test_warming_up_leaves_a_learned_encoder_and_the_actor_as_they_were_cloned() -> None:
    cold, warm = (make_learner(dataclasses.replace(END_TO_END, warmup_updates=n)) for n in (0, 5))
    for learner in (cold, warm):
        learner.pretrain()
    one, two = weights(cold), weights(warm)
    assert {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])} == {"critics", "targets"}


def test_a_robot_gets_the_averages_of_encoder_and_actor() -> None:
    learner = make_learner(END_TO_END)
    learner.pretrain()
    for _ in range(4):
        learner.update()
    golden = learner.artifact(1, 0).golden  # refused inside if ONNX differed from torch
    published, trained = learner.published().state_dict(), learner.policy.state_dict()
    apart = {name.split(".")[0] for name in published if not torch.equal(published[name], trained[name])}
    assert apart == {"encoder", "actor"}
    assert golden.output.shape == (4, 4)


def test_a_resumed_learner_end_to_end_makes_the_same_losses(tmp_path: Path) -> None:
    one, two = make_learner(END_TO_END), make_learner(END_TO_END, seed=9)
    one.pretrain()
    for _ in range(3):
        one.update()
    one.save(tmp_path / "learner.pt")
    two.load(tmp_path / "learner.pt")
    for each in (one, two):
        each.update()
    assert two._newest and all(torch.equal(one._newest[name], value) for name, value in two._newest.items())


def test_a_snapshot_written_by_a_thread_is_of_the_moment_it_was_taken(tmp_path: Path) -> None:
    learner = make_learner()
    learner.pretrain()
    for _ in range(3):
        learner.update()
    then = weights(learner)
    snapshot = learner.snapshot()
    writer = threading.Thread(target=snapshot.write, args=(tmp_path / "learner.pt",))
    for _ in range(3):
        learner.update()
    writer.start()
    for _ in range(3):
        learner.update()
    writer.join()
    resumed = make_learner(seed=9)
    resumed.load(tmp_path / "learner.pt")
    assert resumed.updates == 3
    assert all(torch.equal(value, then[name]) for name, value in weights(resumed).items())


def test_what_the_watch_is_told_comes_back_in_words() -> None:
    learner = make_learner()
    learner.pretrain()
    assert learner.warnings() == ()
    learner.replay.refused[Refusal.ZERO] += 2
    assert [warning.code for warning in learner.warnings()] == [WarningCode.TAKEOVERS_REFUSED]
    learner.replay.executed[:] = 0.0
    record(learner.replay, 60, Source.POLICY, actions=50)
    rows = learner.replay.rows(60)
    learner.replay.executed[rows] = 0.0
    learner.observe(rows)
    assert WarningCode.ARM_FROZEN in [warning.code for warning in learner.warnings()]


def test_memory_per_step_counts_replay_and_what_the_encoder_leaves() -> None:
    frozen, pixels = make_learner(), make_learner(END_TO_END)
    cached = (1 + SMALL.shifted_copies) * SMALL.features_per_camera * 4 + len(CONTRACT.state) * 4
    assert frozen.bytes_per_step == frozen.replay.bytes_per_step + cached
    assert pixels.bytes_per_step == pixels.replay.bytes_per_step


def test_a_device_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=r"learner\.device 'cuda'.*have: .*cpu"):
        make_learner(dataclasses.replace(SMALL, device=Device.CUDA))


# -- changed rewards -----------------------------------------------------------------------------------------------

PIXELS = dataclasses.replace(
    SMALL,
    algorithm=Algorithm.DRQV2,
    drqv2=DrqV2Settings(batch=16, hidden=16, features=8, warmup_updates=2),
)
QUICK = ResponseSettings(least_updates=2, most_updates=4, least_reset_updates=2, most_reset_updates=6, reset_flips=1)


def responding(chosen: LearnerSettings, seed: int = 0) -> Learner:
    return make_learner(dataclasses.replace(chosen, response=QUICK), seed)


def parts_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("chosen", [SMALL, PIXELS], ids=["sac", "drqv2"])
def test_some_flipped_rewards_hold_the_actor_while_the_critics_learn_on(chosen: LearnerSettings) -> None:
    learner = responding(chosen)
    learner.pretrain()
    learner.update()
    assert learner.promoted(flipped=1, actions=100) is Response.HOLD
    before = weights(learner)
    while learner.response.holds:
        assert parts_moved(before, weights(learner)) <= {"critics", "targets"}
        learner.update()
    assert learner.updates in range(1 + QUICK.least_updates, 2 + QUICK.most_updates)
    held = weights(learner)
    assert parts_moved(before, held) == {"critics", "targets"}
    for _ in range(2):
        learner.update()
    assert {"learned", "average"} <= parts_moved(held, weights(learner))


@pytest.mark.parametrize("chosen", [SMALL, PIXELS], ids=["sac", "drqv2"])
def test_many_flipped_rewards_begin_the_critics_anew_and_nothing_else(chosen: LearnerSettings) -> None:
    states = []
    for _ in range(2):
        learner = responding(chosen)
        learner.pretrain()
        for _ in range(3):
            learner.update()
        before = weights(learner)
        assert learner.promoted(flipped=50, actions=100) is Response.RESET
        states.append(weights(learner))
    after, again = states
    assert parts_moved(before, after) == {"critics", "targets"}
    assert all(torch.equal(after[name], again[name]) for name in after), "equal learners begin anew equally"
    critics = {name: value for name, value in after.items() if name.startswith("critics.")}
    trunk = {name for name in critics if ".trunk." in name}
    assert bool(trunk) is (chosen is PIXELS) and all(torch.equal(after[name], before[name]) for name in trunk)
    heads = critics.keys() - trunk
    assert all(torch.equal(after[name], after["targets" + name[len("critics") :]]) for name in heads)
    assert any(not torch.equal(after[name], before[name]) for name in heads)


@pytest.mark.parametrize("chosen", [SMALL, PIXELS], ids=["sac", "drqv2"])
def test_the_targets_of_new_critics_follow_at_the_rate_of_the_response(chosen: LearnerSettings) -> None:
    learner = make_learner(dataclasses.replace(chosen, response=dataclasses.replace(QUICK, reset_target_rate=1.0)))
    learner.pretrain()
    learner.promoted(flipped=50, actions=100)
    learner.update()
    now = weights(learner)
    critics = {name: value for name, value in now.items() if name.startswith("critics.")}
    assert all(torch.equal(value, now["targets" + name[len("critics") :]]) for name, value in critics.items())


def test_nothing_happens_without_flips_or_before_learning() -> None:
    learner = responding(SMALL)
    assert learner.promoted(flipped=50, actions=100) is Response.NONE
    learner.pretrain()
    before = weights(learner)
    assert learner.promoted(flipped=0, actions=100) is Response.NONE
    assert not parts_moved(before, weights(learner))


def test_what_the_critics_do_about_flips_stands_in_the_metrics() -> None:
    learner = responding(SMALL)
    learner.pretrain()
    learner.promoted(flipped=50, actions=100)
    assert learner.metrics["critic_response"] == Response.RESET and learner.metrics["critic_resets"] == 1
    for _ in range(CHECK_EVERY):
        learner.update()
    assert learner.metrics["critic_response"] == Response.NONE
    assert QUICK.least_updates <= learner.metrics["critic_held_updates"] <= QUICK.most_reset_updates


@pytest.mark.parametrize("flipped", [1, 50])
@pytest.mark.parametrize("chosen", [SMALL, PIXELS], ids=["sac", "drqv2"])
def test_a_learner_resumed_in_the_middle_of_a_response_continues_exactly(
    chosen: LearnerSettings, flipped: int, tmp_path: Path
) -> None:
    one, two = responding(chosen), responding(chosen, seed=9)
    one.pretrain()
    for _ in range(3):
        one.update()
    one.promoted(flipped, actions=100)
    for updates in (0, 2):
        for _ in range(updates):
            one.update()
        one.save(tmp_path / "learner.pt")
        two.load(tmp_path / "learner.pt")
        assert two.response.holds and two.response.state == one.response.state
    for _ in range(9):
        one.update()
        two.update()
    assert not one.response.holds
    assert two.response.state == one.response.state
    assert not parts_moved(weights(one), weights(two))


def test_the_q_bound_is_that_of_the_reward() -> None:
    replay = Replay(CONTRACT, 100)
    runs_on = reward.RewardSettings(form=reward.RewardForm.PROBABILITY, terminate_on_success=False)
    for paid, bound in ((reward.RewardSettings(success_reward=3.0), 3.0), (runs_on, 1 / (1 - SMALL.discount))):
        assert Learner(CONTRACT, replay, SMALL, 0, paid).q_bound == pytest.approx(bound)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_how_much_a_success_pays_scales_the_values_and_changes_nothing_else(algorithm: Algorithm) -> None:
    chosen = dataclasses.replace(SMALL, algorithm=algorithm, drqv2=DrqV2Settings(batch=16, features=8, hidden=16))
    learners = []
    for pays in (1.0, 64.0):
        paid = reward.RewardSettings(success_reward=pays)
        learner = Learner(CONTRACT, make_learner().replay, chosen, 0, paid)
        learner.replay.reward[:] *= pays
        learner.pretrain()
        for _ in range(CHECK_EVERY):
            learner.update()
        learners.append(learner)
    one, much = learners
    assert not parts_moved(weights(one), weights(much))
    assert much.metrics["q"] == pytest.approx(64.0 * one.metrics["q"])
    assert much.metrics["target"] == pytest.approx(64.0 * one.metrics["target"])
    assert much.watch.bounds.hi == much.q_bound == 64.0 * one.q_bound
