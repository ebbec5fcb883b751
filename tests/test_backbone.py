"""The pretrained backbone: weights found or refused with the fix, folded exactly, pooled by what learns, cached."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learner import CONTRACT, SMALL, make_learner, weights
from torch import nn
from torch.nn import functional as F

from steadyhand_models.nets import backbone
from steadyhand_models.nets.backbone import Backbone, BackboneEncoder, BackboneError, SpatialEmbeddings, read_weights
from steadyhand_training.augment import shift, steady_offsets
from steadyhand_training.config import Algorithm, BackboneSettings, Encoders, LearnerSettings

torch.set_num_threads(1)


def norm(weights: dict[str, torch.Tensor], name: str, channels: int) -> None:
    weights[f"{name}.weight"] = 0.5 + torch.rand(channels)
    weights[f"{name}.bias"] = torch.randn(channels)
    weights[f"{name}.running_mean"] = torch.randn(channels)
    weights[f"{name}.running_var"] = 0.5 + torch.rand(channels)


def lite0() -> dict[str, torch.Tensor]:
    """A state dict with the names of EfficientNet-Lite0's and fewer channels."""
    torch.manual_seed(0)
    found = {"_conv_stem.weight": 0.2 * torch.randn(4, 3, 3, 3)}
    norm(found, "_bn0", 4)
    inputs = 4
    for i, (kernel, expansion, outputs) in enumerate([(3, 1, 4), (3, 6, 4), (3, 6, 4), (5, 6, 6), (5, 6, 6)]):
        wide = inputs * expansion
        if expansion > 1:
            found[f"_blocks.{i}._expand_conv.weight"] = 0.2 * torch.randn(wide, inputs, 1, 1)
            norm(found, f"_blocks.{i}._bn0", wide)
        found[f"_blocks.{i}._depthwise_conv.weight"] = 0.2 * torch.randn(wide, 1, kernel, kernel)
        norm(found, f"_blocks.{i}._bn1", wide)
        found[f"_blocks.{i}._project_conv.weight"] = 0.2 * torch.randn(outputs, wide, 1, 1)
        norm(found, f"_blocks.{i}._bn2", outputs)
        inputs = outputs
    return found


def resnet() -> dict[str, torch.Tensor]:
    """A state dict with the names of torchvision's ResNet-18 down to its second stage and fewer channels."""
    torch.manual_seed(0)
    found = {"conv1.weight": 0.1 * torch.randn(4, 3, 7, 7)}
    norm(found, "bn1", 4)
    for stage, inputs, outputs in ((1, 4, 4), (2, 4, 6)):
        for i in (0, 1):
            name, first = f"layer{stage}.{i}", inputs if i == 0 else outputs
            found[f"{name}.conv1.weight"] = 0.2 * torch.randn(outputs, first, 3, 3)
            found[f"{name}.conv2.weight"] = 0.2 * torch.randn(outputs, outputs, 3, 3)
            norm(found, f"{name}.bn1", outputs)
            norm(found, f"{name}.bn2", outputs)
    found["layer2.0.downsample.0.weight"] = 0.2 * torch.randn(6, 4, 1, 1)
    norm(found, "layer2.0.downsample.1", 6)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(lite0(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def settings(file: Path, **more: object) -> LearnerSettings:
    return dataclasses.replace(SMALL, encoder=Encoders.BACKBONE, backbone=BackboneSettings(file=file), **more)


def random_frames(count: int, px: int = 32) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 2, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
    )


@pytest.mark.parametrize("found", [lite0(), resnet()], ids=["lite0", "resnet"])
def test_maps_are_an_eighth_of_the_picture_and_nothing_in_them_learns(found: dict[str, torch.Tensor]) -> None:
    net = Backbone(found)
    maps = net(random_frames(3))
    assert maps.shape == (3, 2, 6, 4, 4)
    assert not any(weight.requires_grad for weight in net.parameters())


def test_each_camera_is_seen_by_itself() -> None:
    net, frames = Backbone(lite0()), random_frames(2)
    other = frames.clone()
    other[:, 1] = 255 - other[:, 1]
    before, after = net(frames), net(other)
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1])


