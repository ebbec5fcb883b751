"""Fitting a classifier: balanced batches, augmentation, calibration, and scores of replay rows kept per network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from steadyhand_models.nets.classifier import Classifier
from steadyhand_training.replay import Replay

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
Bool = npt.NDArray[np.bool_]

SCORE_BATCH = 128
LAST_RATE = 0.05
# Few different shifts in a batch keep the copying cheap; over batches all of them occur.
SHIFT_GROUPS = 8
# Sharpening is left out: held-out frames that all come out right would ask for unlimited certainty.
TEMPERATURES = np.exp(np.linspace(0.0, np.log(8.0), 40))


@dataclass(frozen=True)
class FitSettings:
    """What network is fitted, and how."""

    light_invariant: bool = True  # colour differences and local lightness instead of levels: nets/pictures.py
    batch: Annotated[int, Field(ge=8, le=1024)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    shift_px: Annotated[int, Field(ge=0, le=16)] = 4
    # Of lamps that move, dim and change colour. Measured on the lift task under such a change: see docs/classifier.md.
    brightness: Annotated[float, Field(ge=0, lt=0.9)] = 0.3
    colour: Annotated[float, Field(ge=0, lt=0.9)] = 0.2
    shade: Annotated[float, Field(ge=0, lt=0.9)] = 0.4  # darkest shadow that falls on a part of a picture
    # Share of the negatives that are successes of which one camera shows nothing: scenes.py.
    hidden: Annotated[float, Field(ge=0, le=0.5)] = 0.125


@dataclass(frozen=True)
class Pool:
    """Rows of one kind of evidence, by what they show, and how often they are drawn beside those of other pools."""

    positive: I64
    negative: I64
    weight: float = 1.0


def draw(pools: Sequence[Pool], batch: int, rng: np.random.Generator) -> tuple[I64, F32]:
    """Rows (batch,) and targets (batch,): half of each class, shared by weight among the pools that have it."""
    half = batch // 2
    positive = _share([(p.positive, p.weight) for p in pools if len(p.positive)], half, rng)
    negative = _share([(p.negative, p.weight) for p in pools if len(p.negative)], batch - half, rng)
    targets = np.concatenate([np.ones(len(positive), np.float32), np.zeros(len(negative), np.float32)])
    return np.concatenate([positive, negative]), targets


def _share(sources: Sequence[tuple[I64, float]], count: int, rng: np.random.Generator) -> I64:
    if not sources:
        raise ValueError("no frames of one class to draw from")
    weight = np.array([w for _, w in sources])
    pick = rng.choice(len(sources), count, p=weight / weight.sum())
    return np.array([sources[i][0][rng.integers(0, len(sources[i][0]))] for i in pick], np.int64)


def augment(frames: U8, settings: FitSettings, rng: np.random.Generator, light: F32 | None = None) -> U8:
    """Frames (B, C, H, W, 3), every SHIFT_GROUPS-th one shifted and shaded alike, each in a light of its own.

    The light is a gain for all cameras, one for each of them, and one for each colour, times `light` (B, C, 3).
    """
    count, cameras, height, width, colours = frames.shape
    out = np.empty((count, cameras, height, width * colours), np.uint8)
    drawn = _gains(count, cameras, settings, rng) * (1.0 if light is None else light)
    # Gains in 1/128: a product with a byte fits 16 bits, several times faster than floats.
    gains = np.tile(np.minimum(np.round(drawn * 128), 255).astype(np.uint16), width)
    span = settings.shift_px
    for group in range(min(SHIFT_GROUPS, count)):
        for camera in range(cameras):
            part = frames[group::SHIFT_GROUPS, camera]
            down, right = rng.integers(-span, span + 1, 2)
            rows = np.clip(np.arange(height) - down, 0, height - 1)
            columns = np.clip(np.arange(width) - right, 0, width - 1)
            moved = part.take(rows, axis=1).take(columns, axis=2).reshape(len(part), height, -1)
            lit = moved * gains[group::SHIFT_GROUPS, camera, None] >> 7
            _shade(lit, colours, settings.shade, rng)
            out[group::SHIFT_GROUPS, camera] = np.minimum(lit, 255)
    return out.reshape(frames.shape)


def _gains(count: int, cameras: int, settings: FitSettings, rng: np.random.Generator) -> F32:
    """Gains (count, cameras, 3) about 1."""
    all_alike, colour = settings.brightness, settings.colour
    gain = rng.uniform(1 - all_alike, 1 + all_alike, (count, 1, 1))
    gain = gain * rng.uniform(1 - all_alike / 2, 1 + all_alike / 2, (count, cameras, 1))
    gain = gain * rng.uniform(1 - colour, 1 + colour, (count, 1, 3))
    return gain.astype(np.float32)


def _shade(pictures: U16, colours: int, darkest: float, rng: np.random.Generator) -> None:
    """Let one shadow with straight edges fall on a part of pictures (B, H, W * colours), in place."""
    if darkest == 0:
        return
    top, bottom = np.sort(rng.integers(0, pictures.shape[1] + 1, 2))
    left, right = np.sort(rng.integers(0, pictures.shape[2] // colours + 1, 2)) * colours
    left_over = np.uint16(round(128 * (1 - rng.uniform(0, darkest))))
    # Brighter than white is white in the end, and must not overflow before.
    part = np.minimum(pictures[:, top:bottom, left:right], 511)
    pictures[:, top:bottom, left:right] = part * left_over >> 7


class Fit:
    """One network while it is fitted; a champion's copy, so that the champion stays as it is."""

    def __init__(self, net: Classifier, settings: FitSettings) -> None:
        self.net = copy.deepcopy(net)
        self.net.temperature.fill_(1.0)
        self._settings = settings
        self._optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def step(self, frames: U8, targets: F32, heads: Bool, rate: float = 1.0) -> float:
        """One update on frames (B, C, H, W, 3) and targets (B,); `heads` (B, H) says which heads learn from which.

        `rate` scales the learning rate. Returns the loss before it.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = rate * self._settings.learning_rate
        eps = self._settings.smoothing
        want = torch.from_numpy(targets * (1 - 2 * eps) + eps)[:, None].expand(-1, heads.shape[1])
        weight = torch.from_numpy(heads.astype(np.float32))
        self.net.train()
        logits = self.net.logits(torch.from_numpy(frames))
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, want, reduction="none")
        loss = (each * weight).sum() / weight.sum().clamp_min(1.0)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        return float(loss.detach())

    def snapshot(self) -> Classifier:
        """A copy of the network that further updates leave alone."""
        return copy.deepcopy(self.net)


def blended(before: Classifier, fitted: Classifier, share: float) -> Classifier:
    """A network with `share` of the fitted weights and the rest of those it was fitted from, uncalibrated.

    What a few episodes teach is kept and what they would have unlearned mostly is not (WiSE-FT, Wortsman et al. 2022).
    """
    net = copy.deepcopy(fitted)
    with torch.no_grad():
        for mine, old in zip(net.parameters(), before.parameters()):
            mine.lerp_(old, 1.0 - share)
    return net


def rates(steps: int) -> F32:
    """Scales (steps,) of the learning rate that fall evenly: the last steps average over batches, not chase them."""
    return np.linspace(1.0, LAST_RATE, steps, dtype=np.float32)


def log_odds(net: Classifier, frames: U8) -> F32:
    """Uncalibrated log-odds (N, heads) of frames (N, C, H, W, 3)."""
    net.eval()
    with torch.inference_mode():
        parts = [
            net.logits(torch.from_numpy(frames[i : i + SCORE_BATCH])).numpy()
            for i in range(0, len(frames), SCORE_BATCH)
        ]
    return np.concatenate(parts) if parts else np.zeros((0, len(net.heads)), np.float32)


def features(net: Classifier, frames: U8) -> F32:
    """What the heads see (N, F) of frames (N, C, H, W, 3)."""
    net.eval()
    with torch.inference_mode():
        parts = [
            net.features(torch.from_numpy(frames[i : i + SCORE_BATCH])).numpy()
            for i in range(0, len(frames), SCORE_BATCH)
        ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def temperature(logits: F32, success: Bool, most: float = float(TEMPERATURES[-1])) -> float:
    """The temperature of TEMPERATURES up to `most` with the least class-balanced log loss of logits (N, heads),
    success (N,).

    Temperature scaling after Guo et al. 2017.
    """
    sign = np.where(success, 1.0, -1.0)[:, None]
    weight = np.where(success, 1.0 / max(success.sum(), 1), 1.0 / max((~success).sum(), 1))[:, None]
    allowed = TEMPERATURES[most + 1e-6 >= TEMPERATURES]
    losses = [float((weight * np.logaddexp(0.0, -sign * logits / t)).sum()) for t in allowed]
    return float(allowed[int(np.argmin(losses))])


class Scores:
    """Probabilities of replay rows under one calibrated network, computed once per row when first asked for."""

    def __init__(self, net: Classifier, replay: Replay) -> None:
        self.net = net
        self._replay = replay
        self._known = np.zeros(0, np.bool_)
        self._probabilities = np.zeros((0, len(net.heads)), np.float32)

    def of(self, rows: I64) -> F32:
        """Probabilities (N, heads) of rows (N,)."""
        self._reach(self._replay.size)
        missing = rows[~self._known[rows]]
        for i in range(0, len(missing), SCORE_BATCH):
            part = missing[i : i + SCORE_BATCH]
            logits = log_odds(self.net, self._replay.frames[part])
            scaled = logits / self.net.temperature.numpy()
            self._probabilities[part] = 1.0 / (1.0 + np.exp(-np.clip(scaled, -60.0, 60.0)))
            self._known[part] = True
        return self._probabilities[rows]

    def missing(self) -> I64:
        """Rows of the replay that have no score yet."""
        self._reach(self._replay.size)
        return np.flatnonzero(~self._known[: self._replay.size])

    def _reach(self, rows: int) -> None:
        more = rows - len(self._known)
        if more > 0:
            more = max(more, len(self._known) // 2)
            self._known = np.concatenate([self._known, np.zeros(more, np.bool_)])
            empty = np.zeros((more, self._probabilities.shape[1]), np.float32)
            self._probabilities = np.concatenate([self._probabilities, empty])
