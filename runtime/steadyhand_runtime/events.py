"""Operator events: what each press means now, the label it makes, and its reply; repeats of an event change nothing."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from steadyhand_models.messages import EndReason, EventKind, EventReply, Label, LabelKind, Mode, OperatorEvent
from steadyhand_runtime.clock import NS_PER_S
from steadyhand_runtime.declaration import Declared
from steadyhand_runtime.episode import EndedBy

REMEMBERED = 512
Value = TypeVar("Value")
_FRAME_LABELS = {
    EventKind.SUCCESS: LabelKind.SUCCESS,
    EventKind.FAILURE: LabelKind.FAILURE,
    EventKind.FALSE_NEGATIVE: LabelKind.FALSE_NEGATIVE,
}
_ABOUT_DECLARED = (LabelKind.FALSE_POSITIVE, LabelKind.VERDICT_SUCCESS)
_VERDICTS = {
    EventKind.SUCCESS: LabelKind.VERDICT_SUCCESS,
    EventKind.FAILURE: LabelKind.VERDICT_FAILURE,
    EventKind.FALSE_NEGATIVE: LabelKind.FALSE_NEGATIVE,
}


@dataclass(frozen=True, slots=True)
class EpisodeRef:
    """What a press may be about. `ended_by` is None while the episode runs.

    `declared` are the frames on which the classifier declared its success last, `pending` whether it awaits a veto.
    """

    number: int
    started_ns: int
    classifier_version: int
    collected: bool
    ended_by: EndedBy | None = None
    declared: Declared | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What the operator's press meets: the episode that runs, the one before it, and whether hybrid is on offer."""

    mode: Mode
    current: EpisodeRef | None
    last: EpisodeRef | None
    offers_classifier: bool = False


@dataclass(slots=True)
class Wishes:
    """What the operator asked for in one tick. `success` ends an episode as one; a demonstration is held first.

    `veto` denies the pending success, `accept` lets the classifier end episodes.
    """

    takeover: bool = False
    release: bool = False
    scene_ready: bool = False
    success: bool = False
    end: EndReason | None = None
    veto: bool = False
    accept: bool = False


@dataclass(frozen=True, slots=True)
class _Meaning:
    """A label and the episode it is about, or why the press is refused; all empty when it is only a wish."""

    label: LabelKind | None = None
    about: EpisodeRef | None = None
    refusal: str = ""


