"""Words that look like a wrong key: the classifier is sure of the contrary and so are its neighbours' labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from steadyhand_training import fitting
from steadyhand_training.champion import Judge, Standing
from steadyhand_training.evidence import Evidence
from steadyhand_training.labels import AFFIRMING, DENYING, REVIEWS, Ledger
from steadyhand_training.replay import Replay

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

SURE = 0.9  # every head's probability of the contrary
MOST = 0.5  # share of the disputed frames, and of those of them that every head is sure of
NEIGHBOURS = 5  # nearest labelled frames, each of another episode
CONTRARY = 4  # of these: one that agrees may be a wrong key itself
# Neighbours are looked for among so many recent episodes, in so many labelled frames of each.
EPISODES = 40
FRAMES = 8


class Suspicion:
    """Looks at a word before anything is grown from it.

    Only episodes that people spoke of after the first fit are neighbours: what was demonstrated says little about how
    policies fail. Those in review count with their words: a person errs now and then, not twice about what looks alike.
    """

    def __init__(self, replay: Replay, ledger: Ledger, evidence: Evidence, judge: Judge) -> None:
        self._replay, self._ledger, self._evidence, self._judge = replay, ledger, evidence, judge

    def suspects(self, champion: Standing, episode: int) -> bool:
        """Whether what was said of an episode is better looked at again before it is believed."""
        rows, labels, sure = self._disputed(champion, episode)
        if not sure.any() or sure.mean() < MOST or self._repeated(episode):
            return False
        near = self._near(champion, episode, rows[sure])
        alone = [sum(word * says < 0 for _, says in found) >= CONTRARY for word, found in zip(labels[sure], near)]
        return len(alone) > 0 and float(np.mean(alone)) >= MOST

    def supporters(self, champion: Standing, episode: int) -> list[int]:
        """Episodes in review with a word that this one, which looks like them, bears out."""
        rows, labels, _ = self._disputed(champion, episode)
        near = self._near(champion, episode, rows)
        alike = {other for word, found in zip(labels, near) for other, says in found if word * says > 0}
        return [e for e in self._evidence.review if e in alike]

    def _repeated(self, episode: int) -> bool:
        """Whether a person said it twice, with different keys or in a review: that is no slip of the finger."""
        said = {v.kind for v in self._ledger.labels(episode)}
        return bool(said & set(REVIEWS)) or any(len(said & set(kinds)) > 1 for kinds in (AFFIRMING, DENYING))

    def _disputed(self, champion: Standing, episode: int) -> tuple[I64, I8, Bool]:
        """Rows (D,) on which the champion contradicts what was said, the labels there, and where every head is sure."""
        rows, labels = self._evidence.rows([episode])
        probabilities = champion.scores.of(rows)
        above = probabilities.mean(axis=1) > champion.rule.threshold
        disputed = (labels != 0) & (above != (labels > 0))
        contrary = np.where(labels[:, None] > 0, 1.0 - probabilities, probabilities)
        sure: Bool = np.all(contrary[disputed] > SURE, axis=1)
        return rows[disputed], labels[disputed], sure

    def _near(self, champion: Standing, episode: int, rows: I64) -> list[list[tuple[int, int]]]:
        """For each row the episodes and labels of its nearest neighbours; nothing where there are too few."""
        others, labels, owner = self._labelled(episode)
        if len(np.unique(owner)) < NEIGHBOURS or not len(rows):
            return []
        mine = fitting.features(champion.net, self._replay.frames[rows])
        theirs = fitting.features(champion.net, self._replay.frames[others])
        apart = np.linalg.norm(mine[:, None] - theirs[None], axis=2)
        return [[(int(owner[i]), int(labels[i])) for i in _nearest(far, owner)] for far in apart]

    def _labelled(self, episode: int) -> tuple[I64, I8, I64]:
        """Rows, labels and episodes of labelled frames that may be neighbours."""
        evidence = self._evidence
        apart = {episode, *evidence.anchors}
        known = [e for e in evidence.labelled() if e not in apart][-EPISODES:]
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
