"""The command answers every call, right or wrong, with help."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from steadyhand_models import cli


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "steadyhand_models.cli", *argv], capture_output=True, text=True)


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_no_words_and_help_list_every_command(argv, capsys):
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    for name in cli.ORDER:
        assert f"\n  {name}" in text
    assert "not installed" not in text


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["evalute"]) == 2
    assert "did you mean `steadyhand evaluate`?" in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys):
    entry = EntryPoint("demo", "no_such_library_anywhere:main [train]", cli.GROUP)
    assert cli._run("steadyhand demo", entry, []) == 1
    assert "no_such_library_anywhere is not installed; `pip install 'steadyhand[train]'`" in capsys.readouterr().err


def test_a_fault_of_our_own_is_not_called_a_missing_extra():
    with pytest.raises(ImportError):
        cli._run("steadyhand demo", EntryPoint("demo", "steadyhand_models.no_such_module:main [train]", cli.GROUP), [])


@pytest.mark.parametrize("command", [n for n in cli.ORDER if n != "sim"])
def test_every_command_explains_itself_with_an_example(command):
    result = run(command, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout.lower()
    assert "steadyhand " + command in result.stdout


def test_a_wrong_option_is_answered_with_usage():
    result = run("task", "--nmae", "lift")
    assert result.returncode == 2
    assert "--nmae" in result.stderr + result.stdout


def test_a_wrong_setting_in_a_file_names_the_nearest(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("sede = 3\n")
    result = run("train", "--config", str(path))
    assert result.returncode == 2
    assert "unknown setting 'sede'; did you mean 'seed'?" in result.stderr


def test_a_registry_that_is_not_there_names_the_option(tmp_path):
    result = run("models", "list", "--registry", str(tmp_path / "none"))
    assert result.returncode == 1
    assert "give --registry" in result.stderr