class EventBook:
    """Hears events one by one. Keeps the last few hundred replies, because senders repeat what was not acknowledged."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._replies: OrderedDict[str, EventReply] = OrderedDict()
        self._labelled: OrderedDict[str, EpisodeRef] = OrderedDict()

    def hear(self, event: OperatorEvent, situation: Situation, wishes: Wishes) -> tuple[EventReply, Label | None]:
        """Reply to one event, add to `wishes` what it asks for, and return its label, if it makes one."""
        known = self._replies.get(event.event_id)
        if known is not None:
            return known, None
        meaning = self._undo(event) if event.kind is EventKind.UNDO else _meaning(event, situation, wishes)
        reply = EventReply(event.event_id, not meaning.refusal, meaning.refusal)
        _remember(self._replies, event.event_id, reply)
        if meaning.label is None or meaning.about is None:
            return reply, None
        if event.kind is not EventKind.UNDO:
            _remember(self._labelled, event.event_id, meaning.about)
        return reply, self._label(event, meaning.label, meaning.about)

    def _undo(self, event: OperatorEvent) -> _Meaning:
        undone = event.undo_of or next(reversed(self._labelled), "")
        about = self._labelled.get(undone)
        if about is None:
            return _Meaning(refusal="nothing to undo")
        return _Meaning(LabelKind.UNDO, about)

    def _label(self, event: OperatorEvent, kind: LabelKind, about: EpisodeRef) -> Label:
        undone = ""
        if kind is LabelKind.UNDO:
            undone = event.undo_of or next(reversed(self._labelled), "")
            self._labelled.pop(undone, None)
        return Label(
            event_id=event.event_id,
            kind=kind,
            stamp_ns=event.stamp_ns,
            who=event.who,
            device=event.device,
            reaction_s=event.reaction_s,
            run=self._run,
            episode=about.number,
            contradicts=about.classifier_version,
            undo_of=undone,
            steps=about.declared.steps if kind in _ABOUT_DECLARED and about.declared else (),
        )


def _meaning(event: OperatorEvent, now: Situation, wishes: Wishes) -> _Meaning:
    kind = event.kind
    if _vetoes(event, now.current):
        wishes.veto = True
        return _Meaning(LabelKind.FALSE_POSITIVE, now.current)
    if kind in _FRAME_LABELS:
        return _judgement(event, now, wishes)
    if kind is EventKind.ACCEPT_CLASSIFIER:
        wishes.accept = now.offers_classifier
        return _Meaning(refusal="" if now.offers_classifier else "no classifier waits to be accepted")
    if kind is EventKind.FALSE_POSITIVE:
        return _false_positive(event, now)
    if kind is EventKind.ABORT:
        if now.current is None:
            return _Meaning(refusal="no episode to abort")
        wishes.end = wishes.end or EndReason.OPERATOR
        return _Meaning()
    if kind is EventKind.SCENE_READY:
        if now.mode not in (Mode.RESET, Mode.HOLD, Mode.FAULT):
            return _Meaning(refusal=f"nothing waits for the scene in mode {now.mode.value}")
        wishes.scene_ready = True
        return _Meaning()
    return _hand_over(kind, now, wishes)


def _vetoes(event: OperatorEvent, current: EpisodeRef | None) -> bool:
    """Whether a press denies the pending success. Failure does too: it must not end what has not failed yet."""
    if current is None or current.declared is None or not current.pending:
        return False
    denies = event.kind in (EventKind.FALSE_POSITIVE, EventKind.FAILURE)
    return denies and event.stamp_ns >= current.declared.stamp_ns


def _judgement(event: OperatorEvent, now: Situation, wishes: Wishes) -> _Meaning:
    """Success or failure: about the episode that runs, which it ends, or else a verdict on the one before."""
    if now.current is not None and _was_seen_in(event, now.current):
        if event.kind is EventKind.FAILURE:
            wishes.end = EndReason.FAILURE
        else:
            wishes.success = True
        return _Meaning(_FRAME_LABELS[event.kind], now.current)
    if now.last is None:
        return _Meaning(refusal="no episode to judge yet")
    return _Meaning(_VERDICTS[event.kind], now.last)


def _false_positive(event: OperatorEvent, now: Situation) -> _Meaning:
    """About the success that the classifier declared last; without one, about what it shows now."""
    current = now.current
    if current is not None and current.declared is not None and event.stamp_ns >= current.declared.stamp_ns:
        return _Meaning(LabelKind.FALSE_POSITIVE, current)
    if now.last is not None and now.last.ended_by is EndedBy.CLASSIFIER:
        return _Meaning(LabelKind.FALSE_POSITIVE, now.last)
    about = now.current if now.current is not None and _was_seen_in(event, now.current) else now.last
    if about is None or about.classifier_version == 0:
        return _Meaning(refusal="no classifier has declared a success")
    return _Meaning(LabelKind.FALSE_POSITIVE, about)


def _hand_over(kind: EventKind, now: Situation, wishes: Wishes) -> _Meaning:
    if kind is EventKind.TAKEOVER_BEGIN:
        if now.mode not in (Mode.HOLD, Mode.POLICY, Mode.TAKEOVER):
            return _Meaning(refusal=f"no takeover in mode {now.mode.value}")
        wishes.takeover = True
        return _Meaning()
    if now.mode is not Mode.TAKEOVER or now.current is None:
        return _Meaning(refusal="no takeover to end")
    if now.current.collected:
        return _Meaning(refusal="no policy to hand over to: press success, failure or abort")
    wishes.release = True
    return _Meaning()


def _was_seen_in(event: OperatorEvent, episode: EpisodeRef) -> bool:
    """Whether what the person reacted to lies in this episode, and not in the one before it."""
    return event.stamp_ns - round(event.reaction_s * NS_PER_S) >= episode.started_ns


def _remember(book: OrderedDict[str, Value], key: str, value: Value) -> None:
    book[key] = value
    if len(book) > REMEMBERED:
        book.popitem(last=False)
