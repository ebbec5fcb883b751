"""The discrete gripper: what opening, staying and closing are worth, and the choice that a robot makes from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadyhand_models.nets.layers import trunk

CHOICES = 3  # open, stay, close, in this order
OPEN, CLOSED = -1.0, 1.0  # ends of the contract's gripper action


class GripperCritic(nn.Module):
    """Observation (B, O) to the values (B, 3) of open, stay and close.

    The contract's gripper action is where the jaws shall go, so staying is to ask again for the side on which they are.
    The side is read from the jaw's normalised position, entry `jaw` of the observation: beyond `middle` in the
    direction `closing` (+1 or -1) they count as closed. A jaw that a thing keeps from closing is past the middle, and
    goes on pressing.
    """

    middle: Tensor
    closing: Tensor

    def __init__(self, inputs: int, hidden: int, jaw: int) -> None:
        super().__init__()
        self.jaw = jaw
        self.layers = trunk(inputs, hidden).append(nn.Linear(hidden, CHOICES))
        self.register_buffer("middle", torch.zeros(1))
        self.register_buffer("closing", -torch.ones(1))

    def calibrate(self, jaw: Tensor, command: Tensor) -> None:
        """Find middle and direction from what was recorded: normalised jaw positions (N,) and gripper actions (N,).

        The middle is halfway between the lowest and the highest position, the direction that of their covariance.
        """
        low, high = torch.quantile(jaw, 0.02), torch.quantile(jaw, 0.98)
        together = ((jaw - jaw.mean()) * (command - command.mean())).mean()
        self.middle.fill_(float((low + high) / 2))
        self.closing.fill_(1.0 if together > 0 else -1.0)

    def forward(self, observation: Tensor) -> Tensor:
        values: Tensor = self.layers(observation)
        return values

    def side(self, observation: Tensor) -> Tensor:
        """Where the jaws are (B,): OPEN or CLOSED."""
        closed = (observation[:, self.jaw] - self.middle) * self.closing > 0
        return torch.where(closed, CLOSED, OPEN)

    def effects(self, observation: Tensor) -> Tensor:
        """The gripper action (B, 3) that each choice amounts to."""
        side = self.side(observation)
        return torch.stack([torch.full_like(side, OPEN), side, torch.full_like(side, CLOSED)], dim=-1)

    def choose(self, observation: Tensor) -> Tensor:
        """The gripper action (B, 1) of the best choice; HIL-SERL explores with the arm only."""
        best = self(observation).argmax(-1, keepdim=True)
        return self.effects(observation).gather(-1, best)
