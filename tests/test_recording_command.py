"""`steadyhand bus record` and `replay` on virtual servos behind a real pty."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand_models.cli import UserError
from steadyhand_runtime.bus.recording import Kind, encode_events, encode_header, read_recording
from steadyhand_runtime.bus.recording_command import main_record, main_replay
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import StillPlant, VirtualChain

RECORD = "import sys; from steadyhand_runtime.bus.recording_command import main_record as m; sys.exit(m(sys.argv[1:]))"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[PtyPort]:
    with PtyPort(VirtualChain(StillPlant()), link=tmp_path / "arm") as served:
        yield served


@pytest.fixture
def recorded(port: PtyPort, tmp_path: Path) -> Path:
    out = tmp_path / "a.bus"
    assert main_record(["--port", port.path, "--out", str(out), "--cycles", "10"]) == 0
    return out


def test_so_many_cycles_are_recorded_and_nothing_is_written_to_a_servo(recorded: Path) -> None:
    found = read_recording(recorded)
    assert found.header.whole and found.header.baud == 1_000_000 and found.header.arm == "so101_follower"
    reads = [e for e in found.events if e.kind is Kind.WRITE and e.data[4] == 0x82]
    assert len(reads) >= 11  # connecting, then the ten
    assert not any(e.data[4] in (0x03, 0x04, 0x83) for e in found.events if e.kind is Kind.WRITE)


def test_so_many_seconds_are_recorded(port: PtyPort, tmp_path: Path) -> None:
    out = tmp_path / "a.bus"
    assert main_record(["--port", port.path, "--out", str(out), "--seconds", "0.3", "--rate-hz", "50"]) == 0
    events = read_recording(out).events
    assert events[-1].stamp_ns - events[0].stamp_ns >= 200_000_000


def test_a_replay_finds_every_request_as_recorded(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_replay([str(recorded)]) == 0
    text = capsys.readouterr().out
    assert "driver run again: 10 readings, every request as recorded" in text


def test_decoding_shows_every_exchange(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_replay([str(recorded), "--decode"])
    text = " ".join(capsys.readouterr().out.split())
    assert "sync_read" in text and "1 2 3 4 5 6" in text


def test_json_holds_the_exchanges_and_the_readings(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main_replay([str(recorded), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["header"]["arm"] == "so101_follower"
    assert len(report["readings"]) == 10
    assert report["difference"] is None
    assert [r["id"] for r in report["exchanges"][-1]["replies"]].count(1) == 1


def test_a_driver_that_does_something_else_is_reported_with_exit_code_3(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_recording(recorded)
    events = list(found.events)
    at = max(n for n, e in enumerate(events) if e.kind is Kind.WRITE)
    events[at] = events[at]._replace(data=bytes.fromhex("ffff010201fb"))
    recorded.write_bytes(encode_header(found.header) + encode_events(events, found.header.start_ns))
    assert main_replay([str(recorded)]) == 3
    assert "the recording has write ff ff 01 02 01 fb" in " ".join(capsys.readouterr().out.split())


def test_a_silent_servo_is_in_the_file_though_connecting_failed(port: PtyPort, tmp_path: Path) -> None:
    port._chain.servos[3].silent = True
    out = tmp_path / "a.bus"
    with pytest.raises(UserError, match="wrist_flex"):
        main_record(["--port", port.path, "--out", str(out), "--cycles", "10"])
    assert read_recording(out).events


def test_an_interrupt_ends_the_recording_with_the_file_whole(port: PtyPort, tmp_path: Path) -> None:
    out = tmp_path / "a.bus"
    process = subprocess.Popen(
        [sys.executable, "-c", RECORD, "--port", port.path, "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        deadline_s = time.monotonic() + 60
        while not (out.exists() and out.stat().st_size > 2000) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert str(out) in text
    found = read_recording(out)
    assert not found.torn and found.events[-1].kind is not Kind.WRITE


def test_a_port_that_is_not_there_and_a_file_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such port"):
        main_record(["--port", str(tmp_path / "none"), "--out", str(tmp_path / "a.bus")])
    (tmp_path / "b.bus").write_bytes(b"hello")
    with pytest.raises(UserError, match="not a recording"):
        main_replay([str(tmp_path / "b.bus")])
