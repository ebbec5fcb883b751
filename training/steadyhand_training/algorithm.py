"""What a learning algorithm is to the learner: the batch it gets, the interface it keeps, and steps that all share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steadyhand_training.watch import ValueBounds


@dataclass(frozen=True)
class Sight:
    """What B rows show: a view (B, ...) and normalised state (B, S).

    The view is whatever the learned part of the encoder takes: frames, feature maps, or finished features.
    """

    view: Tensor
    state: Tensor


@dataclass(frozen=True)
class Transitions:
    """B transitions as tensors. `discount` is the discount to the power of the steps between, and 0 where terminal."""

    now: Sight
    action: Tensor  # (B, A) what the critics judge
    executed: Tensor  # (B, A) what the actor imitates
    reward: Tensor  # (B,) discounted and summed over the steps between
    discount: Tensor  # (B,)
    next: Sight
    guided: Tensor  # (B,) 1.0 where a person acted


class Eye(nn.Module):
    """The learned part of an encoder, and beside its features the state: a Sight to observations (B, O)."""

    def __init__(self, head: nn.Module | None = None) -> None:
        """Without a head the view is the features."""
        super().__init__()
        self.head = head if head is not None else nn.Identity()

    def forward(self, sight: Sight) -> Tensor:
        return torch.cat([self.head(sight.view), sight.state], dim=-1)


class LearningAlgorithm(Protocol):
    """What the learner drives. Everything random is drawn from `random`."""

    random: torch.Generator
    average: nn.ModuleDict  # what a robot should run: running averages of "eye", "actor" and any "gripper"

    @property
    def bounds(self) -> ValueBounds:
        """What the reward makes possible; no target leaves it."""

    def update(self, batch: Transitions, act: bool, bc_weight: float) -> dict[str, Tensor]:
        """One gradient step of the critics and, with `act`, of the actor. Metrics stay tensors."""

    def warm_up(self, batch: Transitions, target_rate: float | None = None) -> dict[str, Tensor]:
        """One step of the critics alone, which leaves eye and actor as they are.

        Targets follow at `target_rate`, or at their own.
        """

    def reset_critics(self) -> None:
        """Begin the critics and their targets anew. A trunk stays, and so does what also acts."""

    def networks(self) -> dict[str, Tensor]:
        """Every parameter that learning changes, by name."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that an exact resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` returned. Raises KeyError, ValueError or RuntimeError when it does not fit."""


def follow(slow: Sequence[Tensor], fast: Sequence[Tensor], rate: float) -> None:
    """Move `slow` towards `fast` by a share of the way (Polyak averaging)."""
    for behind, ahead in zip(slow, fast):
        behind.lerp_(ahead, rate)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """One step down the loss for these parameters only: an actor's step must not spend time on the critics' weights."""
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
        parameter.grad = gradient
    optimiser.step()


def forget_gradients(parameters: Sequence[Tensor]) -> None:
    """An optimiser leaves parameters alone that have no gradient, also those that it shares with others."""
    for parameter in parameters:
        parameter.grad = None


@contextmanager
def weights_drawn_from(random: torch.Generator) -> Iterator[None]:
    """Networks that are made inside get their initial weights by this generator, and torch's own is left as it was."""
    seed = int(torch.randint(2**31, (), generator=random))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def begin_anew(net: nn.Module, target: nn.Module, fresh: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Give a network and its target the weights of a fresh one, and let the optimiser forget what it knew of it."""
    for each in (net, target):
        write_weights(each.state_dict(), fresh.state_dict())
    for parameter in net.parameters():
        optimiser.state.pop(parameter, None)


def named_weights(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of several networks, `part.name` each."""
    return {f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()}


def write_weights(into: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy tensors in place, by name. Raises KeyError for one that is missing, RuntimeError for another shape."""
    with torch.no_grad():
        for name, value in into.items():
            value.copy_(values[name])


def pack(
    networks: dict[str, Tensor], optimisers: dict[str, torch.optim.Optimizer], random: torch.Generator
) -> dict[str, Any]:
    """A copy of weights, optimisers and generator."""
    steps = {name: optimiser.state_dict() for name, optimiser in optimisers.items()}
    return copy.deepcopy({"networks": networks, "random": random.get_state(), **steps})


def unpack(
    state: dict[str, Any],
    networks: dict[str, Tensor],
    optimisers: dict[str, torch.optim.Optimizer],
    random: torch.Generator,
) -> None:
    """Set what `pack` returned."""
    write_weights(networks, state["networks"])
    random.set_state(state["random"])
    for name, optimiser in optimisers.items():
        # torch keeps the tensors that it is given, and the caller may want to load them again.
        optimiser.load_state_dict(copy.deepcopy(state[name]))
