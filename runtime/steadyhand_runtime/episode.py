"""One episode's bookkeeping: steps written when their outcome is known, and what ends the episode; no I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models import reward
from steadyhand_models.messages import EndReason, Source, Step
from steadyhand_runtime.declaration import Declaration, Declared
from steadyhand_runtime.observe import Observation

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class EndedBy(str, enum.Enum):
    """Who or what ended an episode."""

    OPERATOR = "operator"
    CLASSIFIER = "classifier"
    LIMIT = "limit"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an episode ends, and by whom."""

    reason: EndReason
    by: EndedBy


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for one tick: proposed and executed action (A,), who chose, what cut it."""

    proposed: F32
    executed: F32
    source: Source
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """One frame of an episode: the observation, the classifier's probabilities on it, and the versions in force."""

    tick: int
    observation: Observation
    probability: F32 | None
    policy_version: int
    classifier_version: int


class Episode:
    """Steps of one episode. Per tick: `look`, then either `act` or `finish`.

    `target_m` (3,) is where the tip has been sent and `gripper` where the jaw has, both kept by whoever projects.
    """

    def __init__(
        self,
        run: str,
        number: int,
        contract: str,
        first: Observation,
        gripper: float,
        collected: bool,
        veto_window_s: float = 0.0,
    ) -> None:
        self.run, self.number, self.contract = run, number, contract
        self.started_ns = first.stamp_ns
        self.collected = collected  # driven by a person from the start, because there is no policy
        self.target_m: F64 = first.tip_m.copy()
        self.gripper = gripper
        self.hold_left: int | None = None  # ticks to record after a demonstration's success
        self.classifier_version = 0
        self.declaration = Declaration(veto_window_s)
        self._rule: reward.Rule | None = None
        self._lower: list[float] = []
        self._seq = 0
        self._open: tuple[Look, Choice] | None = None
        self._now: Look | None = None

    @property
    def seq(self) -> int:
        """Number of the next step to be written."""
        return self._seq

    @property
    def actions(self) -> int:
        """Actions taken so far."""
        return self._seq + (self._open is not None)

    @property
    def lower(self) -> float:
        """The last frame's pessimistic probability of success, 0 without a classifier."""
        return self._lower[-1] if self._lower else 0.0

    def look(self, look: Look, rule: reward.Rule | None, refusals: tuple[str, ...] = ()) -> Step | None:
        """Take in this tick's frame; returns the step that it completes."""
        self._now, self._rule = look, rule
        self.classifier_version = look.classifier_version
        lower = 0.0
        if look.probability is not None and rule is not None:
            lower = float(reward.lower_bound(look.probability[None], rule.pessimism)[0])
        self._lower.append(lower)
        return self._close(refusals)

    def act(self, choice: Choice) -> None:
        """What was done on the frame just looked at."""
        if self._now is None:
            raise RuntimeError("an action needs a frame")
        self._open, self._now = (self._now, choice), None

    def finish(self, end: Ending) -> list[Step]:
        """The last steps. Without a fresh frame the open action's outcome is unknown: its frame becomes the last."""
        last = self._now or (self._open[0] if self._open else None)
        self._now = self._open = None
        return [] if last is None else [self._step(last, None, (f"ended_by_{end.by.value}",), end.reason)]

    def declare(self, now_ns: int) -> None:
        """Hear the classifier's word on the newest frame."""
        if self._rule is None or self._now is None:
            return
        lower, k = np.array(self._lower, np.float32), self._rule.debounce_frames
        fired = None
        if reward.fires(lower, self._rule)[-1]:
            fired = Declared(tuple(range(self._seq - k + 1, self._seq + 1)), self._now.observation.stamp_ns)
        self.declaration.look(now_ns, bool(lower[-1] > self._rule.threshold), fired)

    def _close(self, refusals: tuple[str, ...]) -> Step | None:
        if self._open is None:
            return None
        (look, choice), self._open = self._open, None
        return self._step(look, choice, tuple(dict.fromkeys(choice.reasons + refusals)), None)

    def _step(self, look: Look, choice: Choice | None, reasons: tuple[str, ...], end: EndReason | None) -> Step:
        seen = look.observation
        step = Step(
            run=self.run,
            episode=self.number,
            seq=self._seq,
            tick=look.tick,
            stamp_ns=seen.stamp_ns,
            contract=self.contract,
            frames=seen.frames,
            state=seen.state,
            proposed=choice.proposed if choice else None,
            executed=choice.executed if choice else None,
            source=choice.source if choice else Source.NONE,
            reasons=reasons,
            classifier=look.probability,
            policy_version=look.policy_version,
            classifier_version=look.classifier_version,
            frame_age_s=seen.frame_age_s,
            state_age_s=seen.state_age_s,
            end=end,
        )
        self._seq += 1
        return step


@dataclass(frozen=True, slots=True)
class Signals:
    """What may end an episode at this tick."""

    faulted: bool = False
    stopped: bool = False  # the operator's emergency stop
    pressed: EndReason | None = None
    hold_left: int | None = None
    committed: bool = False  # the classifier's success, which nobody has denied in time
    declared: bool = False  # one that may still be denied
    steps_left: int = 1


def ending(signals: Signals) -> Ending | None:
    """The first reason that applies, the gravest first; the human's word before the classifier's."""
    if signals.faulted:
        return Ending(EndReason.FAULT, EndedBy.FAULT)
    if signals.stopped:
        return Ending(EndReason.OPERATOR, EndedBy.OPERATOR)
    if signals.pressed is not None:
        return Ending(signals.pressed, EndedBy.OPERATOR)
    if signals.hold_left is not None:
        return Ending(EndReason.SUCCESS, EndedBy.OPERATOR) if signals.hold_left <= 0 else None
    if signals.committed or (signals.declared and signals.steps_left <= 0):
        return Ending(EndReason.SUCCESS, EndedBy.CLASSIFIER)
    if signals.steps_left <= 0:
        return Ending(EndReason.TIMEOUT, EndedBy.LIMIT)
    return None
