"""The journal keeps each record once, in order, and survives what happens to its process."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_steps import CONTRACT, RUN, demonstration, label, records, step

from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, LabelKind, Record, Swap, SwapOutcome
from steadyhand_training.journal import Journal, Kind

SWAP = Swap(Channel.POLICY, 3, 2, SwapOutcome.SWAPPED, "", 41, 4_100_000_000, 0.02, 0, 0.001)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def test_a_committed_batch_is_acknowledged_and_comes_back_in_order(journal: Journal) -> None:
    said = [*demonstration(1), SWAP]
    commit = journal.commit("edge", RUN, records(said), CONTRACT)
    assert (commit.acked, commit.added, commit.duplicates, commit.gap) == (len(said), len(said), 0, False)
    entries = list(journal.replay())
    assert [e.number for e in entries] == list(range(1, len(said) + 1))
    assert [type(e.message) for e in entries] == [type(m) for m in said]
    assert np.array_equal(entries[0].message.frames, said[0].frames)
    assert journal.counts().steps == len(said) - 2


def test_resent_records_are_dropped_and_counted(journal: Journal) -> None:
    sent = records(demonstration(1))
    journal.commit("edge", RUN, sent[:5], CONTRACT)
    commit = journal.commit("edge", RUN, sent, CONTRACT)
    assert (commit.acked, commit.added, commit.duplicates) == (len(sent), len(sent) - 5, 5)
    assert journal.counts().duplicates == 5
    assert len(list(journal.replay())) == len(sent)


def test_a_resent_number_with_other_content_does_not_replace_what_was_kept(journal: Journal) -> None:
    first, second = records([step(1, 0), step(1, 1)])
    journal.commit("edge", RUN, (first, second), CONTRACT)
    journal.commit("edge", RUN, (Record(1, second.payload),), CONTRACT)
    assert [e.payload for e in journal.replay()] == [first.payload, second.payload]


def test_a_batch_behind_a_gap_is_not_kept_so_that_nothing_is_lost(journal: Journal) -> None:
    sent = records([step(1, t) for t in range(6)])
    journal.commit("edge", RUN, sent[:2], CONTRACT)
    commit = journal.commit("edge", RUN, sent[3:], CONTRACT)
    assert (commit.acked, commit.added, commit.gap) == (2, 0, True)
    commit = journal.commit("edge", RUN, (sent[2], sent[4]), CONTRACT)
    assert (commit.acked, commit.added, commit.gap) == (3, 1, True)


def test_streams_of_edges_and_runs_are_numbered_apart(journal: Journal) -> None:
    journal.commit("left", RUN, records([step(1, 0)]), CONTRACT)
    journal.commit("right", RUN, records([step(1, 0), step(1, 1)]), CONTRACT)
    assert (journal.acked("left", RUN), journal.acked("right", RUN), journal.acked("right", "other")) == (1, 2, 0)


def test_steps_and_labels_are_found_by_run_and_episode(journal: Journal) -> None:
    journal.commit("edge", RUN, records([*demonstration(1), *demonstration(2), SWAP]), CONTRACT)
    assert [e.seq for e in journal.episode(RUN, 2, 3, 5)] == [3, 4, 5]
    assert all(e.episode == 2 for e in journal.episode(RUN, 2))
    assert journal.episode("other", 2) == []
    assert [e.message.kind for e in journal.labels(RUN, 1)] == [LabelKind.SUCCESS]
    assert len(journal.labels(RUN)) == 2
    assert [e.message.version for e in journal.swaps()] == [3]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (dataclasses.replace(step(1, 0), contract="0" * 16), "contract"),
        (dataclasses.replace(step(1, 0), run="elsewhere"), "run"),
        (dataclasses.replace(step(1, 0), frames=np.zeros((1, 64, 64, 3), np.uint8)), "frames"),
        (dataclasses.replace(step(1, 0), state=np.zeros(3, np.float32)), "state has 3 entries"),
        (dataclasses.replace(step(1, 0), executed=np.full(4, np.nan, np.float32)), "executed is not finite"),
        (dataclasses.replace(label(1, 0, LabelKind.SUCCESS), run="elsewhere"), "run"),
    ],
)
def test_a_record_that_cannot_be_learned_from_is_kept_with_its_reason(
    journal: Journal, message: object, reason: str
) -> None:
    commit = journal.commit("edge", RUN, records([message]), CONTRACT)
    (entry,) = journal.replay()
    assert (commit.acked, commit.unreadable, entry.kind) == (1, 1, Kind.UNREADABLE)
    assert reason in entry.note
    assert entry.payload == records([message])[0].payload


def test_a_damaged_payload_does_not_stop_the_stream(journal: Journal) -> None:
    good = records([step(1, 0), step(1, 1)])
    commit = journal.commit("edge", RUN, (good[0], Record(2, b"\x93junk"), Record(3, good[1].payload)), CONTRACT)
    assert (commit.acked, commit.unreadable) == (3, 1)
    assert [e.kind for e in journal.replay()] == [Kind.STEP, Kind.UNREADABLE, Kind.STEP]


def test_a_second_connection_sees_what_was_committed_and_nothing_else(journal: Journal) -> None:
    reader = Journal(journal.path)
    assert reader.after(0) == []
    journal.commit("edge", RUN, records([step(1, 0), step(1, 1)]), CONTRACT)
    first, second = reader.after(0)
    assert reader.after(first.position) == [second]


def test_killed_between_batches_it_holds_exactly_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    code = (
        "import sys\nfrom pathlib import Path\nfrom steadyhand_training.journal import Journal\n"
        "from training_steps import CONTRACT, RUN, records, step\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(10_000):\n"
        "    commit = journal.commit('edge', RUN, records([step(1, n)], first=n + 1), CONTRACT)\n"
        "    print(commit.acked, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        acked = [int(child.stdout.readline()) for _ in range(20)][-1]
        child.send_signal(signal.SIGKILL)
        child.wait()
        rest = child.stdout.read().split()
        acked = int(rest[-1]) if rest else acked
    journal = Journal(path)
    numbers = [e.number for e in journal.replay()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == journal.acked("edge", RUN) >= acked


def test_a_file_that_is_no_journal_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="choose another run folder"):
        Journal(path)
