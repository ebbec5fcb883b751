"""Which frames a human's word speaks of, and what an undo leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_models import task as tasks
from steadyhand_models.messages import EndReason, Label, LabelKind, Source, Step
from steadyhand_training.labels import Course, Ledger, Windows, resolve
from steadyhand_training.replay import Replay

TICK_NS = 100_000_000
START_NS = 7_000_000_000
FRAMES = 30


def at(frame: float) -> int:
    """Stamp of a frame; fractions fall between two."""
    return START_NS + round(frame * TICK_NS)


def word(kind: LabelKind, stamp_ns: int, *, reaction_s: float = 0.3, who: str = "ann", **more: object) -> Label:
    fields = {
        "event_id": f"{kind.value}-{who}-{stamp_ns}",
        "device": "keys",
        "run": "r",
        "episode": 4,
        "contradicts": 1,
    }
    return Label(kind=kind, stamp_ns=stamp_ns, who=who, reaction_s=reaction_s, **fields | more)  # type: ignore[arg-type]


def course(*, ended: bool = True, frames: int = FRAMES) -> Course:
    return Course(np.array([at(i) for i in range(frames)]), ended)


def said(*labels: Label, of: Course | None = None) -> list[int]:
    return resolve(labels, of or course(), Windows()).tolist()


def marked(plus: Iterable[int] | None = None, minus: Iterable[int] | None = None, frames: int = FRAMES) -> list[int]:
    out = [0] * frames
    for i in plus or ():
        out[i] = 1
    for i in minus or ():
        out[i] = -1
    return out


def test_silence_says_nothing() -> None:
    assert said() == [0] * FRAMES


def test_a_success_leaves_the_spread_of_reactions_about_its_moment_unknown() -> None:
    # 20 - 5.5 = 14.5 is when it was seen, give or take 0.25 s.
    key = word(LabelKind.SUCCESS, at(20), reaction_s=0.55)
    assert said(key) == marked(range(16, 30), range(12))


def test_the_spread_never_reaches_beyond_the_key() -> None:
    key = word(LabelKind.SUCCESS, at(20), reaction_s=0.1)
    assert said(key) == marked(range(20, 30), range(18))


def test_a_slower_operator_means_earlier_frames() -> None:
    quick = said(word(LabelKind.SUCCESS, at(20), reaction_s=0.2))
    slow = said(word(LabelKind.SUCCESS, at(20), reaction_s=0.6))
    assert (quick.index(1), slow.index(1)) == (19, 15)


def lifted(*stretches: range) -> Course:
    """An episode in which something was held up in these frames."""
    return dataclasses.replace(course(), held_up=np.isin(np.arange(FRAMES), [i for part in stretches for i in part]))


@pytest.mark.parametrize("kind", [LabelKind.FAILURE, LabelKind.VERDICT_FAILURE])
def test_a_failure_says_nothing_of_what_was_held_up_for_a_moment(kind: LabelKind) -> None:
    moment, long = range(3, 9), range(12, 28)
    assert said(word(kind, at(33)), of=lifted(moment, long)) == marked(minus=set(range(30)) - set(moment))


def test_a_success_says_nothing_of_an_earlier_moment_and_all_of_the_lift_that_it_is_about() -> None:
    key = word(LabelKind.SUCCESS, at(20), reaction_s=0.55)
    assert said(key, of=lifted(range(2, 6), range(9, 30))) == marked(range(16, 30), {*range(2), *range(6, 12)})
    verdict = word(LabelKind.VERDICT_SUCCESS, at(33))
    whole, parted = said(verdict), said(verdict, of=lifted(range(2, 6)))
    assert [i for i in range(FRAMES) if whole[i] != parted[i]] == list(range(2, 6))


def test_what_a_person_names_is_meant_however_short_it_was() -> None:
    flag = word(LabelKind.FALSE_POSITIVE, at(33), steps=(7, 8))
    assert said(flag, of=lifted(range(4, 9))) == said(flag)


@pytest.mark.parametrize("kind", [LabelKind.FAILURE, LabelKind.VERDICT_FAILURE])
def test_a_failure_speaks_of_every_frame(kind: LabelKind) -> None:
    assert said(word(kind, at(33))) == marked(minus=range(30))


def test_a_verdict_of_success_confirms_the_end_and_none_long_before_it() -> None:
    # The last frame is 29; the gap of 1 s keeps 19..28 open, and with them the frames that may have fired too early.
    assert said(word(LabelKind.VERDICT_SUCCESS, at(35))) == marked([29], range(19))


def test_a_false_positive_after_the_end_speaks_of_the_last_ten_frames_however_quick_the_finger() -> None:
    assert said(word(LabelKind.FALSE_POSITIVE, at(29.5), reaction_s=0.9)) == marked(minus=range(20, 30))
    assert said(word(LabelKind.FALSE_POSITIVE, at(60), reaction_s=0.2)) == marked(minus=range(20, 30))


def test_a_false_positive_while_the_episode_runs_speaks_of_the_second_before_it() -> None:
    key = word(LabelKind.FALSE_POSITIVE, at(20), reaction_s=0.3)
    assert said(key, of=course(ended=False)) == marked(minus=range(8, 18))
    assert said(key) == marked(minus=range(8, 18)), "the episode's end does not move what was said before it"


def test_a_veto_speaks_of_the_ten_frames_up_to_those_that_fired_and_not_of_the_ones_after() -> None:
    veto = word(LabelKind.FALSE_POSITIVE, at(19), steps=(14, 15))
    assert said(veto, of=course(ended=False)) == marked(minus=range(6, 16))
    late = word(LabelKind.FALSE_POSITIVE, at(33), steps=(22, 23))
    assert said(late) == marked(minus=range(14, 24))


def test_the_ledger_knows_with_which_frames_denied_successes_were_declared() -> None:
    contract = tasks.load("lift").contract()
    replay, ledger = Replay(contract, 20), Ledger()
    for i in range(8):
        end = EndReason.TIMEOUT if i == 7 else None
        replay.append(make_step(contract.hash, contract.frames_shape, episode=4, seq=i, source=Source.POLICY, end=end))
    ledger.add(word(LabelKind.FALSE_POSITIVE, at(6), steps=(2, 3), event_id="veto"))
    ledger.add(word(LabelKind.FALSE_POSITIVE, at(7), event_id="pressed without a name"))
    assert ledger.denied(4, replay) == [3]
    ledger.add(word(LabelKind.UNDO, at(8), undo_of="veto"))
    assert ledger.denied(4, replay) == []


def test_a_verdict_of_success_confirms_the_last_frame_that_fired_where_it_names_them() -> None:
    assert said(word(LabelKind.VERDICT_SUCCESS, at(33), steps=(20, 21))) == marked([21], range(11))


def test_a_false_positive_leaves_short_episodes_whole() -> None:
    assert said(word(LabelKind.FALSE_POSITIVE, at(9)), of=course(frames=4)) == [-1] * 4


def test_a_false_negative_speaks_of_the_frames_up_to_the_key() -> None:
    # Seen at 17, and certain 0.1 s later.
    assert said(word(LabelKind.FALSE_NEGATIVE, at(20), reaction_s=0.3)) == marked(range(18, 21))


def test_a_persons_later_word_wins_where_both_speak() -> None:
    success, veto = word(LabelKind.SUCCESS, at(15)), word(LabelKind.VERDICT_FAILURE, at(40))
    assert said(success, veto) == marked(minus=range(30))
    assert said(veto, success) == marked(minus=range(30)), "it is the stamp that counts, not the order of arrival"


def test_a_later_word_leaves_alone_what_it_does_not_speak_of() -> None:
    both = said(word(LabelKind.FAILURE, at(31)), word(LabelKind.VERDICT_SUCCESS, at(40)))
    assert both == marked([29], range(29))


def test_frames_on_which_two_people_differ_are_unknown() -> None:
    ann, bob = word(LabelKind.FAILURE, at(31)), word(LabelKind.VERDICT_SUCCESS, at(40), who="bob")
    assert said(ann, bob) == marked(minus=range(29))


def test_two_people_who_agree_are_heard_once() -> None:
    ann, bob = word(LabelKind.FAILURE, at(31)), word(LabelKind.FAILURE, at(40), who="bob")
    assert said(ann, bob) == marked(minus=range(30))


KINDS = st.sampled_from([k for k in LabelKind if k is not LabelKind.UNDO])
WORDS = st.lists(st.tuples(KINDS, st.floats(-5, 60), st.floats(0, 2), st.sampled_from("ab")), max_size=6)


@given(WORDS, st.booleans(), st.integers(0, 20))
def test_any_words_give_every_frame_one_of_three_answers(
    words: list[tuple[LabelKind, float, float, str]], ended: bool, frames: int
) -> None:
    labels = [word(kind, at(t), reaction_s=r, who=who) for kind, t, r, who in words]
    answer = said(*labels, of=course(ended=ended, frames=frames))
    assert len(answer) == frames
    assert set(answer) <= {-1, 0, 1}


def undo(of: Label, stamp_ns: int, *, named: bool = True) -> Label:
    return word(LabelKind.UNDO, stamp_ns, undo_of=of.event_id if named else "", who=of.who)


def standing(ledger: Ledger) -> list[str]:
    return [v.event_id for v in ledger.labels(4)]


def test_an_undo_takes_back_the_label_that_it_names() -> None:
    ledger = Ledger()
    first, second = word(LabelKind.FAILURE, at(31)), word(LabelKind.VERDICT_SUCCESS, at(40))
    for label in (first, second, undo(first, at(50))):
        ledger.add(label)
    assert standing(ledger) == [second.event_id]


def test_an_undo_that_names_nothing_means_its_authors_latest_word() -> None:
    ledger = Ledger()
    ann, bob = word(LabelKind.FAILURE, at(31)), word(LabelKind.VERDICT_SUCCESS, at(40), who="bob")
    for label in (ann, bob, undo(ann, at(50), named=False)):
        ledger.add(label)
    assert standing(ledger) == [bob.event_id]


def test_undoing_an_undo_brings_the_label_back() -> None:
    ledger = Ledger()
    label = word(LabelKind.FALSE_POSITIVE, at(31))
    mistake = undo(label, at(40))
    for entry in (label, mistake, undo(mistake, at(50))):
        ledger.add(entry)
    assert standing(ledger) == [label.event_id]
    assert [v.event_id for v in ledger.flags()] == [label.event_id]


def test_an_undone_flag_is_no_flag_and_its_episode_is_silent() -> None:
    ledger = Ledger()
    label = word(LabelKind.FALSE_NEGATIVE, at(31))
    ledger.add(label)
    assert ledger.episodes == [4]
    ledger.add(undo(label, at(40)))
    assert ledger.flags() == []
    assert ledger.episodes == []


def test_a_label_that_is_delivered_twice_counts_once() -> None:
    ledger = Ledger()
    label = word(LabelKind.FAILURE, at(31))
    assert ledger.add(label)
    assert not ledger.add(label)
    assert len(ledger) == 1


def test_frame_labels_follow_the_replays_rows_sources_and_end() -> None:
    contract = tasks.load("lift").contract()
    replay, ledger = Replay(contract, 100), Ledger()
    key = word(LabelKind.SUCCESS, at(8), reaction_s=0.2)
    ledger.add(key)
    for i in range(12):
        other = make_step(contract.hash, contract.frames_shape, episode=3, seq=i, source=Source.POLICY, end=None)
        replay.append(other)
        end = EndReason.SUCCESS if i == 11 else None
        replay.append(
            make_step(contract.hash, contract.frames_shape, episode=4, seq=i, source=Source.DEMONSTRATION, end=end)
        )
    assert ledger.frame_labels(4, replay).tolist() == marked(range(7, 12), range(4), frames=12)
    assert ledger.frame_labels(3, replay).tolist() == [0] * 12


def recorded_lift() -> tuple[Replay, Ledger]:
    """Episode 4 of FRAMES frames, ended by a classifier, and an empty ledger."""
    contract = tasks.load("lift").contract()
    replay = Replay(contract, 100)
    for i in range(FRAMES):
        end = EndReason.SUCCESS if i == FRAMES - 1 else None
        replay.append(make_step(contract.hash, contract.frames_shape, episode=4, seq=i, source=Source.POLICY, end=end))
    return replay, Ledger()


def make_step(
    contract: str, shape: tuple[int, ...], *, episode: int, seq: int, source: Source, end: EndReason | None
) -> Step:
    action = None if end else np.zeros(4, np.float32)
    return Step(
        run="r",
        episode=episode,
        seq=seq,
        tick=seq,
        stamp_ns=at(seq),
        contract=contract,
        frames=np.zeros(shape, np.uint8),
        state=np.zeros(18, np.float32),
        proposed=action,
        executed=action,
        source=Source.NONE if end else source,
        reasons=(),
        classifier=None,
        policy_version=0,
        classifier_version=0,
        frame_age_s=0.0,
        state_age_s=0.0,
        end=end,
    )


# -- provenance ----------------------------------------------------------------------------------------------------


def test_a_label_tells_who_said_it_when_how_of_which_frames_and_against_which_version() -> None:
    replay, ledger = recorded_lift()
    said = word(LabelKind.FALSE_POSITIVE, at(60), who="bob")
    ledger.add(said)
    origin = ledger.provenance(said, replay)
    assert (origin.who, origin.device, origin.stamp_ns, origin.contradicts) == ("bob", "keys", at(60), 1)
    assert (origin.positive, origin.negative) == ((), tuple(range(20, 30)))
    assert origin.stands
    ledger.add(word(LabelKind.UNDO, at(61), who="bob"))
    assert not ledger.provenance(said, replay).stands
    assert ledger.provenance(said, replay).negative == origin.negative, "what was taken back stays readable"


def test_what_was_resolved_once_follows_later_words_and_their_undo() -> None:
    replay, ledger = recorded_lift()
    assert not ledger.frame_labels(4, replay).any()
    ledger.add(word(LabelKind.FALSE_POSITIVE, at(60)))
    assert ledger.frame_labels(4, replay).tolist() == marked(minus=range(20, 30))
    ledger.add(word(LabelKind.UNDO, at(61)))
    assert not ledger.frame_labels(4, replay).any()


def review(success: bool, *steps: int, said_unix_s: float = 1.0, who: str = "bea", **more: object) -> Label:
    """An answer about frames that a person looked at; its stamp is the frame's, not that of the answer."""
    kind = LabelKind.REVIEW_SUCCESS if success else LabelKind.REVIEW_NONE
    name = f"{kind.value}-{steps}-{said_unix_s}-{who}"
    return word(kind, at(steps[0]), who=who, steps=steps, said_unix_s=said_unix_s, event_id=name, **more)


