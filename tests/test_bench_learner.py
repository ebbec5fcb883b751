"""The learner's bench: the peer really learns, both are filled alike, and ratios are of paired rounds."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from training_steps import CONTRACT

from steadyhand_models.messages import EndReason
from steadyhand_training import bench_learner, bench_peer
from steadyhand_training.bench_learner import Figures, LearnerBenchSettings, Verdict, verdicts
from steadyhand_training.bench_learner_stack import EPISODE_STEPS, Job, Memory, Stack, Turn, ours, peer, steps, turn
from steadyhand_training.bench_peer import PeerReplay, PeerSac
from steadyhand_training.config import Encoders, LearnerSettings

SMALL = LearnerSettings(batch=8, hidden=16, features_per_camera=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def filled(share_next: bool = False, count: int = 60) -> PeerReplay:
    replay = PeerReplay(CONTRACT, count, share_next)
    made = list(steps(CONTRACT, count, 0))
    for before, after in itertools.pairwise(made):
        if before.end is None:
            replay.add(before, after)
    return replay


def figures(stack: Stack, cpu_s: list[float]) -> Figures:
    return Figures(stack, Memory(1, 1, 1, 1), tuple(Turn(10, 10 * t, 10 * t) for t in cpu_s))


def test_made_up_episodes_end_in_success_and_every_second_is_a_demonstration() -> None:
    made = list(steps(CONTRACT, 2 * EPISODE_STEPS, 0))
    ends = [s.seq for s in made if s.end is EndReason.SUCCESS]
    assert ends == [EPISODE_STEPS - 1] * 2
    assert made[0].source.value == "demonstration" and made[EPISODE_STEPS].source.value == "policy"


def test_the_peer_keeps_float_pictures_twice_or_once() -> None:
    apart, shared = filled(), filled(share_next=True)
    pictures = int(np.prod(CONTRACT.frames_shape)) * 4
    assert apart.bytes_per_step - shared.bytes_per_step >= pictures
    assert shared.bytes_per_step > pictures
    assert torch.equal(apart.next_pixels[0], shared.pixels[1])


def test_the_peers_shift_moves_whole_pictures_and_repeats_edges() -> None:
    rows = torch.arange(64.0).reshape(1, 1, 1, 64, 1).expand(1, 1, 3, 64, 64)
    moved = bench_peer._shifted(rows)
    offsets = (moved - rows)[0, 0, 0, 10:50].unique()
    assert len(offsets) == 1 and abs(float(offsets)) <= bench_peer.PAD_PX
    assert moved.min() >= 0 and moved.max() <= 63


@pytest.mark.parametrize("encoder", [Encoders.FROZEN, Encoders.END_TO_END])
def test_the_peer_learns_and_trains_its_encoder_only_end_to_end(encoder: Encoders) -> None:
    sac = PeerSac(CONTRACT, filled(), dataclasses.replace(SMALL, encoder=encoder))
    before = {name: value.clone() for name, value in sac.encoder.state_dict().items()}
    critics = [p.clone() for p in sac.critics.parameters()]
    for _ in range(2):
        sac.update()
    assert any(not torch.equal(a, b) for a, b in zip(critics, sac.critics.parameters()))
    moved = any(not torch.equal(before[name], value) for name, value in sac.encoder.state_dict().items())
    assert moved == (encoder is Encoders.END_TO_END)


@pytest.mark.parametrize("stack", list(Stack))
def test_every_stack_updates_on_what_it_was_filled_with(stack: Stack) -> None:
    job = Job(stack, steps=2 * EPISODE_STEPS, seed=0, threads=1, batch=4)
    make = ours if stack in (Stack.OURS_FROZEN, Stack.OURS_END_TO_END) else peer
    update, size, shared = make(CONTRACT, job)
    done = turn(update, 0.0)
    assert done.updates == 1 and done.wall_s > 0
    assert 0 < shared <= size


def test_ours_keeps_an_eighth_of_the_peers_bytes() -> None:
    job = Job(Stack.OURS_FROZEN, steps=EPISODE_STEPS, seed=0, threads=1, batch=4)
    _, ours_bytes, _ = ours(CONTRACT, job)
    _, peer_bytes, shared_bytes = peer(CONTRACT, dataclasses.replace(job, stack=Stack.PEER_FROZEN))
    assert peer_bytes > 7 * ours_bytes and shared_bytes > 3 * ours_bytes


def test_ratios_are_medians_of_paired_rounds() -> None:
    found = verdicts([figures(Stack.OURS_FROZEN, [1.0, 2.0, 1.0]), figures(Stack.PEER_FROZEN, [6.0, 12.0, 30.0])])
    assert found == [Verdict("frozen encoder", 6.0, 5.0)] and found[0].passed
    assert not dataclasses.replace(found[0], ratio=4.9).passed


def test_the_command_measures_in_turns_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    chosen = LearnerBenchSettings(rounds=2, seconds=0.01, steps=200, batch=8)
    found = bench_learner.measure(chosen, [Stack.OURS_FROZEN, Stack.PEER_FROZEN])
    bench_learner.show(chosen, found, verdicts(found))
    path.write_text(json.dumps(bench_learner.to_json(found, verdicts(found))))
    data = json.loads(path.read_text())
    assert set(data["stacks"]) == {"ours_frozen", "peer_frozen"}
    assert all(len(s["turns"]) == 2 and s["memory"]["resident"] > 1e7 for s in data["stacks"].values())
    assert "as LeRobot, frozen encoder" in capsys.readouterr().out
