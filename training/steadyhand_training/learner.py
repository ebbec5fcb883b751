"""The learner: pretrains the encoder on demonstrations, freezes it, then improves the policy on cached features."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steadyhand_models.artifact import Artifact, Manifest, digest
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_models.nets import export
from steadyhand_models.nets.actor_critic import Policy
from steadyhand_models.nets.export import ExportError
from steadyhand_training.augment import random_shift, shift, steady_offsets
from steadyhand_training.config import LearnerSettings
from steadyhand_training.replay import Batch, Replay
from steadyhand_training.sac import VALUE_HI, Sac, Transitions

I64 = npt.NDArray[np.int64]
Progress = Callable[[float, str], None]  # share done 0..1, what is being done

CHECK_EVERY = 50  # updates between looks at the metrics: reading a tensor stalls, and NaN cannot hide for long
ENCODE_ROWS = 64
GOLDEN_SAMPLES = 4
MAX_RESTORES = 3


class Diverged(RuntimeError):
    """Learning produced numbers that are not finite, and again after every return to the last good weights."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from; the message says why."""


class Learner:
    """Policy, critics and the cache of encoded frames. Everything random is drawn from `seed`; state is saved whole."""

    def __init__(self, contract: Contract, replay: Replay, settings: LearnerSettings, seed: int) -> None:
        torch.manual_seed(seed)  # the networks' initial weights
        self.contract = contract
        self.replay = replay
        self.settings = settings
        self.policy = Policy(contract, settings.features_per_camera, settings.hidden)
        self.sac = self._new_sac(seed)
        self.updates = 0
        self.pretrained = False
        self.restores = 0
        self.metrics: dict[str, float] = {}
        self._newest: dict[str, Tensor] = {}
        self._random = np.random.default_rng(seed)
        self._seed = seed
        self._exporter = export.Exporter()
        self._good = self.sac.state_dict()
        self._features = torch.zeros(0, 1 + settings.shifted_copies, self.policy.encoder.features)
        self._states = torch.zeros(0, len(contract.state))
        self._encoded = np.zeros(0, np.bool_)

    # -- before learning ------------------------------------------------------------------------------------------

    def pretrain(self, progress: Progress | None = None) -> dict[str, float]:
        """Behaviour cloning of encoder and actor on every guided row, then warm-up of the critics on cached features.

        The encoder is frozen afterwards. Raises ValueError without demonstrations.
        """
        report = progress or (lambda share, what: None)
        loss = self._clone(report)
        self.policy.encoder.requires_grad_(False)
        self.sac = self._new_sac(self._seed)
        self.pretrained = True
        self._encoded[:] = False
        self.observe(np.arange(self.replay.size))
        for i in range(self.settings.warmup_updates if self.replay.transitions else 0):
            self.sac.update(self._transitions(self._sample()), act=False, bc_weight=0.0)
            if i % CHECK_EVERY == 0:
                report(0.9 + 0.1 * i / self.settings.warmup_updates, "critic warm-up")
        self._good = self.sac.state_dict()
        report(1.0, "pretrained")
        return {"bc_loss": loss}

    def _clone(self, report: Progress) -> float:
        rows = self.replay.guided_rows()
        if not len(rows):
            raise ValueError("pretraining needs demonstrations; replay has none")
        count = self.settings.pretrain_batches
        optimiser = torch.optim.Adam(self.policy.parameters(), self.settings.pretrain_learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, count)
        smooth = torch.zeros(())
        for i in range(count):
            chosen = self._random.choice(rows, self.settings.pretrain_batch)
            frames = random_shift(self.replay.frames[chosen], self.settings.shift_px, self._random)
            state = torch.from_numpy(self.replay.state[chosen])
            action = torch.from_numpy(self.replay.executed[chosen])
            # Noise of zero: cloning trains the mean; the spread is SAC's business.
            apart = self.policy(torch.from_numpy(frames), state, torch.zeros_like(action)) - action
            loss = apart.square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            smooth = torch.lerp(loss.detach(), smooth, 0.98 if i else 0.0)
            if i % CHECK_EVERY == 0:
                report(0.9 * i / count, f"behaviour cloning, loss {smooth.item():.4f}")
        return smooth.item()

    # -- learning -------------------------------------------------------------------------------------------------

    def observe(self, rows: I64) -> None:
        """Encode rows (N,) once, plain and in their shifted copies; nothing to do before the encoder is frozen."""
        if not self.pretrained or not len(rows):
            return
        self._fit_cache()
        for start in range(0, len(rows), ENCODE_ROWS):
            self._encode(rows[start : start + ENCODE_ROWS])

    @property
    def ready(self) -> bool:
        """Whether `update` has something to learn from."""
        return self.pretrained and self.replay.transitions > 0

    def update(self) -> dict[str, float]:
        """One update. Returns the metrics of the last look, at most CHECK_EVERY updates ago.

        Raises Diverged when weights stop being finite again and again; a first time is mended from the last good ones.
        """
        act = self.updates % self.settings.actor_every == 0
        self._newest |= self.sac.update(self._transitions(self._sample()), act, self.bc_weight)
        self.updates += 1
        if self.updates % CHECK_EVERY == 0:
            self._look(self._newest)
        return self.metrics

    @property
    def bc_weight(self) -> float:
        """Weight of the cloning term now: halves every half-life towards its end value."""
        s = self.settings
        share = 0.5 ** (self.updates / s.bc_half_life_updates)
        return s.bc_weight_end + (s.bc_weight - s.bc_weight_end) * share

    @property
    def q_bound(self) -> float:
        """The largest value that the reward makes possible."""
        return VALUE_HI

    def _look(self, newest: dict[str, Tensor]) -> None:
        metrics = {name: value.item() for name, value in newest.items()}
        if not all(map(np.isfinite, metrics.values())) or not self._is_finite():
            self.restores += 1
            if self.restores > MAX_RESTORES:
                raise Diverged(f"learning diverged {self.restores} times by update {self.updates}: {metrics}")
            self._return_to_good()
            return
        self._good = self.sac.state_dict()
        self.metrics = self.metrics | metrics | {"bc_weight": self.bc_weight, "restores": float(self.restores)}

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.sac.networks().values())

    def _return_to_good(self) -> None:
        random = self.sac.random.get_state()
        self.sac.load_state_dict(self._good)
        # The same noise again could lead to the same end.
        self.sac.random.set_state(random)

    def _new_sac(self, seed: int) -> Sac:
        inputs = self.policy.encoder.features + len(self.contract.state)
        return Sac(self.policy.actor, inputs, len(self.contract.action), self.settings, seed)

    def _sample(self) -> Batch:
        batch = self.replay.sample(self.settings.batch, self._random)
        wanted = np.concatenate([batch.rows, batch.next_rows])
        fresh = wanted[~self._is_encoded(wanted)]
        if len(fresh):
            self.observe(np.unique(fresh))
        return batch

    def _transitions(self, batch: Batch) -> Transitions:
        return Transitions(
            observation=self._observation(batch.rows),
            action=torch.from_numpy(batch.action),
            executed=torch.from_numpy(batch.executed),
            reward=torch.from_numpy(batch.reward),
            discount_mask=torch.from_numpy(batch.discount_mask),
            next_observation=self._observation(batch.next_rows),
            guided=torch.from_numpy(batch.guided.astype(np.float32)),
        )

    def _observation(self, rows: I64) -> Tensor:
        """Observations (B, O): of each row the plain frames or one of the shifted copies, drawn anew every time."""
        copies = torch.from_numpy(self._random.integers(0, self._features.shape[1], len(rows)))
        index = torch.from_numpy(rows)
        return torch.cat([self._features[index, copies], self._states[index]], dim=-1)

    # -- encoded frames -------------------------------------------------------------------------------------------

    def _is_encoded(self, rows: I64) -> npt.NDArray[np.bool_]:
        known = rows < len(self._encoded)
        known[known] = self._encoded[rows[known]]
        return known

    def _fit_cache(self) -> None:
        """Grow the cache with the replay's arrays."""
        old, new = len(self._encoded), len(self.replay.seq)
        if new > old:
            self._features = torch.cat([self._features, torch.zeros(new - old, *self._features.shape[1:])])
            self._states = torch.cat([self._states, torch.zeros(new - old, self._states.shape[1])])
            self._encoded = np.concatenate([self._encoded, np.zeros(new - old, np.bool_)])

    @torch.inference_mode()
    def _encode(self, rows: I64) -> None:
        frames = self.replay.frames[rows]
        offsets = steady_offsets(rows, self.settings.shifted_copies, frames.shape[1], self.settings.shift_px)
        views = [frames, *(shift(frames, offsets[:, i]) for i in range(self.settings.shifted_copies))]
        index = torch.from_numpy(rows)
        for i, view in enumerate(views):
            self._features[index, i] = self.policy.encoder(torch.from_numpy(view))
        self._states[index] = self.policy.normalise(torch.from_numpy(self.replay.state[rows]))
        self._encoded[rows] = True

    # -- what leaves the learner ----------------------------------------------------------------------------------

    def published(self) -> Policy:
        """What a robot should run now: the encoder with the actor's running average."""
        policy = copy.copy(self.policy)
        # A table of its own: the copy shares everything but the actor with the policy that is being trained.
        policy._modules = self.policy._modules | {"actor": self.sac.average}
        return policy

    def artifact(self, version: int, parent: int) -> Artifact:
        """The present policy as an artifact, its parity with torch checked. Raises ExportError."""
        rows = self._golden_rows()
        model, golden = self._exporter.policy(
            self.published(), self.contract, self.replay.frames[rows], self.replay.state[rows], seed=version
        )
        manifest = Manifest(
            channel=Channel.POLICY,
            version=version,
            parent=parent,
            contract_hash=self.contract.hash,
            sha256=digest(model, golden),
            training_step=self.updates,
            created_unix_s=time.time(),
            boundary="tick",
            tolerance=export.TOLERANCE,
            metrics=dict(self.metrics),
        )
        return Artifact(manifest, model, golden)

    def _golden_rows(self) -> I64:
        if not self.replay.size:
            raise ExportError("no frames recorded yet: a policy needs some as golden vectors")
        # Of the first episodes: the same for every version, so that versions can be compared.
        return np.linspace(0, min(self.replay.size, 256) - 1, GOLDEN_SAMPLES).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write everything that an exact resume needs, aside and renamed."""
        state = {
            "contract": self.contract.hash,
            "encoder": self.policy.encoder.state_dict(),
            "sac": self.sac.state_dict(),
            "updates": self.updates,
            "pretrained": self.pretrained,
            "restores": self.restores,
            "metrics": self.metrics,
            "random": json.dumps(self._random.bit_generator.state),
        }
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote, with a replay refilled in the same order. Raises CheckpointError."""
        try:
            state = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        if state.get("contract") != self.contract.hash:
            raise CheckpointError(f"{path}: made for contract {state.get('contract')}, not {self.contract.hash}")
        try:
            self.policy.encoder.load_state_dict(state["encoder"])
            self.sac.load_state_dict(state["sac"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: made with other learner settings: {error}") from None
        self.updates = state["updates"]
        self.restores = state["restores"]
        self.metrics = state["metrics"]
        self.pretrained = state["pretrained"]
        self._random.bit_generator.state = json.loads(state["random"])
        self.policy.encoder.requires_grad_(not self.pretrained)
        self._good = self.sac.state_dict()
        self._encoded[:] = False
        self.observe(np.arange(self.replay.size))
