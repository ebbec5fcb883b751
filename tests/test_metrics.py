"""Intervals that are right at the edges, and a log that a crash cannot spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steadyhand_training.metrics import JsonLines, last_json_line, read_json_lines, wilson


# Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29, Wilson without continuity correction.
@pytest.mark.parametrize(
    ("successes", "trials", "lo", "hi"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_agrees_with_published_ones(successes: int, trials: int, lo: float, hi: float) -> None:
    assert wilson(successes, trials) == pytest.approx((lo, hi), abs=5e-5)


def test_the_interval_of_nothing_tried_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_rows_come_back_and_a_line_cut_off_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    first.write({"a": 1, "b": np.float32(0.5)})
    first.close()
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    second = JsonLines(path)
    second.write({"a": 3})
    second.close()
    assert list(read_json_lines(path)) == [{"a": 1, "b": 0.5}, {"a": 3}]


def test_a_log_that_was_never_written_is_empty(tmp_path: Path) -> None:
    assert list(read_json_lines(tmp_path / "none.jsonl")) == []


def test_the_newest_row_of_a_kind_is_found_behind_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_json_line(path, "status") is None
    lines = [f'{{"kind": "status", "steps": {n}}}' for n in range(3000)]
    path.write_text("\n".join([*lines, '{"kind": "swap"}', '{"kind": "status", "st']))
    assert last_json_line(path, "status") == {"kind": "status", "steps": 2999}
    assert last_json_line(path, "promotion") is None
