"""A checkpoint is there whole or not at all."""

from __future__ import annotations

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
