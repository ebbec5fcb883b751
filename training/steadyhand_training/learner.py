"""The learner: clones demonstrations, then improves the policy on replay, and says when something is wrong."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steadyhand_models.artifact import Artifact, Golden, Manifest, digest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_models.nets import export
from steadyhand_models.nets.actor_critic import Policy
from steadyhand_models.nets.export import ExportError
from steadyhand_models.reward import DEFAULT, RewardSettings
from steadyhand_training.algorithm import Sight, Transitions, named_weights, write_weights
from steadyhand_training.augment import random_shift
from steadyhand_training.brains import Plan, calibrate_gripper
from steadyhand_training.compute import pick
from steadyhand_training.config import Algorithm, Encoders, LearnerSettings
from steadyhand_training.gripper_critic import margin_loss, same_effect
from steadyhand_training.replay import SOURCES, Replay
from steadyhand_training.response import CriticResponse, Response
from steadyhand_training.watch import ValueBounds, Warning_, Watch, value_bounds

I64 = npt.NDArray[np.int64]
Progress = Callable[[float, str], None]  # share done 0..1, what is being done

CHECK_EVERY = 50  # updates between looks at the metrics: reading a tensor stalls, and NaN cannot hide for long
GOLDEN_SAMPLES = 4
MAX_RESTORES = 3
VALUES = ("q", "target", "q_over_bound", "gripper_q")  # metrics that an algorithm gives as shares of the highest value


class Diverged(RuntimeError):
    """Learning produced numbers that are not finite, and again after every return to the last good weights."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from; the message says why."""


