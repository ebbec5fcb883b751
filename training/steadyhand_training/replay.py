"""Replay: every recorded step once, as arrays by row, and the sampling of transitions from them."""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models.contract import Contract
from steadyhand_models.messages import EndReason, Source, Step
from steadyhand_models.reward import Outcome

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

SOURCES = tuple(Source)
GUIDED = (SOURCES.index(Source.DEMONSTRATION), SOURCES.index(Source.TAKEOVER))
FIRST_ROWS = 1024
GROWTH = 1.5
NO_ROW = -1
RANGE = 1.001  # the contract's action range, with room for rounding
ARRAYS = (
    "frames",
    "state",
    "executed",
    "proposed",
    "has_action",
    "source",
    "stamp_ns",
    "episode",
    "seq",
    "policy_version",
    "classifier_version",
    "next_row",
    "reward",
    "terminal",
    "usable",
)


class Refusal(str, enum.Enum):
    """Why a person's action was not learned from; the values are read by people."""

    NOT_FINITE = "not finite"
    OUT_OF_RANGE = "beyond the contract's range"
    ZERO = "zero although the arm was taken over"


@dataclass(frozen=True)
class MemoryReport:
    """What replay keeps in memory."""

    steps: int
    bytes_per_step: int
    bytes_used: int  # by the steps held
    bytes_reserved: int  # by the arrays, which grow ahead of them


class ReplayFull(RuntimeError):
    """No room for another step; the message names the setting."""


@dataclass(frozen=True)
class Batch:
    """B transitions by row. `discount` is that of the value at `next_rows`: 0 where nothing comes after."""

    rows: I64
    next_rows: I64
    action: F32  # (B, A) what to judge: the proposed action, the executed one, or one between them
    executed: F32  # (B, A) what to imitate
    reward: F32  # (B,) discounted and summed over the steps up to `next_rows`
    discount: F32  # (B,)
    guided: Bool  # (B,) the action was a person's, and worth imitating


