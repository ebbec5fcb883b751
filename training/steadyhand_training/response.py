"""How the critics answer when a promoted classifier changes stored rewards: nothing, a hold, or a reset."""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]

LOOK_EVERY = 10  # updates between looks at the error while the actor is held: reading a tensor stalls


class Response(enum.IntEnum):
    """What is being done about changed rewards; the number stands in the metrics as `critic_response`."""

    NONE = 0
    HOLD = 1  # the actor stays as it is and no policy goes out, the critics learn on
    RESET = 2  # the same, with critics that began anew


@dataclass(frozen=True)
class ResponseSettings:
    """When critics are given time, and how much. The shares are of all stored actions whose reward flipped."""

    hold_share: Share = 0.001  # ours: one flip in 1,000 actions is in every eighth batch
    reset_share: Share = 0.02  # ours; PEBBLE begins its critic anew at the first fit
    # And at least so many flipped. Measured with 190 of 2,900, two seeds, 600 updates later: 65% success after a reset,
    # 77% after a hold.
    reset_flips: Count = 500
    recovered: Annotated[float, Field(ge=1, le=100)] = 1.25  # of the TD error before; its mean varies by itself
    least_updates: Count = 20  # before recovery is believed: the error is a mean over about so many
    most_updates: Count = 200  # of a hold
    # Measured: new critics have the old TD error back after 200 updates, but settle only after 400 to 500.
    least_reset_updates: Count = 400
    most_reset_updates: Count = 600
    # Of the targets while new critics learn alone. Measured: at .005 they took 3,000 updates to where .05 is after 400.
    reset_target_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    error_rate: Annotated[float, Field(gt=0, le=1)] = 0.05  # of the running mean of the TD error


@dataclass
class State:
    """Where a response stands; everything that a resume needs."""

    response: Response = Response.NONE
    level: float = math.inf  # TD error before the rewards changed
    held: int = 0  # updates of this hold so far
    rest: int = 0  # updates that the actor has before it may be held again
    held_total: int = 0
    resets: int = 0


class CriticResponse:
    """Decides at each promotion, and says from update to update whether the actor is held; pure but for its state.

    A hold is followed by as many updates in which the actor learns, so that promotions in quick succession cannot
    starve it.
    """

    def __init__(self, settings: ResponseSettings) -> None:
        self.settings = settings
        self.state = State()

    @property
    def response(self) -> Response:
        return self.state.response

    @property
    def holds(self) -> bool:
        """Whether actor and policy pushes wait for the critics."""
        return self.response is not Response.NONE

    def promoted(self, flipped: int, actions: int, error: float) -> Response:
        """A promotion flipped so many of the stored actions' rewards; `error` is the TD error until now.

        Returns what to do now. HOLD and NONE leave the critics as they are, RESET asks the caller to begin them anew.
        """
        asked = self._asked(flipped, actions)
        state = self.state
        if asked is Response.NONE or (asked is Response.HOLD and (self.holds or state.rest > 0)):
            return Response.NONE
        # While one response is under way the error is not what it was before the rewards changed.
        level = state.level if self.holds else error
        self.state = dataclasses.replace(
            state, response=asked, level=level, held=0, rest=0, resets=state.resets + (asked is Response.RESET)
        )
        return asked

    def _asked(self, flipped: int, actions: int) -> Response:
        s = self.settings
        share = flipped / actions if actions else 0.0
        if share > s.reset_share and flipped >= s.reset_flips:
            return Response.RESET
        return Response.HOLD if share >= s.hold_share and flipped else Response.NONE

    @property
    def looks(self) -> bool:
        """Whether `updated` wants to know the error of the update that comes now."""
        return self.holds and (self.state.held + 1) % LOOK_EVERY == 0

    def updated(self, error: float | None = None) -> None:
        """One update was made; `error` is the running TD error, asked for where `looks`."""
        state = self.state
        if not self.holds:
            state.rest = max(0, state.rest - 1)
            return
        state.held += 1
        state.held_total += 1
        if self._over(error):
            self.state = dataclasses.replace(state, response=Response.NONE, rest=state.held, held=0)

    def _over(self, error: float | None) -> bool:
        s, held, anew = self.settings, self.state.held, self.response is Response.RESET
        least, most = (s.least_reset_updates, s.most_reset_updates) if anew else (s.least_updates, s.most_updates)
        calm = error is not None and error <= s.recovered * self.state.level
        return held >= most or (calm and held >= least)

    @property
    def target_rate(self) -> float | None:
        """How fast targets follow now; None as ever."""
        return self.settings.reset_target_rate if self.response is Response.RESET else None

    @property
    def metrics(self) -> dict[str, float]:
        """`critic_response` is 0, 1 or 2: nothing, hold, reset."""
        state = self.state
        return {
            "critic_response": float(state.response),
            "critic_held_updates": float(state.held_total),
            "critic_resets": float(state.resets),
        }

    def save(self) -> dict[str, Any]:
        """The state as plain numbers."""
        return dataclasses.asdict(self.state) | {"response": int(self.response)}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `save` returned. Raises KeyError, TypeError or ValueError when it is something else."""
        self.state = State(**state | {"response": Response(state["response"])})
