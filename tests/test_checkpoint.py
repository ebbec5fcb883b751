"""A checkpoint is there whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from steadyhand_training import checkpoint


def test_the_newest_two_are_kept_in_order(tmp_path: Path) -> None:
    for n in range(4):
        checkpoint.save(tmp_path, lambda folder, n=n: (folder / "n").write_text(str(n)))  # type: ignore[misc]
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["000003", "000004"]
    assert [(p / "n").read_text() for p in checkpoint.listing(tmp_path)] == ["2", "3"]


def test_a_crash_while_writing_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, lambda folder: (folder / "n").write_text("whole"))

    def crash(folder: Path) -> None:
        (folder / "n").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, crash)
    assert [(p / "n").read_text() for p in checkpoint.listing(tmp_path)] == ["whole"]
    assert checkpoint.save(tmp_path, lambda folder: (folder / "n").write_text("next")).name == "000002"


def test_where_nothing_was_saved_there_is_nothing(tmp_path: Path) -> None:
    assert checkpoint.listing(tmp_path / "none") == []


def test_a_checkpoint_is_written_while_its_owner_goes_on(tmp_path: Path) -> None:
    saver, gate = checkpoint.Saver(tmp_path), threading.Event()

    def small(folder: Path) -> None:
        (folder / "small").write_text("state")

    def later(folder: Path) -> None:
        gate.wait(60)
        (folder / "large").write_text("weights")

    saver.start(small, later)
    assert saver.busy and checkpoint.listing(tmp_path) == []
    gate.set()
    saver.wait()
    (only,) = checkpoint.listing(tmp_path)
    assert (only / "small").read_text() == "state" and (only / "large").read_text() == "weights"
    assert not saver.busy


def test_a_disk_that_refuses_in_the_thread_is_reported_to_the_next_caller(tmp_path: Path) -> None:
    saver = checkpoint.Saver(tmp_path)

    def full(folder: Path) -> None:
        raise OSError("no space left")

    saver.start(lambda folder: None, full)
    with pytest.raises(OSError, match="no space"):
        saver.wait()
    saver.start(lambda folder: None, lambda folder: None)
    saver.wait()
    assert len(checkpoint.listing(tmp_path)) == 1
