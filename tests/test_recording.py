"""Recordings of bus traffic: the file, its strict reader, the ring, and a fault that replays to the same readings."""

from __future__ import annotations

import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_runtime.bus import recording as rec
from steadyhand_runtime.bus.driver import Reading
from steadyhand_runtime.bus.recording import (
    Event,
    FlightRecorder,
    Header,
    Kind,
    Recording,
    RecordingError,
    RecordingFile,
    decode_recording,
    read_recording,
)
from steadyhand_runtime.bus.replay import RecordedDriver, rerun
from steadyhand_runtime.bus.traffic import conversation
from steadyhand_runtime.bus.transport import BusError, InProcessTransport
from steadyhand_runtime.clock import NS_PER_S, ManualClock
from steadyhand_runtime.sim.servos import StillPlant, VirtualChain

HEADER = Header("/dev/ttyACM0", 1_000_000, "so101_follower", 1.7e9, NS_PER_S, True)
GOAL = np.array([0.1, -0.2, 0.3, -0.4, 0.5, 0.6])


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)

    def as_recording(self) -> Recording:
        data = rec.encode_header(HEADER) + rec.encode_events(self.events, HEADER.start_ns)
        return decode_recording(data)


class Port(InProcessTransport):
    """Virtual servos whose cable can be pulled."""

    unplugged = False

    def read(self, n: int, deadline_ns: int) -> bytes:
        if self.unplugged:
            raise BusError("/dev/ttyACM0: the port was lost")
        return super().read(n, deadline_ns)


class Rig:
    """Virtual servos, a driver on them and a sink for what passes between."""

    def __init__(self, sink: rec.Sink) -> None:
        self.clock = ManualClock(HEADER.start_ns)
        self.plant = StillPlant()
        self.chain = VirtualChain(self.plant)
        self.port = Port(self.chain, self.clock)
        self.driver = RecordedDriver(self.port, load_arm(), Calibration.default(), self.clock, sink)

    def cycle(self, goal_rad: np.ndarray | None = None) -> Reading:
        self.clock.advance_s(0.01)
        self.plant.advance(0.01)
        return self.driver.cycle(goal_rad)


def replayed(recording: Recording) -> tuple[Reading, ...]:
    again = rerun(recording, load_arm(), Calibration.default())
    assert again.difference is None and again.error == "", (again.difference, again.error)
    return again.readings


