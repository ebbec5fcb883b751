"""The recorder: nothing handed over is lost, nobody waits for the disk, episode numbers rise across restarts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from control_world import Bench, FakeModel

from steadyhand_models import wire
from steadyhand_models.messages import Channel, EventKind, Label, Mode, Step, Swap
from steadyhand_runtime.recorder import EpisodeCounter, Recorder, ThreadedRecorder
from steadyhand_runtime.spool import Spool, SpoolError
from steadyhand_runtime.telemetry import Log


def episode(first: int = 1) -> list[Step | Label | Swap]:
    bench = Bench(first_episode=first)
    bench.stage(FakeModel(Channel.POLICY, 1, 0.1))
    bench.until(Mode.POLICY)
    bench.tick()
    bench.tick(EventKind.SUCCESS)
    return bench.records


def test_records_come_out_of_the_spool_as_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite")
    recorder = ThreadedRecorder(Recorder(spool, EpisodeCounter(tmp_path / "episode")), Log())
    records = episode()
    recorder.put(records)
    assert recorder.close(10.0)
    kept = [wire.decode(r.payload, Step, Label, Swap) for r in spool.read_after(0, 100)]
    assert [wire.encode(r) for r in kept] == [wire.encode(r) for r in records]
    assert recorder.committed == len(records)
    spool.close()


def test_the_episode_s_number_is_kept_before_its_first_step_is(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watching(Spool):
        def append(self, payloads, steps=0):  # type: ignore[no-untyped-def]
            seen.append(EpisodeCounter(tmp_path / "episode").last)
            return super().append(payloads, steps)

    spool = Watching(tmp_path / "spool.sqlite")
    Recorder(spool, EpisodeCounter(tmp_path / "episode")).write(episode(7))
    assert seen == [7]
    assert EpisodeCounter(tmp_path / "episode").last == 7
    spool.close()


def test_a_damaged_counter_starts_anew_instead_of_stopping_the_robot(tmp_path: Path) -> None:
    (tmp_path / "episode").write_text("seven")
    counter = EpisodeCounter(tmp_path / "episode")
    assert counter.last == 0
    counter.note(2)
    counter.note(1)
    assert EpisodeCounter(tmp_path / "episode").last == 2


def test_a_disk_that_refuses_for_a_while_loses_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    class Full(Spool):
        full = True
        refused = threading.Event()

        def append(self, payloads, steps=0):  # type: ignore[no-untyped-def]
            if self.full:
                self.refused.set()
                raise SpoolError("the disk is full")
            return super().append(payloads, steps)

    spool = Full(tmp_path / "spool.sqlite")
    recorder = ThreadedRecorder(Recorder(spool, EpisodeCounter(tmp_path / "episode")), Log())
    records = episode()
    for record in records:
        recorder.put([record])
    assert spool.refused.wait(10) and recorder.committed == 0
    deadline_s = time.monotonic() + 10.0
    while recorder.trouble != "the disk is full":
        assert time.monotonic() < deadline_s
    spool.full = False
    assert recorder.close(10.0) and not recorder.trouble
    assert spool.last_number == len(records)
    spool.close()


def test_a_job_runs_after_what_was_put_before_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite")
    recorder = ThreadedRecorder(Recorder(spool, EpisodeCounter(tmp_path / "episode")), Log())
    records, found = episode(), []
    recorder.put(records)
    recorder.later(lambda: found.append(spool.last_number))
    assert recorder.close(10.0)
    assert found == [len(records)]
    spool.close()
