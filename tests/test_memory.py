"""What the journal holds becomes replay, ledger and counts, whatever the robots went through."""

from __future__ import annotations

import dataclasses

import pytest
from training_steps import CONTRACT, RUN, demonstration, driven, label, step

from steadyhand_models import wire
from steadyhand_models.messages import Channel, EndReason, LabelKind, Source, Swap, SwapOutcome
from steadyhand_training.journal import Entry, Kind
from steadyhand_training.labels import Ledger
from steadyhand_training.memory import STREAM_STRIDE, Memory, News
from steadyhand_training.replay import Replay


@pytest.fixture
def memory() -> Memory:
    return Memory(Replay(CONTRACT, 1000), Ledger())


def tell(memory: Memory, messages: object, edge: str = "edge") -> list[News]:
    news = []
    for message in messages if isinstance(messages, list) else [messages]:
        position = memory.position + 1
        news.append(memory.consume(Entry(position, edge, RUN, position, Kind.STEP, 0, 0, "", wire.encode(message))))
    return news


def test_demonstrations_that_succeeded_and_failed_are_counted_apart(memory: Memory) -> None:
    tell(
        memory, [*demonstration(1), *demonstration(2, success=False), *driven(3, Source.POLICY, end=EndReason.SUCCESS)]
    )
    tally = memory.tally
    assert (tally.episodes, tally.demonstrations, tally.failed_demonstrations) == (3, 1, 1)
    assert tally.steps == memory.replay.size


def test_an_ended_episode_is_to_be_settled_and_an_open_one_is_not(memory: Memory) -> None:
    news = tell(memory, driven(1, Source.POLICY, count=3))
    assert [n.settled for n in news] == [(), (), (), (1,)]
    assert [n.row for n in news] == [0, 1, 2, 3]


def test_an_episode_whose_robot_died_is_settled_when_the_next_begins(memory: Memory) -> None:
    tell(memory, driven(1, Source.POLICY, count=3)[:-1])
    (news,) = tell(memory, step(2, 0))
    assert news.settled == (1,)


def test_a_label_speaks_once_and_an_undo_reopens_the_episode_that_it_names(memory: Memory) -> None:
    tell(memory, driven(1, Source.POLICY, count=3))
    said = label(1, 2, LabelKind.FALSE_POSITIVE, "flag")
    first, again = tell(memory, [said, said])
    assert (first.settled, first.label) == ((1,), said)
    assert again == News()
    undo = dataclasses.replace(label(2, 0, LabelKind.UNDO, "undo", undo_of="flag"))
    (news,) = tell(memory, undo)
    assert news.settled == (1,)
    assert (memory.tally.labels, memory.tally.flags) == (2, 1)


def test_episodes_of_a_second_robot_do_not_mix_with_the_firsts(memory: Memory) -> None:
    tell(memory, driven(1, Source.POLICY, count=3))
    tell(memory, [*driven(1, Source.POLICY, count=5), label(1, 2, LabelKind.FAILURE)], edge="other")
    assert [len(memory.replay.rows(e)) for e in memory.replay.episodes] == [4, 6]
    assert memory.ledger.episodes == [1 + STREAM_STRIDE]


def test_a_step_that_does_not_fit_is_skipped_and_counted(memory: Memory) -> None:
    tell(memory, driven(1, Source.POLICY, count=3))
    (news,) = tell(memory, step(1, 9))  # the episode has ended
    assert news == News()
    assert (memory.tally.skipped, memory.tally.steps) == (1, 4)


def test_swaps_are_passed_on_and_those_that_failed_counted(memory: Memory) -> None:
    swaps = [Swap(Channel.POLICY, 2, 1, outcome, "", 1, 1, 0.0, 0, 0.0) for outcome in SwapOutcome]
    assert [n.swap for n in tell(memory, swaps)] == swaps
    assert (memory.tally.swaps, memory.tally.not_swapped) == (3, 2)


def test_a_review_is_about_the_episode_of_the_robot_that_it_names(memory: Memory) -> None:
    tell(memory, driven(1, Source.POLICY, count=3))
    tell(memory, driven(1, Source.POLICY, count=3), edge="other")
    said = dataclasses.replace(label(1, 2, LabelKind.REVIEW_NONE), steps=(2,), about="other")
    (news,) = tell(memory, said, edge="review-ann-1")
    second = STREAM_STRIDE + 1
    assert news.settled == (second,)
    assert memory.ledger.frame_labels(second, memory.replay).tolist() == [0, 0, -1, 0]
    assert not memory.ledger.frame_labels(1, memory.replay).any()
    assert memory.origin(second) == ("other", RUN, 1) and memory.episode("other", RUN, 1) == second


def test_imported_frames_are_held_and_count_as_nothing_that_a_robot_did(memory: Memory) -> None:
    tell(memory, driven(1, Source.NONE, count=3), edge="import-abc")
    tally = memory.tally
    assert (tally.imported, tally.steps, tally.episodes, memory.replay.size) == (4, 0, 0, 4)