def assert_same(first: list[Reading], second: tuple[Reading, ...]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.stamp_ns == b.stamp_ns
        for name in ("position_rad", "velocity_rad_s", "load", "valid", "age_s", "alarms", "voltage_v"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_late_reply_replays_to_the_same_readings() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.driver.connect()
    readings = [rig.cycle(GOAL) for _ in range(5)]
    rig.chain.servos[2].late_ns = 70_000_000
    readings.append(rig.cycle(GOAL))
    rig.chain.servos[2].late_ns = 0
    readings += [rig.cycle(GOAL * n / 40) for n in range(40)]
    assert not readings[5].valid.all()
    assert_same(readings, replayed(kept.as_recording()))


def test_a_silent_servo_replays_to_the_same_readings() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.driver.connect()
    readings = [rig.cycle() for _ in range(3)]
    rig.chain.servos[4].silent = True
    readings += [rig.cycle() for _ in range(30)]
    rig.chain.servos[4].silent = False
    readings += [rig.cycle() for _ in range(30)]
    assert not readings[10].valid[4]
    assert_same(readings, replayed(kept.as_recording()))


def test_corrupt_replies_and_alarms_replay_to_the_same_readings() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.driver.connect()
    rig.chain.servos[0].corrupt_replies = 2
    rig.chain.servos[5].trip_overload()
    readings = [rig.cycle(GOAL) for _ in range(25)]
    assert readings[-1].alarms[5]
    assert_same(readings, replayed(kept.as_recording()))


def test_the_first_request_that_differs_is_named() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.driver.connect()
    for _ in range(3):
        rig.cycle()
    writes = [n for n, e in enumerate(kept.events) if e.kind is Kind.WRITE]
    at = writes[-1]
    kept.events[at] = kept.events[at]._replace(data=kept.events[0].data + b"\x00")
    again = rerun(kept.as_recording(), load_arm(), Calibration.default())
    assert again.difference is not None and again.difference.at == at
    assert "the driver now does write ff ff fe" in str(again.difference)


def test_a_servo_missing_at_the_start_replays_to_the_same_error() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.chain.servos[1].silent = True
    with pytest.raises(BusError) as error:
        rig.driver.connect()
    assert rerun(kept.as_recording(), load_arm(), Calibration.default()).error == str(error.value)


def test_a_recording_that_ends_within_a_cycle_replays_as_far_as_it_goes() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.driver.connect()
    readings = [rig.cycle() for _ in range(4)]
    del kept.events[-1]
    assert_same(readings[:3], replayed(kept.as_recording()))


def test_a_lost_port_is_recorded_and_replays_to_the_same_error() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.driver.connect()
    rig.port.unplugged = True
    with pytest.raises(BusError):
        rig.cycle()
    recording = kept.as_recording()
    assert rerun(recording, load_arm(), Calibration.default()).error == "/dev/ttyACM0: the port was lost"
    assert "/dev/ttyACM0: the port was lost" in list(conversation(recording))[-1].notes


def test_the_conversation_says_who_did_not_answer_who_complains_and_where_it_paused() -> None:
    kept = Kept()
    rig = Rig(kept)
    rig.driver.connect()
    rig.chain.servos[2].silent = True
    rig.chain.servos[5].trip_overload()
    rig.clock.advance_s(1.0)
    rig.cycle(GOAL)
    last = next(e for e in conversation(kept.as_recording()) if any("pause of 1.0" in n for n in e.notes))
    assert last.missing == (3,)
    assert last.alarms == ("id 6 overload",)
    assert [f.id for f in last.replies] == [1, 2, 4, 5, 6]
    assert "sync_write goal_position 1=" in last.request and "sync_read present_position+6 of 1 2 3" in last.request
    assert any(n.startswith("timeout after") for n in last.notes)


def test_a_file_holds_what_the_sink_was_given(tmp_path: Path) -> None:
    out = RecordingFile(tmp_path / "new" / "a.bus", HEADER)
    kept = Kept()
    for sink in (out, kept):
        rig = Rig(sink)
        rig.driver.connect()
        for _ in range(10):
            rig.cycle(GOAL)
    out.close()
    found = read_recording(out.path)
    assert (found.header, found.torn) == (HEADER, False)
    assert list(found.events) == kept.events


def test_a_recording_appears_on_the_disk_while_it_is_made(tmp_path: Path) -> None:
    out = RecordingFile(tmp_path / "a.bus", HEADER)
    out.add(Event(Kind.WRITE, HEADER.start_ns, b"\xff\xff\x01\x02\x01\xfb", 0))
    deadline_s = time.monotonic() + 20
    while len(read_recording(out.path).events) < 1 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert len(read_recording(out.path).events) == 1
    out.close()


def test_a_disk_that_cannot_keep_up_loses_events_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rec, "MAX_WAITING", 3)
    monkeypatch.setattr(rec, "FLUSH_S", 3600.0)
    out = RecordingFile(tmp_path / "a.bus", HEADER)
    for n in range(5):
        out.add(Event(Kind.DRAIN, HEADER.start_ns + n, b"0", 0))
    out.close()
    events = read_recording(out.path).events
    assert [e.kind for e in events] == [Kind.DRAIN] * 3 + [Kind.LOST]
    assert events[-1].data == b"2"


def test_a_file_that_cannot_be_written_names_itself(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordingError, match=r"folder: cannot be written: .* give another file"):
        RecordingFile(tmp_path / "folder", HEADER)


def test_the_ring_keeps_the_last_seconds_and_writes_them_when_told(tmp_path: Path) -> None:
    ring = FlightRecorder(tmp_path / "faults", "/dev/ttyACM0", 1_000_000, "so101_follower", keep_s=0.5)
    rig = Rig(ring)
    rig.driver.connect()
    for _ in range(100):
        rig.cycle()
    path = ring.save("Servo 3: silent!")
    assert path is not None and path.name.startswith("servo-3--silent-")
    ring.wait()
    found = read_recording(path)
    assert found.header.whole is False and found.torn is False
    span_s = (found.events[-1].stamp_ns - found.events[0].stamp_ns) / NS_PER_S
    assert span_s == pytest.approx(0.5, abs=0.011)
    assert len(list(conversation(found))) == 51
    assert "middle of a conversation" in rerun(found, load_arm(), Calibration.default()).error


def test_the_ring_writes_only_so_many_files_and_none_when_it_is_empty(tmp_path: Path) -> None:
    ring = FlightRecorder(tmp_path, "p", 1_000_000, "a", max_files=2)
    assert ring.save("early") is None
    ring.add(Event(Kind.DRAIN, 1, b"0", 0))
    paths = [ring.save("fault") for _ in range(4)]
    ring.wait()
    assert [p is not None for p in paths] == [True, True, False, False]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_ring_survives_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ring = FlightRecorder(tmp_path / "file", "p", 1_000_000, "a")
    ring.add(Event(Kind.DRAIN, 1, b"0", 0))
    ring.save("fault")
    ring.wait()
    assert "cannot be written" in ring.failure


def test_a_file_cut_anywhere_gives_its_whole_events_and_says_that_it_is_torn() -> None:
    head = rec.encode_header(HEADER)
    events = [Event(Kind.WRITE, HEADER.start_ns + n * 1000, b"abc", 0) for n in range(3)]
    data = head + rec.encode_events(events, HEADER.start_ns)
    for end in range(len(head), len(data)):
        found = decode_recording(data[:end])
        assert list(found.events) == events[: len(found.events)]
        whole = head + rec.encode_events(list(found.events), HEADER.start_ns)
        assert found.torn == (len(whole) < end)


def test_a_reader_refuses_what_no_recorder_writes() -> None:
    head = rec.encode_header(HEADER)
    for data, complaint in [
        (b"", "not a recording"),
        (b"\x00\x01", "not a recording"),
        (msgpack.packb({"steadyhand_bus_recording": 9}), "version 9"),
        (msgpack.packb({"steadyhand_bus_recording": 1}), "header lacks"),
        (head + msgpack.packb([0, 1, b"x"]), "event 1 is not"),
        (head + msgpack.packb([0, 1, "x", 0]), "event 1 is not"),
        (head + msgpack.packb([True, 1, b"x", 0]), "event 1 is not"),
        (head + msgpack.packb([9, 1, b"x", 0]), "impossible: kind 9"),
        (head + msgpack.packb([0, -1, b"x", 0]), "impossible"),
        (head + msgpack.packb([2, 1, b"x", 0]), "holds no count"),
        (head + msgpack.packb([0, 1, b"x" * 5000, 0]), "damaged"),
        (head + b"\xc1", "damaged"),
    ]:
        with pytest.raises(RecordingError, match=complaint):
            decode_recording(data)


@given(st.binary(max_size=200))
def test_a_reader_answers_any_bytes_with_events_or_an_explanation(tail: bytes) -> None:
    try:
        decode_recording(rec.encode_header(HEADER) + tail)
    except RecordingError as error:
        assert str(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none\.bus: cannot be read: No such file"):
        read_recording(tmp_path / "none.bus")
