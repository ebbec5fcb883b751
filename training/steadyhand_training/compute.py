"""Where and how learning computes: the device, mixed precision, compilation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from steadyhand_training.config import Device, LearnerSettings


def pick(wanted: Device) -> torch.device:
    """The device to learn on. Raises ValueError when the one that was asked for is not there."""
    there = {
        Device.CUDA: torch.cuda.is_available(),  # ROCm builds of torch answer here too
        Device.MPS: torch.backends.mps.is_available(),
        Device.CPU: True,
    }
    if wanted is Device.AUTO:
        return torch.device(next(device for device, found in there.items() if found).value)
    if not there[wanted]:
        have = ", ".join(device.value for device, found in there.items() if found)
        raise ValueError(f"learner.device '{wanted.value}': torch finds none here; have: {have}")
    return torch.device(wanted.value)


class Compute:
    """The chosen device with what may make it faster; on a CPU neither does."""

    def __init__(self, settings: LearnerSettings) -> None:
        self.device = pick(settings.device)
        self._half = settings.mixed_precision and self.device.type == "cuda"
        self._compile = settings.compile

    def autocast(self) -> AbstractContextManager[object]:
        """Forward passes in bfloat16, which needs no loss scaling; nothing unless asked for on CUDA."""
        return torch.autocast("cuda", torch.bfloat16) if self._half else nullcontext()

    def prepare(self, *nets: nn.Module) -> None:
        """Move networks to the device and, where asked for, compile them; their weights keep their names."""
        for net in nets:
            net.to(self.device)
            if self._compile:
                # CUDA graphs replay an update's many small kernels at once. Batches have one size: nothing is dynamic.
                net.compile(mode="reduce-overhead" if self.device.type == "cuda" else None, dynamic=False)
