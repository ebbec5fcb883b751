"""Encoder, actor, critics and policy: shapes, ranges, and that casting and scaling live inside the graph."""

import dataclasses

import numpy as np
import pytest
import torch

from steadyhand_models import task
from steadyhand_models.nets.actor_critic import STATE_CLIP, Actor, Critics, Policy
from steadyhand_models.nets.drqv2 import PixelEncoder, ScheduledActor, Trunk
from steadyhand_models.nets.encoder import OVERLAPPING, Encoder

torch.set_num_threads(1)
CONTRACT = task.load("lift").contract()


def random_frames(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, *CONTRACT.frames_shape), dtype=torch.uint8, generator=generator)


def test_features_of_each_camera_stay_within_one_and_depend_on_that_camera_alone() -> None:
    torch.manual_seed(0)
    encoder = Encoder(CONTRACT.frames_shape, 16)
    frames = random_frames(3)
    other = frames.clone()
    other[:, 1] = 255 - other[:, 1]
    before, after = encoder(frames), encoder(other)
    assert before.shape == (3, 32)
    assert before.abs().max() <= 1.0
    assert torch.equal(before[:, :16], after[:, :16])
    assert not torch.allclose(before[:, 16:], after[:, 16:])


def test_an_encoder_takes_other_sizes_and_numbers_of_cameras() -> None:
    encoder = Encoder((1, 48, 80, 3), 8)
    assert encoder(torch.zeros(2, 1, 48, 80, 3, dtype=torch.uint8)).shape == (2, 8)


def test_a_feature_tells_where_a_thing_is_not_only_that_it_is_there() -> None:
    torch.manual_seed(0)
    encoder = Encoder((1, 64, 64, 3), 16)
    left, right = torch.zeros(2, 1, 1, 64, 64, 3, dtype=torch.uint8).unbind()
    left[..., 20:30, 5:15, 0] = 255
    right[..., 20:30, 45:55, 0] = 255
    assert (encoder(left) - encoder(right)).abs().max() > 0.1


def test_log_density_is_that_of_the_squashed_gaussian() -> None:
    mean, log_std = torch.tensor([[0.3, -1.2]], dtype=torch.float64), torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    action, log_density = Actor.squash(mean, log_std, torch.tensor([[0.5, -2.0]], dtype=torch.float64))
    gaussian = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(gaussian, torch.distributions.TanhTransform())
    assert torch.allclose(log_density, squashed.log_prob(action).sum(-1))


def test_log_density_of_an_extreme_action_is_finite() -> None:
    _, log_density = Actor.squash(torch.full((1, 4), 60.0), torch.zeros(1, 4), torch.zeros(1, 4))
    assert torch.isfinite(log_density).all()


def test_critics_of_an_ensemble_do_not_touch_each_other() -> None:
    torch.manual_seed(0)
    critics = Critics(3, 10, 4, 32)
    observation, action = torch.randn(5, 10), torch.randn(5, 4)
    before = critics(observation, action)
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter[1] += 0.5
    after = critics(observation, action)
    assert before.shape == (3, 5)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_a_batched_critic_equals_the_same_layers_one_by_one() -> None:
    torch.manual_seed(1)
    critics = Critics(2, 6, 2, 16)
    observation, action = torch.randn(4, 6), torch.randn(4, 2)
    values = critics(observation, action)
    for member in range(2):
        x = torch.cat([observation, action], -1)
        first, norm_1, _, second, norm_2, _, last = critics.layers
        for linear, norm in ((first, norm_1), (second, norm_2)):
            x = x @ linear.weight[member] + linear.bias[member]
            x = torch.nn.functional.layer_norm(x, (16,), norm.gain[member, 0], norm.offset[member, 0]).relu()
        x = x @ last.weight[member] + last.bias[member]
        assert torch.allclose(values[member], x[:, 0], atol=1e-6)


def test_a_policy_normalises_state_by_the_contract_and_survives_a_broken_sensor() -> None:
    policy = Policy(CONTRACT, 8, 32)
    middle = torch.from_numpy(CONTRACT.state_offset + CONTRACT.state_scale)[None]
    assert torch.allclose(policy.normalise(middle), torch.ones(1, len(CONTRACT.state)), atol=1e-5)
    assert policy.normalise(middle * 1e9).abs().max() <= STATE_CLIP


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_actions_of_a_policy_stay_within_one(scale: float) -> None:
    torch.manual_seed(0)
    policy = Policy(CONTRACT, 8, 32)
    state = torch.from_numpy(np.tile(CONTRACT.state_offset, (6, 1)))
    noise = scale * torch.randn(6, len(CONTRACT.action))
    action = policy(random_frames(6), state, noise)
    assert action.shape == (6, len(CONTRACT.action))
    assert action.abs().max() <= 1.0


def test_noise_of_zero_gives_the_same_action_twice_and_noise_changes_it() -> None:
    torch.manual_seed(0)
    policy = Policy(CONTRACT, 8, 32)
    frames, state = random_frames(1), torch.from_numpy(CONTRACT.state_offset)[None]
    still = torch.zeros(1, len(CONTRACT.action))
    assert torch.equal(policy(frames, state, still), policy(frames, state, still))
    assert not torch.allclose(policy(frames, state, still), policy(frames, state, still + 1.0))


def test_an_encoder_that_overlaps_everywhere_barely_notices_a_shift_by_a_pixel() -> None:
    shape = (1, 64, 64, 3)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=(66, 66), mode="bilinear")
    pixels = (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1)[:, None]
    here, there = pixels[:, :, 1:65, 1:65], pixels[:, :, 1:65, 2:66]
    torch.manual_seed(0)
    encoder = Encoder(shape, 32, OVERLAPPING)
    far = torch.rand(1, *shape).mul(255).to(torch.uint8)
    near = (encoder(here.contiguous()) - encoder(there.contiguous())).abs().mean()
    assert near < 0.5 * (encoder(here.contiguous()) - encoder(far)).abs().mean()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_cannot_normalise_is_refused_by_name(scale: float) -> None:
    fields = (dataclasses.replace(CONTRACT.state[0], scale=scale), *CONTRACT.state[1:])
    with pytest.raises(ValueError, match=f"state {CONTRACT.state[0].name}: .*positive scale"):
        Policy(dataclasses.replace(CONTRACT, state=fields), 8, 32)


def test_pixels_become_flat_maps_and_a_trunk_puts_the_state_beside_them() -> None:
    torch.manual_seed(0)
    encoder = PixelEncoder(CONTRACT.frames_shape)
    maps = encoder(random_frames(2))
    assert maps.shape == (2, encoder.features) == (2, 2 * 32 * 4 * 4)
    trunk = Trunk(encoder.features, 3, 10)
    out = trunk(torch.cat([maps, torch.full((2, 3), 7.0)], -1))
    assert out.shape == (2, 13) and (out[:, 10:] == 7.0).all() and out[:, :10].abs().max() <= 1.0


def test_scheduled_noise_moves_the_action_by_its_spread_and_no_further_than_the_range() -> None:
    torch.manual_seed(0)
    actor = ScheduledActor(Trunk(4, 2, 3), 2, 8)
    actor.log_std.fill_(float(np.log(0.1)))
    seen, noise = torch.randn(5, 6), torch.ones(5, 2)
    assert torch.allclose(actor.act(seen, noise) - actor(seen), torch.full((5, 2), 0.1), atol=1e-6)
    assert actor.act(seen, 100 * noise).max() <= 1.0
