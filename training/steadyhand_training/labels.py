"""The ledger of a human's words and what they say about single frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models.messages import Label, LabelKind, Source

if TYPE_CHECKING:
    from steadyhand_training.replay import Replay

I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
Seconds = Annotated[float, Field(ge=0, le=10)]

_DEMONSTRATION = list(Source).index(Source.DEMONSTRATION)
_FLAGS = (LabelKind.FALSE_POSITIVE, LabelKind.FALSE_NEGATIVE)


@dataclass(frozen=True)
class Windows:
    """How far a word reaches, measured from its stamp less the operator's reaction time.

    The gaps separate frames that certainly show success from those that certainly do not; what lies between is too
    close to call. They cover the spread of one person's reactions about its mean, about 0.2 s.
    """

    demonstration_gap_s: Seconds = 0.4
    policy_gap_s: Seconds = 0.5
    false_positive_s: Seconds = 1.0
    false_positive_frames: Annotated[int, Field(ge=1, le=100)] = 10  # when pressed after the episode's end
    false_negative_s: Seconds = 0.2
    verdict_gap_s: Seconds = 1.0


@dataclass(frozen=True)
class Course:
    """What resolving a label needs to know of its episode. `stamps_ns` (T,) are its frames' stamps, rising."""

    stamps_ns: I64
    demonstration: bool
    ended: bool


def resolve(labels: Sequence[Label], course: Course, debounce_frames: int, windows: Windows) -> I8:
    """What the labels of one episode say of its frames: (T,) of +1 success, -1 none, 0 unknown.

    A person's later word replaces their earlier one where both speak; frames on which two people differ are unknown.
    """
    total = np.zeros(len(course.stamps_ns), np.int64)
    for who in sorted({label.who for label in labels}):
        said = np.zeros(len(total), np.int8)
        for label in sorted((w for w in labels if w.who == who), key=lambda w: w.stamp_ns):
            word = _word(label, course, debounce_frames, windows)
            said = np.where(word != 0, word, said)
        total += said
    return np.sign(total).astype(np.int8)


def _word(label: Label, course: Course, debounce_frames: int, windows: Windows) -> I8:
    """One label on the frames (T,): what it says, 0 where it is silent."""
    stamps = course.stamps_ns
    seen_ns = label.stamp_ns - _ns(label.reaction_s)
    word = np.zeros(len(stamps), np.int8)
    if label.kind is LabelKind.SUCCESS:
        gap_s = windows.demonstration_gap_s if course.demonstration else windows.policy_gap_s
        word[stamps >= seen_ns] = 1
        word[stamps < seen_ns - _ns(gap_s)] = -1
    elif label.kind in (LabelKind.FAILURE, LabelKind.VERDICT_FAILURE):
        word[:] = -1
    elif label.kind is LabelKind.VERDICT_SUCCESS:
        # It confirms where the episode ended: had it succeeded before, it would have ended before.
        word[stamps < stamps[-1:] - _ns(windows.verdict_gap_s)] = -1
        word[-debounce_frames:] = 1
    elif label.kind is LabelKind.FALSE_NEGATIVE:
        word[(stamps >= seen_ns - _ns(windows.false_negative_s)) & (stamps <= label.stamp_ns)] = 1
    elif label.kind is LabelKind.FALSE_POSITIVE and _came_after(label, course):
        # The frames that fired are the last ones, however quick the finger was.
        word[-windows.false_positive_frames :] = -1
    elif label.kind is LabelKind.FALSE_POSITIVE:
        word[(stamps > seen_ns - _ns(windows.false_positive_s)) & (stamps <= seen_ns)] = -1
    return word


def _came_after(label: Label, course: Course) -> bool:
    return course.ended and len(course.stamps_ns) > 0 and label.stamp_ns > int(course.stamps_ns[-1])


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


class Ledger:
    """Every label that was ever said, in order of arrival; an undo takes a label back without erasing it."""

    def __init__(self, debounce_frames: int, windows: Windows | None = None) -> None:
        """debounce_frames is the task's K: a verdict of success speaks of that many frames."""
        self.debounce_frames = debounce_frames
        self.windows = windows or Windows()
        self._labels: dict[str, Label] = {}
        self._episodes: dict[int, list[str]] = {}
        self._gone: set[str] = set()

    def add(self, label: Label) -> bool:
        """Keep a label; False when it was known already."""
        if label.event_id in self._labels:
            return False
        self._labels[label.event_id] = label
        self._episodes.setdefault(label.episode, []).append(label.event_id)
        self._gone = self._taken_back()
        return True

    def __len__(self) -> int:
        return len(self._labels)

    def after(self, count: int) -> list[Label]:
        """The labels that arrived after the first `count`, undos included."""
        return list(self._labels.values())[count:]

    @property
    def episodes(self) -> list[int]:
        """Episodes of which something is said, in order of their first label."""
        return [e for e in self._episodes if any(self._speaks(i) for i in self._episodes[e])]

    def labels(self, episode: int) -> list[Label]:
        """The labels of an episode that stand."""
        return [self._labels[i] for i in self._episodes.get(episode, ()) if self._speaks(i)]

    def flags(self) -> list[Label]:
        """Labels that stand and contradict the classifier in so many words."""
        return [v for i, v in self._labels.items() if v.kind in _FLAGS and self._speaks(i)]

    def target(self, undo: Label) -> Label | None:
        """The label that an undo takes back; one that names none means its author's latest before it."""
        if undo.undo_of:
            return self._labels.get(undo.undo_of)
        earlier = [
            v
            for v in self._labels.values()
            if v.who == undo.who and v.kind is not LabelKind.UNDO and v.stamp_ns <= undo.stamp_ns
        ]
        return max(earlier, key=lambda v: v.stamp_ns, default=None)

    def frame_labels(self, episode: int, replay: Replay) -> I8:
        """What is said of an episode's frames: (T,) int8 of +1, -1, 0, in the order of `replay.rows(episode)`."""
        rows = replay.rows(episode)
        course = Course(
            stamps_ns=np.asarray(replay.stamp_ns[rows], np.int64),
            demonstration=bool((replay.source[rows] == _DEMONSTRATION).any()),
            ended=replay.ended(episode) is not None,
        )
        return resolve(self.labels(episode), course, self.debounce_frames, self.windows)

    def _speaks(self, event_id: str) -> bool:
        return event_id not in self._gone and self._labels[event_id].kind is not LabelKind.UNDO

    def _taken_back(self) -> set[str]:
        """Ids of labels and undos that no longer stand; the latest undo is looked at first, for it may name another."""
        gone: set[str] = set()
        for undo in reversed([v for v in self._labels.values() if v.kind is LabelKind.UNDO]):
            named = self.target(undo)
            if undo.event_id not in gone and named is not None:
                gone.add(named.event_id)
        return gone
