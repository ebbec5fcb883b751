"""The experiments: what a line is started with, what its figures mean, and that nothing finished is run twice."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from steadyhand_models.cli import UserError
from steadyhand_models.settings import SettingsError
from steadyhand_training import lab, lab_board, lab_learn, lab_lines, lab_results, lab_run
from steadyhand_training.lab_board import Board
from steadyhand_training.lab_learn import LearnLab, LearnLabSettings, shortened
from steadyhand_training.lab_lines import RECIPES, Line
from steadyhand_training.lab_results import LineResult, Trial
from steadyhand_training.lab_run import Judged, LabRun, Stopped
from steadyhand_training.plots import learning_lines

# Stands in for `steadyhand`: a trainer that publishes a policy every 100 steps, a robot that records, an evaluation
# whose success rises with the version. Every start is written down.
FAKE = """
import json, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import dataclasses
words = sys.argv[1:]
options = dict(zip(words[1::2], words[2::2])) if words[0] != "sim" else dict(zip(words[2::2], words[3::2]))
with open({started!r}, "a") as file:
    file.write(" ".join(words) + "\\n")
if words[0] == "train":
    from test_publish import made
    from steadyhand_models.registry import Registry
    root = Path(options["--run"])
    for version in range(1, 6):
        artifact = made(version)
        manifest = dataclasses.replace(artifact.manifest, metrics=dict(steps=100.0 * version))
        Registry(root / "registry").publish(dataclasses.replace(artifact, manifest=manifest))
    signal.signal(signal.SIGTERM, lambda *a: sys.exit({trainer_code}))
    (root / "trainer.json").write_text(json.dumps(dict(link="tcp://127.0.0.1:1")))
    while True:
        time.sleep(0.05)
elif words[0] == "sim":
    from training_steps import CONTRACT, RUN, driven, records
    from steadyhand_models.messages import Source
    from steadyhand_training.journal import Journal
    steps = [m for e in range(5) for m in driven(e, Source.TAKEOVER if e % 2 else Source.POLICY, count=9)]
    journal = Journal(Path(options["--run"]) / "journal.sqlite")
    journal.commit("edge", RUN, list(records(steps)), CONTRACT)
    journal.close()
    sys.exit({robot_code})
