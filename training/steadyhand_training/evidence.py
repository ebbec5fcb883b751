"""What the classifier learns from and is judged by: episodes that a human spoke of, split whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_training.fitting import Pool
from steadyhand_training.golden import GoldenSet
from steadyhand_training.labels import FLAGS, Ledger
from steadyhand_training.replay import Replay
from steadyhand_training.strata import Phase, Strata, Stratum, by_light

I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]

ANCHORS_PER_HEAD = 4
FULL_EPISODES = 4  # of a pool; one of fewer weighs as much less, or a single wrong key would be learned by heart
DOUBTS = 2  # candidates that a word must look wrong to before it goes to review


class Evidence:
    """Anchors, flagged and held-out episodes. An episode is held out or not once and for all, never a part of it.

    `fresh` are episodes that were flagged since the last promotion. `review` are those that look like a wrong key:
    until somebody has answered they neither teach nor block.
    """

    def __init__(self, replay: Replay, ledger: Ledger, strata: Strata, held_out_every: int) -> None:
        """held_out_every of 0 holds nothing out."""
        self.strata = strata
        self.golden = GoldenSet()
        self._replay, self._ledger = replay, ledger
        self._every = held_out_every
        self._admitted: dict[int, bool] = {}  # whether held out, in the order of admission
        self._counts: dict[str, int] = {}
        self.anchors: list[int] = []
        self.flagged: list[int] = []
        self.fresh: list[int] = []
        self.review: list[int] = []
        self._doubts: dict[int, int] = {}  # held-out episodes, and how many candidates their words looked wrong to

    def ended(self) -> list[int]:
        return [e for e in self._replay.episodes if self._replay.ended(e) is not None]

    def labelled(self) -> list[int]:
        """Ended episodes of which at least one frame is labelled."""
        spoken = [e for e in self._ledger.episodes if self._replay.ended(e) is not None]
        return [e for e in spoken if self._labels(e).any()]

    def anchor(self) -> None:
        """Make every labelled episode of now part of the anchor set."""
        self.anchors = self.labelled()
        for episode in self.anchors:
            self.admit(episode)

    def admit(self, episode: int) -> None:
        """Decide whether a labelled episode is held out, if the golden set has room for it.

        That is every n-th of its kind, and the second of its kind under a light that nothing is known of.
        """
        if episode in self._admitted:
            return
        anchor, light = episode in self.anchors, self.strata.light(episode)
        success = "success" if (self._labels(episode) > 0).any() else "none"
        kind = f"{'anchor' if anchor else 'later'} {success}"
        # The second demonstration is held out, so that two suffice; of corrections the first ones teach.
        chosen = self._count(kind) % max(self._every, 1) == (1 if anchor else self._every - 1)
        chosen |= self._count(f"light {light} {success}") == 1 and light > 1 and not anchor
        self._admitted[episode] = chosen and self._every > 0 and self.golden.offer(episode, self._touched(episode))

    def _count(self, kind: str) -> int:
        """How many of a kind came before this one."""
        before = self._counts.get(kind, 0)
        self._counts[kind] = before + 1
        return before

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

    def doubt(self, episode: int) -> bool:
        """One more candidate, which never learned from this episode, contradicts its word; whether these are enough."""
        self._doubts[episode] = self._doubts.get(episode, 0) + 1
        return self._doubts[episode] >= DOUBTS

    def is_flagged(self, episode: int) -> bool:
        """Whether a person flagged this episode in so many words."""
        return any(v.kind in FLAGS for v in self._ledger.labels(episode))

    def held_out(self) -> list[int]:
        """Episodes that judge: the golden set, less what is in review or no longer labelled."""
        return [e for e in self.labelled() if self._admitted.get(e, False) and e not in self.review]

    def taught(self) -> list[int]:
        """Labelled episodes that the classifier may learn from."""
        return [e for e in self.labelled() if not self._admitted.get(e, True) and e not in self.review]

    def taught_flags(self, fresh: bool) -> list[int]:
        """Flagged episodes that are learnt from: the fresh ones, or those of before."""
        return [e for e in self.taught() if e in self.flagged and (e in self.fresh) == fresh]

    def rows(self, episodes: Sequence[int]) -> tuple[I64, I8]:
        """All rows of episodes, and their labels."""
        rows = [np.zeros(0, np.int64), *(self._replay.rows(e) for e in episodes)]
        labels = [np.zeros(0, np.int8), *(self._labels(e) for e in episodes)]
        return np.concatenate(rows), np.concatenate(labels)

    def pool(self, episodes: Sequence[int]) -> Pool:
        rows, labels = self.rows(episodes)
        return Pool(rows[labels > 0], rows[labels < 0], min(1.0, len(episodes) / FULL_EPISODES))

    def pools(self, recent_episodes: int) -> list[Pool]:
        """Anchor set, corrections, and recent frames, each by light: a new light has its share, no old one is lost."""
        taught = self.taught()
        anchors = [e for e in taught if e in self.anchors]
        flagged = [e for e in taught if e in self.flagged]
        other = by_light([e for e in taught if e not in self.anchors], self.strata.light)
        groups = [*by_light(anchors, self.strata.light).values(), *by_light(flagged, self.strata.light).values()]
        groups += [episodes[-recent_episodes:] for episodes in other.values()]
        return [self.pool(episodes) for episodes in groups]

    def heads(self, rows: I64, count: int) -> npt.NDArray[np.bool_]:
        """Which heads learn from which rows (N, count): each misses its share of the anchors, so that they differ.

        Of a few anchors none can be spared: heads that had seen two of three demonstrations found fewer successes.
        """
        if len(self.anchors) < ANCHORS_PER_HEAD * count:
            return np.ones((len(rows), count), np.bool_)
        turn = {e: i for i, e in enumerate(self.anchors)}
        missed = np.array([turn.get(int(e), -1) for e in self._replay.episode[rows]])
        heads: npt.NDArray[np.bool_] = (missed[:, None] % count != np.arange(count)) | (missed < 0)[:, None]
        return heads | (count < 2)

    def state(self) -> dict[str, Any]:
        """All decisions so far, as plain data."""
        return {
            "held_out": [[e, held] for e, held in self._admitted.items()],
            "golden": [[e, [[s.light, s.camera, s.phase.value] for s in t]] for e, t in self.golden.entries()],
            "counts": self._counts,
            "anchors": self.anchors,
            "flagged": self.flagged,
            "fresh": self.fresh,
            "review": self.review,
            "doubts": list(self._doubts.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the decisions of `state`."""
        self._admitted = {int(e): bool(held) for e, held in state["held_out"]}
        self.golden = GoldenSet()
        for episode, strata in state["golden"]:
            self.golden.offer(int(episode), [Stratum(light, camera, Phase(phase)) for light, camera, phase in strata])
        self._counts = dict(state["counts"])
        self.anchors, self.flagged = list(state["anchors"]), list(state["flagged"])
        self.fresh, self.review = list(state["fresh"]), list(state["review"])
        self._doubts = {int(e): int(n) for e, n in state["doubts"]}

    def _labels(self, episode: int) -> I8:
        return self._ledger.frame_labels(episode, self._replay)

    def _touched(self, episode: int) -> list[Stratum]:
        """The strata that an episode has labelled frames in."""
        return [s for s, word in zip(self.strata.of(episode), self._labels(episode)) if word]