class Replay:
    """Struct of arrays with one row for each step; `next_row` links the steps of an episode.

    A transition is a row with an action whose next step of the same episode is present. It can be sampled once an
    outcome has said what it is worth.
    """

    def __init__(self, contract: Contract, capacity: int) -> None:
        self.contract = contract
        self.capacity = capacity
        self.size = 0
        self._episode_rows: dict[int, list[int]] = {}
        self._ended: dict[int, EndReason] = {}
        self._failed: list[int] = []
        self.refused: Counter[Refusal] = Counter()  # actions of people that cannot be right; their frames are kept
        self._pools: tuple[I64, I64] | None = None
        rows = min(FIRST_ROWS, capacity)
        self.frames = np.zeros((rows, *contract.frames_shape), np.uint8)
        self.state = np.zeros((rows, len(contract.state)), np.float32)
        self.executed = np.zeros((rows, len(contract.action)), np.float32)
        self.proposed = np.zeros((rows, len(contract.action)), np.float32)
        self.has_action = np.zeros(rows, np.bool_)
        self.source = np.zeros(rows, np.int8)
        self.stamp_ns = np.zeros(rows, np.int64)
        self.episode = np.zeros(rows, np.int64)
        self.seq = np.zeros(rows, np.int64)
        self.policy_version = np.zeros(rows, np.int64)
        self.classifier_version = np.zeros(rows, np.int64)
        self.next_row = np.zeros(rows, np.int64)
        self.reward = np.zeros(rows, np.float32)
        self.terminal = np.zeros(rows, np.bool_)
        self.usable = np.zeros(rows, np.bool_)

    def append(self, step: Step) -> int:
        """Store one step and return its row. Steps of an episode come in order; a gap breaks the link, not the episode.

        An action of a person that cannot be right is counted in `refused` and left out: a row without an action.
        Raises ValueError for a step of another contract, or one that repeats or goes back within its episode, or
        continues an ended one; ReplayFull at capacity.
        """
        before = self._check(step)
        if self.size == self.capacity:
            raise ReplayFull(f"replay holds its {self.capacity} steps; raise learner.replay_capacity")
        if self.size == len(self.seq):
            self._grow()
        row = self.size
        self._write(row, step)
        if before is not None and self.seq[before] + 1 == step.seq:
            self.next_row[before] = row
        self._episode_rows.setdefault(step.episode, []).append(row)
        if step.end is not None:
            self._ended[step.episode] = step.end
        if step.end is EndReason.FAILURE:
            self._failed.append(step.episode)
        self.size += 1
        return row

    def rows(self, episode: int) -> I64:
        """All rows (T,) of an episode in order; empty when it is unknown."""
        return np.array(self._episode_rows.get(episode, []), np.int64)

    def length(self, episode: int) -> int:
        """How many rows an episode has by now."""
        return len(self._episode_rows.get(episode, ()))

    @property
    def episodes(self) -> list[int]:
        """Every episode that has a step, in order of arrival."""
        return list(self._episode_rows)

    def ended(self, episode: int) -> EndReason | None:
        """Why an episode ended, or None while it is open."""
        return self._ended.get(episode)

    def ended_episodes(self, after: int = 0) -> list[int]:
        """Episodes that have ended, in the order of their ends, without the first `after`."""
        return list(itertools.islice(self._ended, after, None))

    def set_outcome(self, episode: int, outcome: Outcome) -> None:
        """Write what the actions of an episode's T rows are worth; the outcome is of its T - 1 pairs of frames.

        Raises ValueError when it is of another length.
        """
        rows = self.rows(episode)
        if len(outcome.reward) != max(len(rows) - 1, 0):
            raise ValueError(f"episode {episode}: outcome of {len(outcome.reward)} actions for {len(rows)} frames")
        if not len(rows):
            return
        acted = rows[:-1]
        self.reward[acted] = outcome.reward
        self.terminal[acted] = outcome.terminal
        self.usable[acted] = outcome.usable & self.has_action[acted] & (self.next_row[acted] != NO_ROW)
        self._pools = None

    @property
    def bytes_per_step(self) -> int:
        """What one more step costs: every array's share of a row."""
        arrays = (getattr(self, name) for name in ARRAYS)
        return sum(int(np.prod(array.shape[1:])) * array.itemsize for array in arrays)

    def memory_report(self) -> MemoryReport:
        each = self.bytes_per_step
        return MemoryReport(self.size, each, each * self.size, each * len(self.seq))

    def sample(self, batch: int, rng: np.random.Generator, n_step: int = 1, discount: float = 1.0) -> Batch:
        """B transitions over up to n steps: half from guided ones, half from everything.

        Raises ValueError when there are none.
        """
        guided, everything = self._transition_pools()
        if not len(everything):
            raise ValueError("replay has no transition to sample yet")
        half = batch // 2 if len(guided) else 0
        rows = np.concatenate([_draw(guided, half, rng), _draw(everything, batch - half, rng)])
        next_rows, reward, left = self._ahead(rows, n_step, discount)
        return Batch(
            rows=rows,
            next_rows=next_rows,
            action=self._action(rows, rng),
            executed=self.executed[rows],
            reward=reward,
            discount=left,
            guided=np.isin(rows, guided),
        )

    def _ahead(self, rows: I64, n_step: int, discount: float) -> tuple[I64, F32, F32]:
        """From each row up to n steps on: the row reached, the rewards on the way, and the discount of what follows.

        The way ends early at a terminal, which leaves a discount of 0, and at the last row of an episode, at a gap and
        where no outcome is known yet, all of which are bootstrapped.
        """
        last, reward = rows, self.reward[rows]
        left = np.full(len(rows), discount, np.float32)
        for _ in range(n_step - 1):
            after = self.next_row[last]
            on = ~self.terminal[last] & self.usable[after]
            reward = reward + np.where(on, left * self.reward[after], np.float32(0.0))
            left = np.where(on, left * np.float32(discount), left)
            last = np.where(on, after, last)
        return self.next_row[last], reward, left * ~self.terminal[last]

    def _action(self, rows: I64, rng: np.random.Generator) -> F32:
        """One of the actions (B, A) that would have done what was done.

        A limit turns the proposed action into the executed one, and everything between them into the same. Critics that
        saw only executed ones would never learn what the others are worth, and the actor would go on proposing them.
        """
        share = rng.random((len(rows), 1), np.float32)
        return self.executed[rows] + share * (self.proposed[rows] - self.executed[rows])

    @property
    def transitions(self) -> int:
        """How many transitions can be sampled."""
        return len(self._transition_pools()[1])

    def guided_rows(self) -> I64:
        """Transitions (N,) whose action was a person's and is worth imitating."""
        return self._transition_pools()[0]

    def _transition_pools(self) -> tuple[I64, I64]:
        if self._pools is None:
            everything = np.flatnonzero(self.usable[: self.size])
            self._pools = everything[self._worth_imitating(everything)], everything
        return self._pools

    def _worth_imitating(self, rows: I64) -> Bool:
        """Which rows (N,) a person acted in, but not on the way to a failure: nobody demonstrates that to be copied."""
        return np.isin(self.source[rows], GUIDED) & ~np.isin(self.episode[rows], self._failed)

    def _check(self, step: Step) -> int | None:
        """The row before this step, or None at the first step of an episode."""
        where = f"episode {step.episode} step {step.seq}"
        if step.contract != self.contract.hash:
            raise ValueError(f"{where}: contract {step.contract}, this replay has {self.contract.hash}")
        if step.frames.shape != self.contract.frames_shape or len(step.state) != len(self.contract.state):
            raise ValueError(f"{where}: frames {step.frames.shape} or state {step.state.shape} do not fit the contract")
        if not np.isfinite(step.state).all():
            raise ValueError(f"{where}: state is not finite")
        for name, action in (("executed", step.executed), ("proposed", step.proposed)):
            if action is None:
                continue
            finite = bool(np.isfinite(action).all())
            if action.shape != (len(self.contract.action),) or not finite:
                self.refused[Refusal.NOT_FINITE] += not finite and SOURCES.index(step.source) in GUIDED
                raise ValueError(f"{where}: {name} action {action} does not fit the contract")
        if step.episode in self._ended:
            raise ValueError(f"{where}: the episode has ended")
        rows = self._episode_rows.get(step.episode)
        if rows and self.seq[rows[-1]] >= step.seq:
            raise ValueError(f"{where}: does not follow step {self.seq[rows[-1]]}")
        return rows[-1] if rows else None

    def _write(self, row: int, step: Step) -> None:
        self.frames[row] = step.frames
        self.state[row] = step.state
        acted = step.executed is not None and not self._refuse(step)
        if acted and step.executed is not None:
            # A projection against the leash can exceed a full action; the actor cannot.
            self.executed[row] = np.clip(step.executed, -1.0, 1.0)
            self.proposed[row] = self.executed[row] if step.proposed is None else np.clip(step.proposed, -1.0, 1.0)
        self.has_action[row] = acted
        self.source[row] = SOURCES.index(step.source)
        self.stamp_ns[row] = step.stamp_ns
        self.episode[row] = step.episode
        self.seq[row] = step.seq
        self.policy_version[row] = step.policy_version
        self.classifier_version[row] = step.classifier_version
        self.next_row[row] = NO_ROW

    def _refuse(self, step: Step) -> bool:
        """Whether this is a person's action that no input device meant; counts why.

        At rest a device still asks for the jaws as they are, so an action of zeros alone is a recording that lost it.
        """
        meant = step.proposed if step.proposed is not None else step.executed
        if SOURCES.index(step.source) not in GUIDED or meant is None:
            return False
        reason = None
        if np.abs(meant).max() > RANGE:
            reason = Refusal.OUT_OF_RANGE
        elif not meant.any() and (step.executed is None or not step.executed.any()):
            reason = Refusal.ZERO
        if reason is not None:
            self.refused[reason] += 1
        return reason is not None

    def _grow(self) -> None:
        rows = min(int(len(self.seq) * GROWTH), self.capacity)
        for name in ARRAYS:
            old = getattr(self, name)
            new = np.zeros((rows, *old.shape[1:]), old.dtype)
            new[: self.size] = old[: self.size]
            setattr(self, name, new)


def _draw(pool: I64, count: int, rng: np.random.Generator) -> I64:
    return pool[rng.integers(0, len(pool), count)] if count else np.zeros(0, np.int64)
