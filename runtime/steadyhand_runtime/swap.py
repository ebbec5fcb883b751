"""Hot swap: prepared models change hands between two ticks, and back again when one does not keep its promise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from steadyhand_models.messages import Channel, Swap, SwapOutcome
from steadyhand_models.runqueue import RunQueue
from steadyhand_models.standing import Quarantine
from steadyhand_runtime.inference import Encoder, EncoderFailure, ModelFailure
from steadyhand_runtime.probation import Probation
from steadyhand_runtime.shadow import Sample
from steadyhand_runtime.standby import InForce, Loaded, Refusal, Staged, Standby

__all__ = ["Loaded", "Models", "Pace", "Quarantine", "Refusal", "Slot", "Staged", "Standby"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

ALERT_TICKS = 100  # how long the operator is told of a rollback


@dataclass(frozen=True, slots=True)
class Pace:
    """How punctual the control loop has been: ticks missed so far, this tick's lateness, and percentiles."""

    missed: int = 0
    lateness_s: float = 0.0
    late_p50_s: float = 0.0
    late_p99_s: float = 0.0
    late_max_s: float = 0.0


class Slot:
    """One channel's model in force, and the last one that can be relied on, still hot."""

    def __init__(self) -> None:
        self.current: Loaded | None = None
        self.previous: Loaded | None = None
        self.probation: Probation | None = None
        self.since_ns = 0

    @property
    def version(self) -> int:
        return self.current.version if self.current is not None else 0

    @property
    def in_force(self) -> InForce:
        """What standby has to know."""
        if self.current is None:
            return InForce()
        previous = self.previous.version if self.previous is not None else 0
        return InForce(self.version, self.current.manifest.sha256, previous, self.probation is None)

    def put(self, model: Loaded, now_ns: int, probation: Probation | None = None) -> None:
        """A new model in force. One still on probation is not kept to fall back to, unless it is all there is."""
        if self.probation is None or self.previous is None:
            self.previous = self.current
        self.current, self.probation, self.since_ns = model, probation, now_ns

    def fall_back(self, now_ns: int) -> None:
        self.current, self.previous, self.probation, self.since_ns = self.previous, None, None, now_ns