@dataclass(frozen=True)
class Snapshot:
    """A learner's whole state at one moment, apart from it: a thread may write it while learning goes on."""

    state: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write to a file, aside and renamed."""
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with aside.open("wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


class Learner:
    """Policy, algorithm, and how both see replay. Everything random is drawn from `seed`; state is saved whole.

    The algorithm learns values as shares of the highest that the reward makes possible: the weight of cloning, the
    temperature and the gripper's penalty stand beside values, and would mean something else for every form of reward.
    """

    def __init__(
        self,
        contract: Contract,
        replay: Replay,
        settings: LearnerSettings,
        seed: int,
        reward: RewardSettings = DEFAULT,
    ) -> None:
        """Raises BackboneError when a pretrained encoder has no weights, ValueError when settings do not fit."""
        torch.manual_seed(seed)  # the networks' initial weights
        self.contract = contract
        self.replay = replay
        self.settings = settings
        self.device = pick(settings.device)
        self._highest = value_bounds(reward, settings.discount).hi
        shares = replace(reward, success_reward=reward.success_reward / self._highest)
        self._plan = Plan(contract, settings, shares)
        self.policy = self._plan.policy().to(self.device)
        self.algorithm = self._plan.algorithm(self.policy, seed)
        self.updates = 0
        self.pretrained = False
        self.restores = 0
        self.metrics: dict[str, float] = {}
        self.watch = Watch(self._bounds(), actions=len(contract.action))
        self.response = CriticResponse(settings.response)
        self._newest: dict[str, Tensor] = {}
        self._td_error: Tensor | None = None  # running mean
        self._random = np.random.default_rng(seed)
        self._seed = seed
        self._exporter = export.Exporter()
        self._stem: tuple[bytes, Golden] | None = None  # as exported
        self._good = self.algorithm.state_dict()
        self._sights = self._plan.sights(self.policy, replay)

    # -- before learning ------------------------------------------------------------------------------------------

    def pretrain(self, progress: Progress | None = None) -> dict[str, float]:
        """Behaviour cloning of encoder and actor on every guided row, then warm-up of the critics.

        A frozen encoder learns nothing afterwards. Raises ValueError without demonstrations.
        """
        report = progress or (lambda share, what: None)
        loss = self._clone(report)
        if self.settings.sight is Encoders.FROZEN:
            self.policy.encoder.requires_grad_(False)
        self._stem = None
        self.algorithm = self._plan.algorithm(self.policy, self._seed)
        self.pretrained = True
        self._sights.forget()
        self.observe(np.arange(self.replay.size))
        self._warm_up(report)
        self._good = self.algorithm.state_dict()
        report(1.0, "pretrained")
        return {"bc_loss": loss}

    def _clone(self, report: Progress) -> float:
        rows = self.replay.guided_rows()
        if not len(rows):
            raise ValueError("pretraining needs demonstrations; replay has none")
        calibrate_gripper(
            self.policy, self._tensor(self.replay.state[rows]), self._tensor(self.replay.executed[rows, -1])
        )
        count = self.settings.pretrain_batches
        learned = [weight for weight in self.policy.parameters() if weight.requires_grad]
        optimiser = torch.optim.Adam(learned, self.settings.pretrain_learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, count)
        smooth = torch.zeros((), device=self.device)
        for i in range(count):
            loss = self._cloning_loss(self._random.choice(rows, self.settings.pretrain_batch))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            smooth = torch.lerp(loss.detach(), smooth, 0.98 if i else 0.0)
            if i % CHECK_EVERY == 0:
                report(0.9 * i / count, f"behaviour cloning, loss {smooth.item():.4f}")
        optimiser.zero_grad(set_to_none=True)  # the critics' optimiser must not find gradients of cloning
        return smooth.item()

    def _cloning_loss(self, rows: I64) -> Tensor:
        """Squared error of the mean action, as its spread is the algorithm's business; a discrete gripper's margin."""
        frames = random_shift(self.replay.frames[rows], self.settings.shift_px, self._random)
        state, action = (self._tensor(values[rows]) for values in (self.replay.state, self.replay.executed))
        observation = self.policy.observe(self._tensor(frames), state)
        gripper = self.policy.gripper
        moves = action if gripper is None else action[:, :-1]
        mean = self.policy.actor.act(observation, torch.zeros_like(moves))  # type: ignore[operator]
        loss: Tensor = (mean - moves).square().mean()
        if gripper is None:
            return loss
        same = same_effect(gripper, observation, action[:, -1])
        return loss + margin_loss(gripper(observation), same, self.settings.gripper_critic.margin).mean()

    def _warm_up(self, report: Progress) -> None:
        drqv2 = self.settings.algorithm is Algorithm.DRQV2
        count = self.settings.drqv2.warmup_updates if drqv2 else self.settings.warmup_updates
        for i in range(count if self.replay.transitions else 0):
            self.algorithm.warm_up(self._batch())
            if i % CHECK_EVERY == 0:
                report(0.9 + 0.1 * i / count, "critic warm-up")

    # -- learning -------------------------------------------------------------------------------------------------

    def observe(self, rows: I64) -> None:
        """Take notice of rows (N,) that have arrived; with a frozen encoder they are encoded once, here."""
        if not self.pretrained or not len(rows):
            return
        self._sights.observe(rows)
        for row in rows[self.replay.has_action[rows]]:
            self.watch.acted(SOURCES[self.replay.source[row]], self.replay.executed[row, :-1])

    @property
    def ready(self) -> bool:
        """Whether `update` has something to learn from."""
        return self.pretrained and self.replay.transitions > 0

    def update(self) -> dict[str, float]:
        """One update. Returns the metrics of the last look, at most CHECK_EVERY updates ago.

        Raises Diverged when weights stop being finite again and again; a first time is mended from the last good ones.
        """
        if self.response.holds:
            self._newest |= self.algorithm.warm_up(self._batch(), self.response.target_rate)
        else:
            act = self.settings.algorithm is Algorithm.DRQV2 or self.updates % self.settings.actor_every == 0
            self._newest |= self.algorithm.update(self._batch(), act, self.bc_weight)
        self._follow_error()
        self.updates += 1
        if self.updates % CHECK_EVERY == 0:
            self._look(self._newest)
        return self.metrics

    def promoted(self, flipped: int, actions: int) -> Response:
        """A classifier was promoted, and `flipped` of the stored actions' rewards are no longer what they were.

        The critics are held to catching up, or begun anew first, by the share of what flipped.
        """
        error = self._td_error.item() if self._td_error is not None else math.inf
        response = self.response.promoted(flipped, actions, error) if self.ready else Response.NONE
        if response is Response.RESET:
            self.algorithm.reset_critics()
            self._good = self.algorithm.state_dict()
        self.metrics = self.metrics | self.response.metrics
        return response

    def _follow_error(self) -> None:
        error = self._newest["critic_loss"]
        if self._td_error is not None:
            error = torch.lerp(self._td_error, error, self.settings.response.error_rate)
        self._td_error = error
        self.response.updated(error.item() if self.response.looks else None)

    @property
    def bc_weight(self) -> float:
        """Weight of the cloning term now: halves every half-life towards its end value."""
        s = self.settings
        share = 0.5 ** (self.updates / s.bc_half_life_updates)
        return s.bc_weight_end + (s.bc_weight - s.bc_weight_end) * share

    @property
    def q_bound(self) -> float:
        """The largest value that the reward makes possible."""
        return self._bounds().hi

    def _bounds(self) -> ValueBounds:
        shares = self.algorithm.bounds
        return ValueBounds(shares.lo * self._highest, shares.hi * self._highest)

    def warnings(self) -> tuple[Warning_, ...]:
        """What is wrong with learning now, in words."""
        self.watch.refused({reason.value: count for reason, count in self.replay.refused.items()})
        return self.watch.warnings()

    def _look(self, newest: dict[str, Tensor]) -> None:
        metrics = {name: value.item() for name, value in newest.items()}
        metrics |= {name: metrics[name] * self._highest for name in VALUES if name in metrics}
        if not all(map(np.isfinite, metrics.values())) or not self._is_finite():
            self.restores += 1
            self.watch.restored(self.restores)
            if self.restores > MAX_RESTORES:
                raise Diverged(f"learning diverged {self.restores} times by update {self.updates}: {metrics}")
            self._return_to_good()
            return
        self._good = self.algorithm.state_dict()
        self.watch.bounds = self._bounds()  # an entropy backup widens them with the temperature
        self.watch.look(metrics)
        own = {"bc_weight": self.bc_weight, "restores": float(self.restores)}
        self.metrics = self.metrics | metrics | own | self.response.metrics

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.algorithm.networks().values())

    def _return_to_good(self) -> None:
        random = self.algorithm.random.get_state()
        self.algorithm.load_state_dict(self._good)
        # The same noise again could lead to the same end.
        self.algorithm.random.set_state(random)

    def _batch(self) -> Transitions:
        s = self.settings
        drqv2 = s.algorithm is Algorithm.DRQV2
        count, n_step = (s.drqv2.batch, s.drqv2.n_step) if drqv2 else (s.batch, 1)
        batch = self.replay.sample(count, self._random, n_step, s.discount)
        return Transitions(
            now=self._sight(batch.rows),
            action=self._tensor(batch.action),
            executed=self._tensor(batch.executed),
            reward=self._tensor(batch.reward) / self._highest,
            discount=self._tensor(batch.discount),
            next=self._sight(batch.next_rows),
            guided=self._tensor(batch.guided.astype(np.float32)),
        )

    def _sight(self, rows: I64) -> Sight:
        seen = self._sights.of(rows, self._random)
        return Sight(seen.view.to(self.device), seen.state.to(self.device))

    def _tensor(self, values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    # -- what leaves the learner ----------------------------------------------------------------------------------

    @property
    def bytes_per_step(self) -> int:
        """What one recorded step takes in memory, in replay and as the encoder's output."""
        return self.replay.bytes_per_step + self._sights.bytes_per_row

    def published(self) -> Policy:
        """What a robot should run now: running averages in place of what single updates swing about."""
        return self._plan.published(self.policy, self.algorithm.average)

    def encoder(self, version: int) -> Artifact | None:
        """What of the encoder never learns again, as an artifact of its own; None where all of it learns.

        Exported once. Raises ExportError.
        """
        stem = self._plan.stem(self.published())
        if stem is None:
            return None
        if self._stem is None:
            self._stem = export.encoder(stem, self.contract, self.replay.frames[self._golden_rows()])
        return self._artifact(Channel.ENCODER, version, version - 1, *self._stem)

    def artifact(self, version: int, parent: int, encoder: Artifact | None = None) -> Artifact:
        """The present policy as an artifact, its parity with torch checked. Raises ExportError.

        With the artifact of its encoder it takes the features of that one instead of frames, and names it.
        """
        policy, rows = self.published(), self._golden_rows()
        if encoder is None:
            frames, state = self.replay.frames[rows], self.replay.state[rows]
            made = self._exporter.policy(policy, self.contract, frames, state, seed=version)
            return self._artifact(Channel.POLICY, version, parent, *made)
        state = self.replay.state[np.resize(rows, len(encoder.golden.output))]
        policy = self._plan.behind_stem(policy)
        made = self._exporter.policy_on_features(policy, self.contract, encoder, state, seed=version)
        return self._artifact(Channel.POLICY, version, parent, *made, encoder)

    def _artifact(
        self, channel: Channel, version: int, parent: int, model: bytes, golden: Golden, encoder: Artifact | None = None
    ) -> Artifact:
        manifest = Manifest(
            channel=channel,
            version=version,
            parent=parent,
            contract_hash=self.contract.hash,
            sha256=digest(model, golden),
            training_step=self.updates,
            created_unix_s=time.time(),
            boundary="tick",
            tolerance=export.TOLERANCE,
            metrics=dict(self.metrics) if channel is Channel.POLICY else {},
            encoder_version=encoder.manifest.version if encoder is not None else 0,
            encoder_sha256=encoder.manifest.sha256 if encoder is not None else "",
        )
        return Artifact(manifest, model, golden)

    def _golden_rows(self) -> I64:
        if not self.replay.size:
            raise ExportError("no frames recorded yet: a policy needs some as golden vectors")
        # Of the first episodes: the same for every version, so that versions can be compared.
        return np.linspace(0, min(self.replay.size, 256) - 1, GOLDEN_SAMPLES).astype(np.int64)

    def snapshot(self) -> Snapshot:
        """A copy of everything that an exact resume needs; takes milliseconds."""
        # What the algorithm does not hold is copied here: a frozen encoder, or the stem below a learned head.
        fixed = {name: value.clone() for name, value in self._fixed().items()}
        return Snapshot(
            {
                "contract": self.contract.hash,
                "light_invariant": self.settings.light_invariant,
                "encoder": fixed,
                "algorithm": self.algorithm.state_dict(),
                "updates": self.updates,
                "pretrained": self.pretrained,
                "restores": self.restores,
                "metrics": dict(self.metrics),
                "random": json.dumps(self._random.bit_generator.state),
                "response": self.response.save(),
                "td_error": None if self._td_error is None else self._td_error.clone(),
            }
        )

    def save(self, path: Path) -> None:
        """Write everything that an exact resume needs, aside and renamed."""
        self.snapshot().write(path)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote, with a replay refilled in the same order. Raises CheckpointError."""
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        if state.get("contract") != self.contract.hash:
            raise CheckpointError(f"{path}: made for contract {state.get('contract')}, not {self.contract.hash}")
        try:
            if state["light_invariant"] != self.settings.light_invariant:
                raise ValueError(f"learner.light_invariant was {state['light_invariant']}")
            write_weights(self._fixed(), state["encoder"])
            self.algorithm.load_state_dict(state["algorithm"])
            self.response.load(state["response"])
            self._td_error = None if state["td_error"] is None else state["td_error"].to(self.device)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: made with other learner settings: {error}") from None
        self.updates = state["updates"]
        self.restores = state["restores"]
        self.metrics = state["metrics"]
        self.pretrained = state["pretrained"]
        self._random.bit_generator.state = json.loads(state["random"])
        if self.settings.sight is Encoders.FROZEN:
            self.policy.encoder.requires_grad_(not self.pretrained)
        self._good = self.algorithm.state_dict()
        self._stem = None
        self._sights.forget()
        self.observe(np.arange(self.replay.size))

    def _fixed(self) -> dict[str, Tensor]:
        """The encoder's weights, by name."""
        return named_weights({"encoder": self.policy.encoder})
