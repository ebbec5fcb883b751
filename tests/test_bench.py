"""`steadyhand bench` finds its benches, and prints and saves what they found."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from steadyhand_models import bench, cli


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_no_words_and_help_list_every_bench(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *argv]) == 0
    text = capsys.readouterr().out
    assert "not installed" not in text
    for entry in entry_points(group=bench.GROUP):
        assert f"\n  {entry.name}" in text


def test_an_unknown_bench_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["bsu"]) == 2
    assert "did you mean `steadyhand bench bus`?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(e.name for e in entry_points(group=bench.GROUP)))
def test_every_bench_explains_itself_and_takes_a_file_and_a_seed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        bench.main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"steadyhand bench {name}" in text and "--json" in text and "--seed" in text


def test_a_table_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show("speeds", ("what", "Hz"), [("ours", "700"), ("theirs", "[30]")], caption="medians")
    text = capsys.readouterr().out
    assert all(word in text for word in ("speeds", "Hz", "ours", "700", "[30]", "medians"))


def test_figures_are_saved_with_where_they_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bus.json"
    bench.write_json(path, "bus", 7, {"rate_hz": 1.5})
    saved = json.loads(path.read_text())
    assert (saved["bench"], saved["seed"], saved["rate_hz"]) == ("bus", 7, 1.5)
    assert saved["python"] and saved["machine"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("")
    with pytest.raises(cli.UserError, match="cannot be written"):
        bench.write_json(tmp_path / "in_the_way" / "bus.json", "bus", 0, {})
