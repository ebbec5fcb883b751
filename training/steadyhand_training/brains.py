"""The networks and the algorithm that settings ask for, put together."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from steadyhand_models.contract import Contract
from steadyhand_models.nets.actor_critic import Policy
from steadyhand_models.nets.backbone import BackboneEncoder, SpatialEmbeddings, read_weights
from steadyhand_models.nets.drqv2 import PixelEncoder, ScheduledActor, Trunk
from steadyhand_models.nets.encoder import OVERLAPPING, Encoder
from steadyhand_models.nets.gripper import GripperCritic
from steadyhand_models.reward import DEFAULT, RewardSettings
from steadyhand_training.algorithm import Eye, LearningAlgorithm
from steadyhand_training.config import Algorithm, Encoders, Gripper, LearnerSettings
from steadyhand_training.drqv2 import DrqV2
from steadyhand_training.replay import Replay
from steadyhand_training.sac import Sac
from steadyhand_training.sight import CachedSights, PixelSights, Sights

JAW = "gripper_position"
GRIPPER = "gripper"


@dataclass(frozen=True)
class Plan:
    """Builds what one learner consists of."""

    contract: Contract
    settings: LearnerSettings
    reward: RewardSettings = DEFAULT

    def policy(self) -> Policy:
        """A fresh policy. Raises BackboneError without weights, ValueError when the contract has no such gripper."""
        encoder = self._encoder()
        width = int(encoder.features)  # type: ignore[arg-type]  # nn.Module types attributes as tensors
        actions = len(self.contract.action)
        if self.settings.algorithm is Algorithm.DRQV2:
            actor = ScheduledActor(self._trunk(width), actions, self.settings.drqv2.hidden)
            return Policy(self.contract, encoder=encoder, actor=actor)
        # None: the policy makes its own, behind the encoder, so that equal seeds give equal weights.
        return Policy(self.contract, hidden=self.settings.hidden, encoder=encoder, gripper=self._gripper(width))

    def algorithm(self, policy: Policy, seed: int) -> LearningAlgorithm:
        """Critics, targets and optimisers around a policy's networks."""
        eye, actions = Eye(self.head(policy)), len(self.contract.action)
        if self.settings.algorithm is Algorithm.DRQV2:
            actor = policy.actor
            assert isinstance(actor, ScheduledActor)
            trunk = self._trunk(actor.trunk.features)
            return DrqV2(actor, trunk, actions, self.settings, seed, eye, self.reward)
        return Sac(
            policy.actor,  # type: ignore[arg-type]
            policy.observation,
            actions,
            self.settings,
            seed,
            eye,
            policy.gripper,
            self.reward,
        )

    def sights(self, policy: Policy, replay: Replay) -> Sights:
        """How the rows of a replay are seen."""
        s, device = self.settings, policy.state_offset.device
        if s.sight is Encoders.END_TO_END:
            return PixelSights(replay, policy.normalise, s.shift_px, device)
        stem = policy.encoder.stem if s.sight is Encoders.BACKBONE else policy.encoder
        assert isinstance(stem, nn.Module)
        return CachedSights(replay, stem, policy.normalise, s.shifted_copies, s.shift_px, device)

    def head(self, policy: Policy) -> nn.Module | None:
        """The part of the encoder that goes on learning after it was cloned."""
        if self.settings.sight is Encoders.FROZEN:
            return None
        head = policy.encoder.head if self.settings.sight is Encoders.BACKBONE else policy.encoder
        assert isinstance(head, nn.Module)
        return head

    def stem(self, policy: Policy) -> nn.Module | None:
        """The part of the encoder that never learns again, to features (B, F); None where all of it learns."""
        if self.settings.sight is Encoders.FROZEN:
            return policy.encoder
        if self.settings.sight is Encoders.BACKBONE:
            return nn.Sequential(policy.encoder.stem, nn.Flatten())  # type: ignore[arg-type]
        return None

    def behind_stem(self, policy: Policy) -> Policy:
        """The policy for the features of its own stem."""
        if self.settings.sight is not Encoders.BACKBONE:
            return policy.behind()
        head = policy.encoder.head
        assert isinstance(head, SpatialEmbeddings)
        return policy.behind(nn.Sequential(nn.Unflatten(1, head.maps), head))

    def published(self, policy: Policy, average: nn.ModuleDict) -> Policy:
        """The policy with the running averages in place of what is being trained; on the CPU, sharing what it can."""
        eye = average["eye"]
        assert isinstance(eye, Eye)
        parts: dict[str, nn.Module | None] = {"actor": average["actor"]}
        if "gripper" in average:
            parts["gripper"] = average["gripper"]
        if self.settings.sight is Encoders.END_TO_END:
            parts["encoder"] = eye.head
        elif self.settings.sight is Encoders.BACKBONE:
            parts["encoder"] = _with(policy.encoder, {"head": eye.head})
        made = _with(policy, parts)
        if any(value.device.type != "cpu" for value in made.state_dict().values()):
            made = copy.deepcopy(made).cpu()
        assert isinstance(made, Policy)
        return made

    def _encoder(self) -> nn.Module:
        s, shape = self.settings, self.contract.frames_shape
        if s.sight is Encoders.BACKBONE:
            weights = read_weights(s.backbone.file, s.backbone.url)
            return BackboneEncoder(weights, shape, s.backbone.embeddings, s.features_per_camera)
        if s.sight is Encoders.FROZEN:
            return Encoder(shape, s.features_per_camera, light_invariant=s.light_invariant)
        if s.algorithm is Algorithm.DRQV2:
            return PixelEncoder(shape, s.light_invariant)
        return Encoder(shape, s.features_per_camera, OVERLAPPING, s.light_invariant)

    def _trunk(self, width: int) -> Trunk:
        return Trunk(width, len(self.contract.state), self.settings.drqv2.features)

    def _gripper(self, width: int) -> GripperCritic | None:
        if self.settings.gripper is Gripper.CONTINUOUS:
            return None
        names = [field.name for field in self.contract.state]
        if self.contract.action[-1].name != GRIPPER or JAW not in names:
            raise ValueError(
                f"learner.gripper 'discrete' needs '{GRIPPER}' as the contract's last action and '{JAW}' in its state; "
                "this task has not: choose 'continuous'"
            )
        return GripperCritic(width + len(names), self.settings.hidden, width + names.index(JAW))


def _with(net: nn.Module, parts: dict[str, nn.Module | None]) -> nn.Module:
    """A copy that shares everything with the network but these parts."""
    made = copy.copy(net)
    # A table of its own: that of a shallow copy would be the network's.
    made._modules = net._modules | parts
    return made


def calibrate_gripper(policy: Policy, state: torch.Tensor, command: torch.Tensor) -> None:
    """Tell a discrete gripper where its jaws count as closed, from states (N, S) and gripper actions (N,)."""
    if policy.gripper is not None:
        features = policy.observation - state.shape[1]
        policy.gripper.calibrate(policy.normalise(state)[:, policy.gripper.jaw - features], command)
