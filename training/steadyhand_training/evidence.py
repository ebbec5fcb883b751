"""What the classifier learns from and is judged by: episodes that a human spoke of, split whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_models.messages import LabelKind
from steadyhand_training.fitting import Pool
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay

I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]

FLAGS = (LabelKind.FALSE_POSITIVE, LabelKind.FALSE_NEGATIVE)


class Evidence:
    """Anchors, flagged and held-out episodes. An episode is held out or not once and for all, never a part of it.

    `fresh` are episodes that were flagged since the last promotion, `review` those that no candidate could be made to
    agree with: perhaps a wrong key, so they no longer block.
    """

    def __init__(self, replay: Replay, ledger: Ledger, held_out_every: int) -> None:
        self._replay, self._ledger = replay, ledger
        self._every = held_out_every
        self._is_held_out: dict[int, bool] = {}
        self._counts: dict[str, int] = {}
        self.anchors: list[int] = []
        self.flagged: list[int] = []
        self.fresh: list[int] = []
        self.review: list[int] = []

    def ended(self) -> list[int]:
        return [e for e in self._replay.episodes if self._replay.ended(e) is not None]

    def labelled(self) -> list[int]:
        """Ended episodes of which at least one frame is labelled."""
        spoken = [e for e in self._ledger.episodes if self._replay.ended(e) is not None]
        return [e for e in spoken if self._ledger.frame_labels(e, self._replay).any()]

    def anchor(self) -> None:
        """Make every labelled episode of now part of the anchor set."""
        self.anchors = self.labelled()
        for episode in self.anchors:
            self.admit(episode)

    def admit(self, episode: int) -> None:
        """Decide whether a labelled episode is held out: every n-th of its kind."""
        if episode in self._is_held_out:
            return
        anchor = episode in self.anchors
        positive = bool((self._ledger.frame_labels(episode, self._replay) > 0).any())
        kind = f"{'anchor' if anchor else 'later'} {'success' if positive else 'none'}"
        before = self._counts.get(kind, 0)
        self._counts[kind] = before + 1
        # The second demonstration is held out, so that two suffice; of corrections the first ones teach.
        self._is_held_out[episode] = before % self._every == (1 if anchor else self._every - 1)

    def flag(self, episode: int) -> None:
        """Note that an episode contradicts the champion."""
        self.forget(episode)
        self.flagged.append(episode)
        self.fresh.append(episode)

    def forget(self, episode: int) -> None:
        """An episode is no longer flagged, or about to be flagged anew."""
        for known in (self.flagged, self.fresh, self.review):
            if episode in known:
                known.remove(episode)

    def set_aside(self, episodes: Sequence[int]) -> None:
        """Put flagged episodes up for review."""
        for episode in episodes:
            self.forget(episode)
            self.review.append(episode)

    def is_flagged(self, episode: int) -> bool:
        """Whether a person flagged this episode in so many words."""
        return any(v.kind in FLAGS for v in self._ledger.labels(episode))

    def held_out(self) -> list[int]:
        return [e for e in self.labelled() if self._is_held_out.get(e, False)]

    def taught(self) -> list[int]:
        """Labelled episodes that the classifier may learn from."""
        return [e for e in self.labelled() if not self._is_held_out.get(e, True)]

    def taught_flags(self, fresh: bool) -> list[int]:
        """Flagged episodes that are learnt from: the fresh ones, or those of before."""
        return [e for e in self.taught() if e in self.flagged and (e in self.fresh) == fresh]

    def rows(self, episodes: Sequence[int]) -> tuple[I64, I8]:
        """All rows of episodes, and their labels."""
        rows = [np.zeros(0, np.int64), *(self._replay.rows(e) for e in episodes)]
        labels = [np.zeros(0, np.int8), *(self._ledger.frame_labels(e, self._replay) for e in episodes)]
        return np.concatenate(rows), np.concatenate(labels)

    def pool(self, episodes: Sequence[int]) -> Pool:
        rows, labels = self.rows(episodes)
        return Pool(rows[labels > 0], rows[labels < 0])

    def pools(self, recent_episodes: int) -> list[Pool]:
        """Anchor set, corrections, and recent frames."""
        taught = self.taught()
        anchors = [e for e in taught if e in self.anchors]
        flagged = [e for e in taught if e in self.flagged]
        recent = [e for e in taught if e not in self.anchors and e not in self.review][-recent_episodes:]
        return [self.pool(anchors), self.pool(flagged), self.pool(recent)]

    def heads(self, rows: I64, count: int) -> npt.NDArray[np.bool_]:
        """Which heads learn from which rows (N, count): each misses its share of the anchors, so that they differ."""
        turn = {e: i for i, e in enumerate(self.anchors)}
        missed = np.array([turn.get(int(e), -1) for e in self._replay.episode[rows]])
        heads: npt.NDArray[np.bool_] = (missed[:, None] % count != np.arange(count)) | (missed < 0)[:, None]
        return heads | (count < 2)

    def state(self) -> dict[str, Any]:
        """All decisions so far, as plain data."""
        return {
            "held_out": [[e, held] for e, held in self._is_held_out.items()],
            "counts": self._counts,
            "anchors": self.anchors,
            "flagged": self.flagged,
            "fresh": self.fresh,
            "review": self.review,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the decisions of `state`."""
        self._is_held_out = {int(e): bool(held) for e, held in state["held_out"]}
        self._counts = dict(state["counts"])
        self.anchors, self.flagged = list(state["anchors"]), list(state["flagged"])
        self.fresh, self.review = list(state["fresh"]), list(state["review"])