class Models:
    """Both channels as control sees them: `turn` at the start of a tick, then `act` and `judge`.

    A model brings the encoder that it names and takes it away with it; an encoder that both name runs once a tick.

    A swap's record is complete at the tick after it, when that first tick's lateness and misses are known; the record
    of a rollback names the version that failed, and as `previous` the one in force from then on.
    """

    def __init__(self, standby: Standby, quarantine: Quarantine, engine: str = "") -> None:
        """`engine` says what computes, for the status."""
        self._standby, self._quarantine, self.engine = standby, quarantine, engine
        self.policy, self.classifier = Slot(), Slot()
        self._slots = {Channel.POLICY: self.policy, Channel.CLASSIFIER: self.classifier}
        self._unsettled: list[tuple[Swap, int]] = []
        self._records: list[Swap] = []
        self._tick, self._now_ns = 0, 0
        self._alert, self._alert_until = "", 0
        self._queue: RunQueue | None = None
        self.spent_s = 0.0  # in calls of this tick
        self._encoded: dict[Encoder, float] = {}  # that ran on this tick's frames, and what that cost in seconds

    @property
    def alert(self) -> str:
        """What the operator must know about a rollback, for a while."""
        return self._alert if self._tick < self._alert_until else ""

    def turn(self, tick: int, now_ns: int, pace: Pace, policy_free: bool, episode_free: bool) -> None:
        """Settle the last tick's swaps and make those whose boundary this is.

        policy_free: no takeover is going on; episode_free: no episode is.
        """
        self._tick, self._now_ns, self.spent_s = tick, now_ns, 0.0
        self._encoded.clear()
        for swap, missed_before in self._unsettled:
            self._records.append(replace(swap, missed_ticks=pace.missed - missed_before))
        self._unsettled = []
        for refusal in self._standby.refusals():
            self._records.append(
                self._record(SwapOutcome.REFUSED, refusal.channel, refusal.version, refusal.reason, refusal.build_s)
            )
        if policy_free:
            self._swap(Channel.POLICY, pace, episode_free)
        if episode_free:
            self._swap(Channel.CLASSIFIER, pace, episode_free)

    def act(self, frames: U8, state: F32, noise: F32) -> F32 | None:
        """The policy's action (A,), or None without a policy. A policy that fails is rolled back within the call."""
        return self._run(Channel.POLICY, frames, state, noise)

    def judge(self, frames: U8) -> F32 | None:
        """The classifier's probabilities (heads,), or None without one."""
        return self._run(Channel.CLASSIFIER, frames, None, None)

    def records(self) -> list[Swap]:
        """What became of artifacts since the last call."""
        taken, self._records = self._records, []
        return taken

    def _run(self, channel: Channel, frames: U8, state: F32 | None, noise: F32 | None) -> F32 | None:
        slot = self._slots[channel]
        queue = self._queue = self._queue or RunQueue()
        while (model := slot.current) is not None:
            waited_s = queue.delay_s()
            try:
                output = self._call(model, frames, state, noise)
            except Exception as error:  # whatever a model raises, the one before it goes on within this call
                reason = str(error) if isinstance(error, ModelFailure) else f"{type(error).__name__}: {error}"
                self.spent_s += model.last_s
                if isinstance(error, EncoderFailure):
                    self._quarantine.add(model.manifest.encoder_sha256)
                self._roll_back(channel, slot, reason)
                continue
            self.spent_s += model.last_s
            self._standby.recent[channel].add(Sample(frames, state, noise, output))
            self._watch(channel, slot, model, self._cost_s(model, queue.delay_s() - waited_s))
            return output
        return None

    def _call(self, model: Loaded, frames: U8, state: F32 | None, noise: F32 | None) -> F32:
        """One answer; the encoder is run unless it was in this tick."""
        if model.encoder is None:
            return model.run(frames, state, noise)
        return model.run(frames, state, noise, encoded=model.encoder in self._encoded)

    def _cost_s(self, model: Loaded, waited_s: float) -> float:
        """What an answer cost with its encoder's share, whoever ran that; time in the run queue not counted."""
        encoder, spent_s = model.encoder, model.last_s - waited_s
        if encoder is None:
            return spent_s
        if encoder in self._encoded:
            return spent_s + self._encoded[encoder]
        self._encoded[encoder] = min(encoder.last_s, spent_s)
        return spent_s

    def _watch(self, channel: Channel, slot: Slot, model: Loaded, cost_s: float) -> None:
        """Count a call of a model on probation; a slow one goes, if there is another to go back to."""
        if slot.probation is None:
            return
        reason = slot.probation.call(cost_s)
        # The call after a slow one is cut off at the budget, so that the rollback does not take a third period.
        warned = slot.probation.slow > 0 and slot.previous is not None and not slot.probation.over
        model.limit_s = self._standby.budget_s if warned else self._standby.limit_s
        if reason and slot.previous is not None:
            self._roll_back(channel, slot, reason)
        elif slot.probation.over:
            slot.probation = None
            self._standby.in_force[channel] = slot.in_force

    def _swap(self, channel: Channel, pace: Pace, episode_free: bool) -> None:
        staged = self._standby.take(channel, episode_free)
        if staged is None:
            return
        slot, calls = self._slots[channel], self._standby.rules.probation_calls
        before, version = slot.version, staged.model.version
        slot.put(staged.model, self._now_ns, None if staged.proven else Probation(calls, self._standby.budget_s))
        if staged.instead_of:
            slot.previous = None  # what a person has put in quarantine is nothing to fall back to
        self._standby.in_force[channel] = slot.in_force
        if staged.instead_of:
            self._tell(channel, staged.instead_of, version)
            swap = self._record(SwapOutcome.ROLLED_BACK, channel, before, staged.instead_of, staged.build_s, version)
        else:
            swap = self._record(SwapOutcome.SWAPPED, channel, version, "", staged.build_s, before)
        swap = replace(swap, lateness_s=pace.lateness_s, found_ns=staged.found_ns, staged_ns=staged.staged_ns)
        self._unsettled.append((swap, staged.missed_before))

    def _roll_back(self, channel: Channel, slot: Slot, reason: str) -> None:
        failed = slot.current
        if failed is None:
            return
        slot.fall_back(self._now_ns)
        # In this order: what is in force and in quarantine at once was put there by a person.
        self._standby.in_force[channel] = slot.in_force
        self._quarantine.add(failed.manifest.sha256)
        self._tell(channel, f"v{failed.version} was rolled back: {reason}", slot.version)
        self._records.append(self._record(SwapOutcome.ROLLED_BACK, channel, failed.version, reason, 0.0, slot.version))

    def _tell(self, channel: Channel, what: str, version: int) -> None:
        now = f"v{version} is in force" if version else f"there is no {channel.value} now"
        self._alert, self._alert_until = f"{channel.value} {what}; {now}", self._tick + ALERT_TICKS

    def _record(
        self, outcome: SwapOutcome, channel: Channel, version: int, reason: str, build_s: float, previous: int = 0
    ) -> Swap:
        return Swap(channel, version, previous, outcome, reason, self._tick, self._now_ns, build_s, 0, 0.0)
