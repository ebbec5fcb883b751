"""The ledger of a human's words and what they say about single frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models.messages import Label, LabelKind
from steadyhand_models.task import Task
from steadyhand_training import strata

if TYPE_CHECKING:
    from steadyhand_training.replay import Replay

I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Seconds = Annotated[float, Field(ge=0, le=10)]

# Keys that contradict the classifier in so many words.
FLAGS = (LabelKind.FALSE_POSITIVE, LabelKind.FALSE_NEGATIVE)
# Words by which an episode was a success, or none.
AFFIRMING = (LabelKind.SUCCESS, LabelKind.VERDICT_SUCCESS, LabelKind.FALSE_NEGATIVE)
DENYING = (LabelKind.FAILURE, LabelKind.VERDICT_FAILURE, LabelKind.FALSE_POSITIVE)
REVIEWS = (LabelKind.REVIEW_SUCCESS, LabelKind.REVIEW_NONE)
_NOT_BY_KEY = (LabelKind.UNDO, *REVIEWS)
# Words on how an episode went; that no other frame was a success is only implied.
_ON_THE_WHOLE = (LabelKind.SUCCESS, LabelKind.FAILURE, LabelKind.VERDICT_SUCCESS, LabelKind.VERDICT_FAILURE)


@dataclass(frozen=True)
class Windows:
    """How far a word reaches, measured from its stamp less the operator's reaction time.

    One person's reactions spread by about 0.25 s about their mean: what lies within it of a success is too close to
    call. Frames taken for a success before it was one teach the classifier to be early, ever more so.
    """

    spread_s: Seconds = 0.25
    late_s: Seconds = 0.1  # positives begin this late; all of the spread would leave three frames of a lift
    false_positive_s: Seconds = 1.0
    false_positive_frames: Annotated[int, Field(ge=1, le=100)] = 10  # when pressed after the episode's end
    verdict_gap_s: Seconds = 1.0
    # What was held up for less than this and put down or lost again was over before a person could have said anything.
    # Measured in two runs: see docs/classifier.md.
    moment_s: Seconds = 1.25


@dataclass(frozen=True)
class Course:
    """What resolving a label needs to know of its episode. `stamps_ns` (T,) are its frames' stamps, rising.

    `seqs` (T,) are their places in the episode, 0, 1, ... where none are given; `held_up` (T,) says where the jaws were
    closed above the table.
    """

    stamps_ns: I64
    ended: bool
    seqs: I64 | None = None
    held_up: Bool | None = None


def resolve(labels: Sequence[Label], course: Course, windows: Windows) -> I8:
    """What the labels of one episode say of its frames: (T,) of +1 success, -1 none, 0 unknown.

    A person's later word replaces their earlier one where both speak; frames on which two people differ are unknown.
    Who looked at the very frame in a review is believed before any key that was pressed in passing.
    """
    keys = sorted((w for w in labels if w.kind not in REVIEWS), key=lambda w: w.stamp_ns)
    reviews = sorted((w for w in labels if w.kind in REVIEWS), key=lambda w: w.said_unix_s)
    pressed, _ = _agreed([(w.who, _word(w, course, windows)) for w in keys], course)
    answered, looked_at = _agreed([(w.who, _answer(w, course)) for w in reviews], course)
    return np.where(looked_at, answered, pressed).astype(np.int8)


def _agreed(words: Sequence[tuple[str, I8]], course: Course) -> tuple[I8, Bool]:
    """Words (who, (T,)) in order of time as one: +1, -1, 0 where people differ; and the frames that anyone spoke of."""
    total = np.zeros(len(course.stamps_ns), np.int64)
    spoken = np.zeros(len(total), np.bool_)
    for who in sorted({who for who, _ in words}):
        said = np.zeros(len(total), np.int8)
        for word in (word for speaker, word in words if speaker == who):
            said = np.where(word != 0, word, said)
        total += said
        spoken |= said != 0
    return np.sign(total).astype(np.int8), spoken


def _answer(label: Label, course: Course) -> I8:
    """A review on the frames (T,) that it names."""
    seqs = np.arange(len(course.stamps_ns)) if course.seqs is None else course.seqs
    value = 1 if label.kind is LabelKind.REVIEW_SUCCESS else -1
    return np.where(np.isin(seqs, label.steps), value, 0).astype(np.int8)


def _word(label: Label, course: Course, windows: Windows) -> I8:
    """One label on the frames (T,): what it says, 0 where it is silent."""
    stamps = course.stamps_ns
    seen_ns = label.stamp_ns - _ns(label.reaction_s)
    word = np.zeros(len(stamps), np.int8)
    if label.kind is LabelKind.SUCCESS:
        word[stamps >= seen_ns + _ns(min(windows.late_s, label.reaction_s))] = 1
        word[stamps < seen_ns - _ns(min(windows.spread_s, label.reaction_s))] = -1
    elif label.kind in (LabelKind.FAILURE, LabelKind.VERDICT_FAILURE):
        word[:] = -1
    elif label.kind is LabelKind.VERDICT_SUCCESS:
        # It confirms how the episode ended: had it succeeded long before, it would have ended before. Which frame
        # began it nobody looked at; those with which a classifier fired may have been early.
        end = _named_until(label, course) or len(stamps)
        word[stamps < stamps[end - 1 : end] - _ns(windows.verdict_gap_s)] = -1
        word[end - 1 : end] = 1
    elif label.kind is LabelKind.FALSE_NEGATIVE:
        begin_ns = seen_ns + _ns(min(windows.late_s, label.reaction_s))
        word[(stamps >= begin_ns) & (stamps <= label.stamp_ns)] = 1
    elif label.kind is LabelKind.FALSE_POSITIVE and (end := _fired_until(label, course)):
        word[max(0, end - windows.false_positive_frames) : end] = -1
    elif label.kind is LabelKind.FALSE_POSITIVE:
        word[(stamps > seen_ns - _ns(windows.false_positive_s)) & (stamps <= seen_ns)] = -1
    if label.kind in _ON_THE_WHOLE and course.held_up is not None:
        word[_moments(word, course.held_up, stamps, _ns(windows.moment_s))] = 0
    return word


def _moments(word: I8, held_up: Bool, stamps_ns: I64, longest_ns: int) -> Bool:
    """Frames (T,) of every short stretch of `held_up` of which the word says nothing but no: whether the object was up
    there cannot be told from how the episode went."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], held_up.astype(np.int8), [0]])))
    found = np.zeros(len(word), np.bool_)
    for begin, end in edges.reshape(-1, 2):
        short = stamps_ns[end - 1] - stamps_ns[begin] < longest_ns
        found[begin:end] = short and (word[begin:end] < 0).all()
    return found