def test_a_folded_convolution_is_the_convolution_and_its_normalisation() -> None:
    found = resnet()
    folded = backbone.Convolution(found, "layer2.0.conv1", "layer2.0.bn1", 1e-5, 2, torch.inf)
    plain = nn.BatchNorm2d(6).eval()
    plain.load_state_dict(
        {k: found[f"layer2.0.bn1.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}, False
    )
    x = torch.randn(2, 4, 9, 9)
    want = F.relu(plain(F.conv2d(x, found["layer2.0.conv1.weight"], None, 2, 1)))
    assert torch.allclose(folded(x), want, atol=1e-5)


def test_the_odd_pixel_of_tensorflows_padding_lies_behind() -> None:
    found = {"c.weight": torch.ones(1, 1, 3, 3), "n.weight": torch.ones(1), "n.bias": torch.zeros(1)}
    found |= {"n.running_mean": torch.zeros(1), "n.running_var": torch.ones(1)}
    same = backbone.SameConvolution(found, "c", "n", 0.0, 2)
    assert same(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]]


def test_learned_pictures_weigh_each_channel_over_its_places() -> None:
    torch.manual_seed(0)
    pooled = SpatialEmbeddings((2, 3, 4, 4), 5, 7)
    maps = torch.randn(6, 2, 3, 4, 4)
    got = pooled(maps)
    by_hand = torch.einsum("bcs,csk->bck", maps[:, 1].flatten(2), pooled.pictures[1]).flatten(1)
    assert got.shape == (6, 14) and got.abs().max() <= 1.0
    assert torch.allclose(got[:, 7:], torch.tanh(pooled.narrow[1](by_hand)), atol=1e-6)


def test_weights_that_are_missing_name_the_package_and_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"steadyhand\[backbone\].*learner\.backbone\.file"):
        read_weights(None, "")


def test_files_that_hold_no_such_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="cannot be read"):
        read_weights(tmp_path / "absent.pth", "")
    (tmp_path / "torn.pth").write_bytes(b"no archive")
    with pytest.raises(BackboneError, match="cannot be read"):
        read_weights(tmp_path / "torn.pth", "")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BackboneError, match="no state dict"):
        read_weights(tmp_path / "list.pth", "")
    with pytest.raises(BackboneError, match=r"begins with fc\.weight is not understood"):
        Backbone({"fc.weight": torch.ones(2, 2)})
    with pytest.raises(BackboneError, match=r"lacks '_blocks\.0\._depthwise_conv\.weight'"):
        Backbone({"_conv_stem.weight": torch.ones(4, 3, 3, 3)})


def test_an_installed_package_is_found_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / backbone.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    torch.save(lite0(), package / "models" / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    assert "_conv_stem.weight" in read_weights(None, "")


def test_cached_maps_are_those_of_the_plain_and_of_the_shifted_pixels(file: Path) -> None:
    learner = make_learner(settings(file, shifted_copies=2))
    learner.pretrain()
    rows = np.arange(8)
    offsets = steady_offsets(rows, 2, 1, 1)
    with torch.no_grad():
        plain = learner.policy.encoder.stem(torch.from_numpy(learner.replay.frames[rows]))
        moved = learner.policy.encoder.stem(torch.from_numpy(shift(learner.replay.frames[rows], offsets[:, 1])))
    views = learner._sights._views
    assert views.dtype is torch.float16
    assert torch.allclose(views[rows, 0].float(), plain, rtol=1e-3, atol=1e-2)
    assert torch.allclose(views[rows, 2].float(), moved, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_learning_moves_the_pooling_and_never_the_backbone(file: Path, algorithm: Algorithm) -> None:
    learner = make_learner(settings(file, algorithm=algorithm))
    learner.pretrain()
    before = weights(learner)
    for _ in range(4):
        learner.update()
    moved = {name for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoder.head") for name in moved)
    assert not any(name.startswith("encoder.stem") for name in moved)


def test_a_robot_gets_backbone_averaged_pooling_and_actor_in_one_graph(file: Path) -> None:
    learner = make_learner(settings(file, average_rate=0.25))
    learner.pretrain()
    for _ in range(3):
        learner.update()
    golden = learner.artifact(1, 0).golden  # refused inside if ONNX differed from torch
    published, trained = learner.published().state_dict(), learner.policy.state_dict()
    name = "encoder.head.pictures"
    assert torch.equal(published[name], learner.algorithm.average["eye"].head.pictures)
    assert not torch.equal(published[name], trained[name])
    assert golden.output.shape == (4, len(CONTRACT.action))


def test_a_resumed_learner_continues_exactly(file: Path, tmp_path: Path) -> None:
    one, two = make_learner(settings(file)), make_learner(settings(file), seed=9)
    one.pretrain()
    for _ in range(3):
        one.update()
    one.save(tmp_path / "learner.pt")
    two.load(tmp_path / "learner.pt")
    for each in (one, two):
        for _ in range(4):
            each.update()
    got, want = weights(two), weights(one)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_whole_encoder_is_stem_and_head() -> None:
    torch.manual_seed(0)
    encoder = BackboneEncoder(lite0(), (2, 32, 32, 3), 3, 5)
    frames = random_frames(2)
    assert encoder.features == 10 and torch.equal(encoder(frames), encoder.head(encoder.stem(frames)))