else:
    episodes, version = int(options["--episodes"]), int(options["--version"])
    Path(options["--json"]).write_text(json.dumps(dict(successes=min(episodes, episodes * version // 4))))
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Install the stand-in; the file that lists what was started."""
    return install(monkeypatch, tmp_path)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, trainer_code: int = 0, robot_code: int = 0) -> Path:
    started = folder / "started"
    values = {"tests": str(Path(__file__).parent), "started": str(started)}
    code = FAKE.format(trainer_code=trainer_code, robot_code=robot_code, **values)
    monkeypatch.setattr(lab_run, "steadyhand", lambda *words: (sys.executable, "-c", code, *words))
    return started


def chosen(tmp_path: Path, *lines: Line) -> LearnLabSettings:
    return LearnLabSettings(
        seeds=(0,), steps=500, episodes=8, curve_episodes=4, every_steps=200, lines=lines, out=tmp_path / "out"
    )


def run(settings: LearnLabSettings, stop: threading.Event | None = None) -> LearnLab:
    made = LearnLab(settings, stop or threading.Event())
    with Board(Console(quiet=True), list(made.runs)) as board:
        made.run(board)
    return made


def trial(seed: int, *successes: int, episodes: int = 10, minutes: float = 2.0) -> Trial:
    """A version every 100 steps, with a takeover every 50."""
    points = [Judged(i, 100 * i, 2 * i, episodes, won) for i, won in enumerate(successes, 1)]
    return Trial(seed, tuple(points), minutes)


def test_every_line_has_a_recipe_and_shares_runs_only_where_they_are_equal() -> None:
    assert set(RECIPES) == set(Line)
    assert RECIPES[Line.BEHAVIOUR_CLONING].course == RECIPES[Line.RLPD_SAC].course
    assert len({r.course for r in RECIPES.values()}) == len(RECIPES) - 1


def test_the_real_commands_understand_what_every_line_is_started_with() -> None:
    from steadyhand_models import settings
    from steadyhand_runtime.sim.lockstep import LockstepSettings
    from steadyhand_training.config import Algorithm
    from steadyhand_training.trainer_settings import TrainerSettings

    for line, recipe in RECIPES.items():
        words = lab_lines.trainer_words(recipe, "runs/x", 3, "lift")
        trainer = settings.parse_command_line(TrainerSettings, words[1:], "train", "")
        assert trainer.lockstep.enabled and trainer.seed == 3
        assert (trainer.learner.algorithm is Algorithm.DRQV2) == (line is Line.DRQV2)
        words = lab_lines.robot_words(recipe, "runs/x", 3, "lift", 700, "tcp://127.0.0.1:9")
        robot = settings.parse_command_line(LockstepSettings, words[2:], "lockstep", "")
        assert robot.steps == 700 and robot.operator.demonstrations == trainer.demonstrations
        assert (robot.operator.takeover_rate == 0) == (line is Line.NO_TAKEOVERS)


def test_a_line_is_trained_judged_along_the_way_and_written_down(fake: Path, tmp_path: Path) -> None:
    settings = chosen(tmp_path, Line.RLPD_SAC, Line.BEHAVIOUR_CLONING)
    made = run(settings)
    assert made.problems == []
    sac, cloned = made.results()
    assert [p.version for p in sac.trials[0].points] == [1, 2, 4, 5]
    assert [p.episodes for p in sac.trials[0].points] == [4, 4, 4, 8]
    assert [p.steps for p in sac.trials[0].points] == [100, 200, 400, 500]
    assert [(p.version, p.episodes) for p in cloned.trials[0].points] == [(1, 8)]
    # Episodes of ten steps; the second and the fourth are takeovers.
    assert [p.takeovers for p in sac.trials[0].points] == [2, 2, 2, 2]
    lab_learn.write(settings, made.results(), made.problems, "steadyhand lab learn")
    data = json.loads((settings.out / "results.json").read_text())
    assert data["lines"]["rlpd_sac"]["final"]["rate"] == 1.0 and data["missing"] == []
    assert (settings.out / "learn.png").read_bytes().startswith(b"\x89PNG")
    assert "| RLPD-SAC with takeovers | 100.0%" in (settings.out / "learn.md").read_text()


def test_what_is_finished_is_not_run_again(fake: Path, tmp_path: Path) -> None:
    run(chosen(tmp_path, Line.RLPD_SAC))
    before = fake.read_text()
    again = run(chosen(tmp_path, Line.RLPD_SAC))
    assert again.problems == [] and len(again.results()) == 1
    assert fake.read_text() == before


def test_a_run_of_other_length_is_another_run(fake: Path, tmp_path: Path) -> None:
    run(chosen(tmp_path, Line.RLPD_SAC))
    trained = fake.read_text().count("train --run")
    longer = LearnLabSettings(**{**vars(chosen(tmp_path, Line.RLPD_SAC)), "steps": 600})
    run(longer)
    assert fake.read_text().count("train --run") == trained + 1


def test_a_failed_run_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, robot_code=3)
    broken = run(chosen(tmp_path, Line.RLPD_SAC))
    assert broken.results() == [] and "the robot failed" in broken.problems[0]
    install(monkeypatch, tmp_path, trainer_code=4)
    broken = run(chosen(tmp_path, Line.NO_TAKEOVERS))
    assert "did not end in order" in broken.problems[0]


def test_a_folder_with_something_else_in_it_is_left_alone(fake: Path, tmp_path: Path) -> None:
    taken = tmp_path / "out" / "runs" / "rlpd_sac-seed0"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").write_text("years of work")
    made = run(chosen(tmp_path, Line.RLPD_SAC))
    assert "choose another --runs" in made.problems[0] and (taken / "thesis.txt").exists()


def test_an_interruption_stops_its_processes_and_is_gone_on_with(fake: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    recipe = RECIPES[Line.RLPD_SAC]
    halted = LabRun(recipe, tmp_path / "halted", 0, "lift", 500, stop)
    stop.set()
    with pytest.raises(Stopped):
        halted.train(lambda share, what: None)
    assert halted.minutes is None
    stop.clear()
    halted.train(lambda share, what: None)
    assert halted.minutes is not None


def test_short_is_one_seed_of_one_line() -> None:
    few = shortened(LearnLabSettings(short=True, seeds=(4, 5)))
    assert (few.seeds, few.lines, few.steps, few.episodes) == ((4,), (Line.RLPD_SAC,), 1500, 40)
    assert shortened(LearnLabSettings()) == LearnLabSettings()


def test_the_command_runs_the_short_form_and_says_where_the_results_are(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab_board, "stop_on_signals", lambda stop: None)
    copy = tmp_path / "copy.json"
    assert lab_learn.main(["--short", "--out", str(tmp_path / "out"), "--json", str(copy)]) == 0
    assert "100.0%" in capsys.readouterr().out
    assert json.loads(copy.read_text())["seeds"] == [0]
    assert fake.read_text().count("train --run") == 1 and "--steps 1500" in fake.read_text()


def test_seeds_are_pooled_for_the_interval_and_the_mean_is_over_seeds() -> None:
    place = lab_results.pooled([Judged(5, 500, 9, 10, 10), Judged(5, 520, 9, 10, 6)])
    assert place.rate == pytest.approx(0.8) and place.steps == 510
    assert place.lo < 0.8 < place.hi
    narrow = lab_results.pooled([Judged(5, 500, 9, 1000, 800)])
    assert narrow.hi - narrow.lo < place.hi - place.lo


def test_a_level_is_reached_when_it_lasts() -> None:
    lucky = trial(0, 9, 5, 9, 10)
    assert lucky.reached is not None and lucky.reached.version == 3
    assert trial(0, 5, 6).reached is None
    at_last = trial(0, 5, 9).reached
    assert at_last is not None and at_last.version == 2


def test_the_table_counts_a_seed_that_never_got_there_as_the_latest() -> None:
    never, soon, late = trial(0, 5, 5, 5), trial(1, 9, 9, 9), trial(2, 5, 9, 9)
    row = lab_results.rows([LineResult("x", "X", (never, soon, late))])[0]
    assert row[3:] == ("200 (1 of 3 seeds never)", "4 (1 of 3 seeds never)", "2.0")
    assert lab_results.rows([LineResult("x", "X", (never, never, soon))])[0][3] == "not reached"


def test_a_drawing_needs_no_more_than_one_seed() -> None:
    assert learning_lines([LineResult("x", "X", (trial(0, 1, 2),)), LineResult("y", "Y", (trial(0, 7),))])


def test_the_command_lists_its_experiments_and_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main([]) == 0
    assert "learn" in capsys.readouterr().out
    assert lab.main(["lern"]) == 2
    assert "did you mean `steadyhand lab learn`?" in capsys.readouterr().err


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        lab_learn.main(["--seeds"])
    file = tmp_path / "file"
    file.write_text("")
    results = [LineResult("x", "X", (trial(0, 5, 9),))]
    with pytest.raises(UserError, match="choose another --out"):
        lab_learn.write(LearnLabSettings(out=file / "out"), results, [], "")


@pytest.mark.slow
def test_a_short_real_experiment_finds_that_cloning_lifts_the_cube_now_and_then(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    settings = LearnLabSettings(
        seeds=(0,), steps=320, episodes=10, curve_episodes=5, lines=(Line.BEHAVIOUR_CLONING,), out=tmp_path
    )
    made = run(settings)
    assert made.problems == []
    assert made.results()[0].final.rate >= 0.3