def test_a_review_speaks_of_the_frames_that_it_names_and_of_no_other() -> None:
    assert said(review(True, 3, 9)) == marked([3, 9])
    assert said(review(False, 29)) == marked(minus=[29])


def test_frames_are_named_by_their_place_in_the_episode_even_where_steps_are_missing() -> None:
    gap = dataclasses.replace(course(frames=3), seqs=np.array([0, 5, 6]))
    assert said(review(True, 5), of=gap) == [0, 1, 0]


def test_who_looked_at_the_frame_is_believed_before_whoever_pressed_a_key() -> None:
    flag = word(LabelKind.FALSE_POSITIVE, at(40))
    later = word(LabelKind.FAILURE, at(41), who="bea")
    assert said(flag, review(True, 25), later)[25] == 1
    assert said(flag, review(True, 25), later)[24] == -1


def test_reviewers_who_differ_leave_a_frame_unknown_whatever_the_keys_say() -> None:
    flag = word(LabelKind.FALSE_POSITIVE, at(40))
    assert said(flag, review(True, 25), review(False, 25, who="cem"))[25] == 0


def test_a_persons_later_answer_replaces_their_earlier_one_by_when_it_was_said() -> None:
    first, second = review(True, 4, 5, said_unix_s=1.0), review(False, 5, said_unix_s=2.0)
    assert said(second, first)[4:6] == [1, -1]


def test_an_undo_key_means_the_last_key_and_never_a_review() -> None:
    ledger = Ledger()
    answer = review(True, 25, who="ann")
    for label in (word(LabelKind.FAILURE, at(3)), answer, word(LabelKind.UNDO, at(40))):
        ledger.add(label)
    assert ledger.labels(4) == [answer]
    ledger.add(word(LabelKind.UNDO, at(0), undo_of=answer.event_id, event_id="named"))
    assert ledger.labels(4) == []