def _fired_until(label: Label, course: Course) -> int:
    """How many frames there are up to the last one that fired; 0 where only the stamp can tell."""
    # Where none are named they are the last ones, however quick the finger was.
    return _named_until(label, course) or (len(course.stamps_ns) if _came_after(label, course) else 0)


def _named_until(label: Label, course: Course) -> int:
    """How many frames there are up to the last one that a label names; 0 where it names none."""
    seqs = np.arange(len(course.stamps_ns)) if course.seqs is None else course.seqs
    named = np.flatnonzero(np.isin(seqs, label.steps))
    return int(named[-1]) + 1 if len(named) else 0


def _came_after(label: Label, course: Course) -> bool:
    return course.ended and len(course.stamps_ns) > 0 and label.stamp_ns > int(course.stamps_ns[-1])


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


@dataclass(frozen=True)
class Provenance:
    """Who said a label, when and how, of which frames (places in the episode), and which version it contradicted."""

    who: str
    device: str
    stamp_ns: int
    kind: LabelKind
    episode: int
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    contradicts: int  # the classifier version in force then
    stands: bool  # it was not taken back
    said_unix_s: float = 0.0  # when it was said, where the stamp is that of the frame


class Ledger:
    """Every label that was ever said, in order of arrival; an undo takes a label back without erasing it."""

    def __init__(self, windows: Windows | None = None, task: Task | None = None) -> None:
        """Without a task nobody knows where something was held up."""
        self._task = task
        self.windows = windows or Windows()
        self._labels: dict[str, Label] = {}
        self._episodes: dict[int, list[str]] = {}
        self._gone: set[str] = set()
        self._resolved: dict[int, tuple[tuple[str, ...], int, bool, I8]] = {}

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
        return [v for i, v in self._labels.items() if v.kind in FLAGS and self._speaks(i)]

    def target(self, undo: Label) -> Label | None:
        """The label that an undo takes back; one that names none means its author's latest before it."""
        if undo.undo_of:
            return self._labels.get(undo.undo_of)
        earlier = [
            v
            for v in self._labels.values()
            if v.who == undo.who and v.kind not in _NOT_BY_KEY and v.stamp_ns <= undo.stamp_ns
        ]
        return max(earlier, key=lambda v: v.stamp_ns, default=None)

    def denied(self, episode: int, replay: Replay) -> list[int]:
        """Frames of an episode with which the robot declared successes that a person has denied since."""
        named = [w for w in self.labels(episode) if w.kind is LabelKind.FALSE_POSITIVE and w.steps]
        if not named:
            return []
        course = self._course(episode, replay)
        return sorted({end - 1 for end in (_named_until(word, course) for word in named) if end})

    def frame_labels(self, episode: int, replay: Replay) -> I8:
        """What is said of an episode's frames: (T,) int8 of +1, -1, 0, in the order of `replay.rows(episode)`."""
        said, ended = self.labels(episode), replay.ended(episode) is not None
        asked = (tuple(v.event_id for v in said), replay.length(episode), ended)
        known = self._resolved.get(episode)
        if known is None or known[:3] != asked:
            found = resolve(said, self._course(episode, replay), self.windows)
            found.flags.writeable = False
            known = self._resolved[episode] = (*asked, found)
        return known[3]

    def provenance(self, label: Label, replay: Replay) -> Provenance:
        """Where a label's word comes from and what it is about, also of one that was taken back."""
        course = self._course(label.episode, replay)
        reviewed = label.kind in REVIEWS
        spoken = _answer(label, course) if reviewed else _word(label, course, self.windows)
        seqs = replay.seq[replay.rows(label.episode)]
        return Provenance(
            who=label.who,
            device=label.device,
            stamp_ns=label.stamp_ns,
            kind=label.kind,
            episode=label.episode,
            positive=tuple(seqs[spoken > 0].tolist()),
            negative=tuple(seqs[spoken < 0].tolist()),
            contradicts=label.contradicts,
            stands=label.event_id not in self._gone,
            said_unix_s=label.said_unix_s,
        )

    def _course(self, episode: int, replay: Replay) -> Course:
        rows = replay.rows(episode)
        lift = strata.PHASES.index(strata.Phase.LIFT)
        return Course(
            stamps_ns=np.asarray(replay.stamp_ns[rows], np.int64),
            ended=replay.ended(episode) is not None,
            seqs=np.asarray(replay.seq[rows], np.int64),
            held_up=strata.phases(replay.state[rows], self._task) == lift if self._task else None,
        )

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
