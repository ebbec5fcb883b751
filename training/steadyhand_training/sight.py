"""What the learner sees of replay rows: outputs of a frozen network, computed once per row, or shifted pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from steadyhand_training.algorithm import Sight
from steadyhand_training.augment import shift, shift_pictures, steady_offsets
from steadyhand_training.replay import Replay

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Normalise = Callable[[Tensor], Tensor]  # raw state (B, S) to the observation's

ENCODE_ROWS = 64


class Sights(Protocol):
    """Rows to what the algorithm learns from, each time augmented anew."""

    def observe(self, rows: I64) -> None:
        """Work ahead on rows (N,) that have just arrived."""

    def forget(self) -> None:
        """The encoder has changed: nothing that was computed with it counts."""

    def of(self, rows: I64, random: np.random.Generator) -> Sight:
        """Views and states of rows (B,)."""

    @property
    def bytes_per_row(self) -> int:
        """What is kept in memory for a row beside replay."""


class CachedSights:
    """The output of a frozen network for each row's frames and for their shifted copies, each from its own pixels.

    A row is seen as one of them, drawn anew every time, which is random shift at no cost for an encoder that stands
    still.
    """

    def __init__(
        self, replay: Replay, stem: nn.Module, normalise: Normalise, copies: int, most_px: int, device: torch.device
    ) -> None:
        self._replay, self._stem, self._normalise = replay, stem, normalise
        self._copies, self._most_px, self._device = copies, most_px, device
        with torch.inference_mode():
            sample = stem(torch.zeros(1, *replay.frames.shape[1:], dtype=torch.uint8, device=device))[0]
        # Maps are many numbers of few that matter: half precision keeps them at half the memory.
        kind = torch.float16 if sample.ndim > 1 else torch.float32
        self._views = torch.zeros(0, 1 + copies, *sample.shape, dtype=kind)
        self._states = torch.zeros(0, replay.state.shape[1])
        self._known = np.zeros(0, np.bool_)

    @property
    def bytes_per_row(self) -> int:
        view = int(np.prod(self._views.shape[1:])) * self._views.element_size()
        return view + self._states.shape[1] * self._states.element_size()

    def observe(self, rows: I64) -> None:
        self._fit()
        for start in range(0, len(rows), ENCODE_ROWS):
            self._compute(rows[start : start + ENCODE_ROWS])

    def forget(self) -> None:
        self._known[:] = False

    def knows(self, rows: I64) -> Bool:
        """Which rows (N,) have been computed."""
        known = rows < len(self._known)
        known[known] = self._known[rows[known]]
        return known

    def of(self, rows: I64, random: np.random.Generator) -> Sight:
        fresh = rows[~self.knows(rows)]
        if len(fresh):
            self.observe(np.unique(fresh))
        copies = torch.from_numpy(random.integers(0, self._views.shape[1], len(rows)))
        index = torch.from_numpy(rows)
        return Sight(self._views[index, copies], self._states[index])

    def _fit(self) -> None:
        """Grow with the replay's arrays."""
        old, new = len(self._known), len(self._replay.seq)
        if new > old:
            self._views = torch.cat([self._views, self._views.new_zeros(new - old, *self._views.shape[1:])])
            self._states = torch.cat([self._states, torch.zeros(new - old, self._states.shape[1])])
            self._known = np.concatenate([self._known, np.zeros(new - old, np.bool_)])

    @torch.inference_mode()
    def _compute(self, rows: I64) -> None:
        frames = self._replay.frames[rows]
        offsets = steady_offsets(rows, self._copies, frames.shape[1], self._most_px)
        index = torch.from_numpy(rows)
        for i, view in enumerate([frames, *(shift(frames, offsets[:, i]) for i in range(self._copies))]):
            self._views[index, i] = self._stem(torch.from_numpy(view).to(self._device)).to("cpu", self._views.dtype)
        self._states[index] = self._normalise(torch.from_numpy(self._replay.state[rows]).to(self._device)).cpu()
        self._known[rows] = True


class PixelSights:
    """The frames themselves, shifted at random: for an encoder that learns."""

    bytes_per_row = 0

    def __init__(self, replay: Replay, normalise: Normalise, most_px: int, device: torch.device) -> None:
        self._replay, self._normalise, self._most_px, self._device = replay, normalise, most_px, device

    def observe(self, rows: I64) -> None:
        pass

    def forget(self) -> None:
        pass

    def of(self, rows: I64, random: np.random.Generator) -> Sight:
        frames = torch.from_numpy(self._replay.frames[rows]).to(self._device)
        offsets = random.integers(-self._most_px, self._most_px + 1, (*frames.shape[:2], 2))
        with torch.no_grad():
            state = self._normalise(torch.from_numpy(self._replay.state[rows]).to(self._device))
        return Sight(shift_pictures(frames, torch.from_numpy(offsets).to(self._device)), state)
