"""Probation: whether a model that was just swapped in keeps to its budget; pure."""

from __future__ import annotations

from dataclasses import dataclass

# One slow call may be the machine's doing, two in a row are the model's: and a rollback must not take a third period.
SLOW_IN_A_ROW = 2


@dataclass
class Probation:
    """The first `left` calls of a model, none of which may take longer than `budget_s` twice in a row."""

    left: int
    budget_s: float
    slow: int = 0

    def call(self, cost_s: float) -> str:
        """Take note of a call, time in the run queue not counted; why the model must go, or nothing."""
        self.left -= 1
        self.slow = self.slow + 1 if cost_s > self.budget_s else 0
        if self.slow < SLOW_IN_A_ROW:
            return ""
        return f"{self.slow} calls in a row took over {self.budget_s * 1e3:.0f} ms, the last one {cost_s * 1e3:.0f} ms"

    @property
    def over(self) -> bool:
        return self.left <= 0
