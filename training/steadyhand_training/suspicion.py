"""Flags that look like a wrong key: the classifier is sure of the contrary and so are its neighbours' labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from steadyhand_models.messages import LabelKind
from steadyhand_training import fitting
from steadyhand_training.champion import Judge, Standing
from steadyhand_training.evidence import FLAGS, Evidence
from steadyhand_training.labels import REVIEWS, Ledger
from steadyhand_training.replay import Replay

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]

SURE = 0.9  # every head's probability of the contrary
NEIGHBOURS = 5  # nearest labelled frames, each of another episode
# Neighbours are looked for among so many recent episodes, in so many labelled frames of each.
EPISODES = 40
FRAMES = 8
# A person errs now and then, not twice alike in so many flags: two that agree are believed.
RECENT_FLAGS = 20
_BORNE_OUT = {
    LabelKind.FALSE_POSITIVE: (LabelKind.FAILURE, LabelKind.VERDICT_FAILURE, *REVIEWS),
    LabelKind.FALSE_NEGATIVE: (LabelKind.SUCCESS, LabelKind.VERDICT_SUCCESS, *REVIEWS),
}


class Suspicion:
    """Looks at a flag before anything is grown from it.

    Only episodes of the same light that people spoke of after the first fit are neighbours: what was demonstrated says
    little about how policies fail, and a light says little about another.
    """

    def __init__(self, replay: Replay, ledger: Ledger, evidence: Evidence, judge: Judge) -> None:
        self._replay, self._ledger, self._evidence, self._judge = replay, ledger, evidence, judge

    def suspects(self, champion: Standing, episode: int) -> bool:
        """Whether a flagged episode is better looked at again before it is believed."""
        kind = self._flag(episode)
        if kind is None or self.supporters(episode):
            return False
        rows = self._disputed(champion, episode)
        return len(rows) > 0 and self._neighbours_contradict(champion, rows, episode)

    def supporters(self, episode: int) -> list[int]:
        """Other recent episodes with a flag of the same kind under the same light."""
        kind, strata = self._flag(episode), self._evidence.strata
        known = [*self._evidence.flagged, *self._evidence.review]
        recent = [e for e in known if e != episode][-RECENT_FLAGS:]
        return [e for e in recent if self._flag(e) is kind and strata.light(e) == strata.light(episode)]

    def _flag(self, episode: int) -> LabelKind | None:
        """The last word that contradicts a classifier in so many words; None where another word bears it out."""
        said = self._ledger.labels(episode)
        flags = [v for v in said if v.kind in FLAGS]
        kind = max(flags, key=lambda v: v.stamp_ns).kind if flags else None
        borne_out = kind is not None and any(v.kind in _BORNE_OUT[kind] for v in said)
        return None if borne_out else kind

    def _disputed(self, champion: Standing, episode: int) -> I64:
        """Rows on which every head is sure of the contrary of what was said; none unless they all are."""
        rows, labels = self._evidence.rows([episode])
        probabilities = champion.scores.of(rows)
        above = probabilities.mean(axis=1) > champion.rule.threshold
        disputed = (labels != 0) & (above != (labels > 0))
        contrary = np.where(labels[:, None] > 0, 1.0 - probabilities, probabilities)
        sure = (contrary[disputed] > SURE).all()
        return rows[disputed] if sure else rows[:0]

    def _neighbours_contradict(self, champion: Standing, rows: I64, episode: int) -> bool:
        others, labels, owner = self._labelled(episode)
        if len(np.unique(owner)) < NEIGHBOURS:
            return False
        said = self._evidence.rows([episode])
        word = dict(zip(said[0].tolist(), said[1].tolist()))
        mine = fitting.features(champion.net, self._replay.frames[rows])
        theirs = fitting.features(champion.net, self._replay.frames[others])
        apart = np.linalg.norm(mine[:, None] - theirs[None], axis=2)
        return all(all(labels[i] * word[int(row)] < 0 for i in _nearest(far, owner)) for row, far in zip(rows, apart))

    def _labelled(self, episode: int) -> tuple[I64, I8, I64]:
        """Rows, labels and episodes of labelled frames that may be neighbours."""
        evidence, light = self._evidence, self._evidence.strata.light(episode)
        apart = {episode, *evidence.anchors, *evidence.review}
        known = [e for e in evidence.labelled() if e not in apart and evidence.strata.light(e) == light][-EPISODES:]
        rows, labels, owner = [np.zeros(0, np.int64)], [np.zeros(0, np.int8)], [np.zeros(0, np.int64)]
        for e in known:
            its_rows, its_labels = evidence.rows([e])
            spoken = np.flatnonzero(its_labels)
            few = spoken[np.linspace(0, len(spoken) - 1, min(FRAMES, len(spoken))).astype(np.int64)]
            rows.append(its_rows[few])
            labels.append(its_labels[few])
            owner.append(np.full(len(few), e))
        return np.concatenate(rows), np.concatenate(labels), np.concatenate(owner)


def _nearest(far: F32, owner: I64) -> Sequence[int]:
    """Places of the nearest frames, one per episode."""
    found: dict[int, int] = {}
    for i in np.argsort(far, kind="stable"):
        found.setdefault(int(owner[i]), int(i))
        if len(found) == NEIGHBOURS:
            break
    return list(found.values())
