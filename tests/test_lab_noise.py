"""The noise experiment: how a person errs and lags, what its runs are started with, and what is made of them."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from steadyhand_models import settings as toml
from steadyhand_models.messages import EndReason, EventKind, Mode
from steadyhand_models.reward import RewardForm
from steadyhand_runtime.sim.operator import OperatorSettings
from steadyhand_training import lab_board, lab_lines, lab_noise, lab_noise_results, lab_run, plots
from steadyhand_training.facts import EpisodeFacts
from steadyhand_training.lab_board import Board
from steadyhand_training.lab_noise import NoiseLab, NoiseLabSettings, noises, recipe, shortened
from steadyhand_training.lab_noise_results import Cell, Noise, Trial, Words
from steadyhand_training.lab_run import Judged

sys.path.insert(0, str(Path(__file__).parent))
from test_operator import CAREFUL, TICK_NS, ToyRobot, robot

# -- the person --------------------------------------------------------------------------------------------------------


def person(false_success: float | None, false_failure: float | None, **more: object) -> OperatorSettings:
    """Someone whose mixed rate would show at once wherever it still counted."""
    rates = {"false_success_rate": false_success, "false_failure_rate": false_failure}
    return replace(CAREFUL, wrong_key_rate=1.0, undo_rate=0.0, **rates | more)  # type: ignore[arg-type]


def last_words(toy: ToyRobot) -> dict[int, EventKind]:
    """What was said last about each episode, by keys that do not steer."""
    judging = (EventKind.SUCCESS, EventKind.FAILURE, EventKind.FALSE_POSITIVE)
    return {episode: event.kind for _, episode, event in toy.events if event.kind in judging}


def denied(toy: ToyRobot) -> float:
    """Share of all episodes of which the last word is no success."""
    words = [kind for kind in last_words(toy).values() if kind is not EventKind.SUCCESS]
    return len(words) / len(toy.ends)


def praised(toy: ToyRobot) -> float:
    """Share of all episodes of which the last word is success."""
    words = [kind for kind in last_words(toy).values() if kind is EventKind.SUCCESS]
    return len(words) / len(toy.ends)


@pytest.mark.parametrize("verdict_rate", [0.0, 1.0])
def test_true_successes_are_denied_at_their_rate_whether_people_confirm_or_keep_silent(verdict_rate: float) -> None:
    settings = person(0.0, 0.3, verdict_rate=verdict_rate)
    toy = robot(settings, policy_version=1, fires_after=3, lie_success=True)
    toy.run(9000)
    assert len(toy.ends) > 300
    assert denied(toy) == pytest.approx(0.3, abs=0.08)
    assert praised(toy) == pytest.approx(0.7 * verdict_rate, abs=0.08)


def test_successes_that_a_person_must_end_are_called_failures_at_the_same_rate() -> None:
    toy = robot(person(0.0, 0.3), policy_version=1, lie_success=True)
    toy.run(9000)
    reasons = [reason for _, reason, _ in toy.ends]
    assert len(reasons) > 200
    assert reasons.count("failure") / len(reasons) == pytest.approx(0.3, abs=0.08)


def test_false_successes_of_the_classifier_are_confirmed_at_their_rate() -> None:
    toy = robot(person(0.3, 0.0), policy_version=1, fires_after=10)
    toy.run(9000)
    assert len(toy.ends) > 250 and not any(truly for _, _, truly in toy.ends)
    assert praised(toy) == pytest.approx(0.3, abs=0.08)
    assert denied(toy) == pytest.approx(0.7, abs=0.08)


@pytest.mark.parametrize("verdict_rate", [0.0, 1.0])
def test_an_episode_that_ran_out_of_time_is_called_a_success_at_the_rate(verdict_rate: float) -> None:
    settings = person(0.3, 0.0, verdict_rate=verdict_rate, takeover_rate=0.0)
    toy = robot(settings, policy_version=1)
    toy.run(40_000)
    assert len(toy.ends) > 200 and {reason for _, reason, _ in toy.ends} == {"timeout"}
    assert praised(toy) == pytest.approx(0.3, abs=0.08)
    assert denied(toy) == pytest.approx(0.7 * verdict_rate, abs=0.08)


@pytest.mark.parametrize(("rate", "called"), [(1.0, "success"), (0.0, "failure"), (None, "failure")])
def test_a_lost_cube_is_called_a_success_only_by_who_has_a_rate_for_it(rate: float | None, called: str) -> None:
    toy = robot(replace(CAREFUL, false_success_rate=rate), policy_version=1)
    toy.run(12)
    toy.cube[:] = (0.45, 0.0, 0.0125)
    toy.run(12)
    assert toy.ends[0][1] == called


def test_one_kind_of_error_does_not_bring_the_other() -> None:
    calm = robot(person(1.0, 0.0), policy_version=1, fires_after=3, lie_success=True)
    calm.run(2000)
    assert calm.ends and denied(calm) == 0.0
    calm = robot(person(0.0, 1.0), policy_version=1, fires_after=10)
    calm.run(2000)
    assert calm.ends and praised(calm) == 0.0


def test_who_demonstrates_is_right_at_any_rate() -> None:
    toy = robot(person(1.0, 1.0))
    toy.run(700)
    assert sorted(reason for _, reason, _ in toy.ends) == ["failure", "success", "success"]
    assert all(truly == (reason == "success") for _, reason, truly in toy.ends)


def test_lag_delays_every_key_and_no_word_tells_of_it() -> None:
    prompt, late = (robot(replace(CAREFUL, lag_s=lag_s), policy_version=1, lie_success=True) for lag_s in (0.0, 0.8))
    for toy in (prompt, late):
        toy.run(40)

    def first(toy: ToyRobot) -> tuple[int, float]:
        mode, _, event = toy.pressed(EventKind.SUCCESS)[0]
        assert mode is Mode.POLICY
        return event.stamp_ns, event.reaction_s

    assert first(late)[0] - first(prompt)[0] == pytest.approx(0.8e9, abs=TICK_NS)
    assert first(late)[1] == first(prompt)[1] == pytest.approx(0.55)


# -- what is started ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", RewardForm)
def test_the_real_commands_understand_what_every_form_is_started_with(form: RewardForm) -> None:
    from steadyhand_runtime.sim.lockstep import LockstepSettings
    from steadyhand_training.trainer_settings import TrainerSettings

    made = recipe(form, Noise(0.15, 0.3, 0.4))
    words = lab_lines.trainer_words(made, "runs/x", 3, "lift")
    trainer = toml.parse_command_line(TrainerSettings, words[1:], "train", "")
    words = lab_lines.robot_words(made, "runs/x", 3, "lift", 700, "tcp://127.0.0.1:9")
    robot = toml.parse_command_line(LockstepSettings, words[2:], "lockstep", "")
    assert trainer.reward.form is form
    runs_on = form is RewardForm.PROBABILITY
    assert (trainer.reward.terminate_on_success, robot.control.terminate_on_success) == (not runs_on, not runs_on)
    someone = robot.operator
    assert (someone.false_success_rate, someone.false_failure_rate, someone.lag_s) == (0.15, 0.3, 0.4)
    assert someone.undo_rate == 0.0
    assert (someone.reaction_lo_s, someone.reaction_hi_s, someone.reaction_s) == (0.3, 0.8, pytest.approx(0.55))


def test_lag_is_varied_without_wrong_words_and_no_noise_comes_twice() -> None:
    found = noises(NoiseLabSettings())
    assert len(found) == len(set(found)) == 9 + 2
    assert {n.lag_s for n in found if n.false_positive or n.false_negative} == {0.0}
    assert Noise() in found and Noise(lag_s=0.8) in found


def test_one_seeds_grid_is_whole_before_the_next_begins(tmp_path: Path) -> None:
    lab = NoiseLab(NoiseLabSettings(seeds=(3, 1), out=tmp_path), threading.Event())
    seeds = [key.seed for key in lab.runs]
    assert seeds == [3] * 33 + [1] * 33 and len({str(key) for key in lab.runs}) == 66


def test_short_is_one_seed_of_one_form_with_two_rates_each() -> None:
    few = shortened(NoiseLabSettings(short=True, seeds=(4, 5)))
    assert (few.seeds, few.forms, few.steps) == ((4,), (RewardForm.SUCCESS,), 600)
    assert noises(few) == [Noise(), Noise(0, 0.3), Noise(0.3, 0), Noise(0.3, 0.3)]
    assert shortened(NoiseLabSettings()) == NoiseLabSettings()


# -- what is found -----------------------------------------------------------------------------------------------------


def trial(won: int, seed: int = 0, words: Words | None = None) -> Trial:
    return Trial(seed, 2.0, Judged(9, 1500, 4, 100, won), words or Words())


def test_seeds_are_pooled_and_their_words_added() -> None:
    cell = Cell("success", Noise(0.15), (trial(90, 0, Words(10, 2, 20, 1)), trial(70, 1, Words(5, 1, 30, 0))))
    assert cell.place.rate == pytest.approx(0.8) and cell.place.lo < 0.8 < cell.place.hi
    assert cell.words == Words(15, 3, 50, 1)
    row = lab_noise_results.rows([cell])[0]
    assert row[:4] == ("success", "15%", "0%", "0 s") and row[4].startswith("80.0% (")
    assert row[5:] == ("90.0%, 70.0%", "3 of 15", "1 of 50", "2.0")


def test_a_chart_holds_every_cell_in_its_place_and_says_which_are_missing() -> None:
    made = {
        noise: Cell("success", noise, (trial(50),))
        for noise in (Noise(0.3, 0.0), Noise(), Noise(0.0, 0.3), Noise(lag_s=0.8), Noise(lag_s=0.4))
    }
    (chart,) = lab_noise_results.charts(list(made.values()))
    assert (chart.false_positives, chart.false_negatives) == ((0.0, 0.3), (0.0, 0.3))
    assert chart.grid == ((made[Noise()], made[Noise(0.0, 0.3)]), (made[Noise(0.3, 0.0)], None))
    assert [c.noise.lag_s for c in chart.lags] == [0.0, 0.4, 0.8]


@pytest.mark.parametrize("noise", [Noise(), Noise(0.3, 0.3), Noise(lag_s=0.4)])
def test_a_drawing_needs_no_more_than_one_cell(noise: Noise) -> None:
    charts = lab_noise_results.charts([Cell("success", noise, (trial(0),)), Cell("potential", noise, (trial(100),))])
    assert [c.form for c in charts] == ["success", "potential"]
    assert plots.noise_maps(charts).startswith(b"\x89PNG")


def test_only_last_words_that_contradict_the_truth_are_counted_as_wrong() -> None:
    def ended(true_success: bool | None, verdict: str, end: EndReason = EndReason.TIMEOUT) -> EpisodeFacts:
        return EpisodeFacts(1, 0, true_success=true_success, verdict=verdict, end=end)

    failures = [ended(False, "success"), ended(False, "failure"), ended(False, "")]
    successes = [ended(True, "failure"), ended(True, "failure"), ended(True, "success"), ended(True, "")]
    neither = [ended(None, "success"), ended(False, "success", EndReason.OPERATOR)]
    assert lab_noise.words([*failures, *successes, *neither]) == Words(3, 1, 4, 2)


# -- the whole ---------------------------------------------------------------------------------------------------------

# Stands in for `steadyhand`: a trainer that publishes, a robot that records, an evaluation that half succeeds.
FAKE = """
import dataclasses, json, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
words = sys.argv[1:]
with open({started!r}, "a") as file:
    file.write(" ".join(words) + "\\n")
options = dict(zip(words[1::2], words[2::2]))
if words[0] == "train":
    from test_lab_drift import recorded
    from test_publish import made
    from steadyhand_models.registry import Registry
    root = Path(options["--run"])
    recorded(root)
    policies = [made(1), made(2)]
    for artifact in policies:
        manifest = dataclasses.replace(artifact.manifest, metrics=dict(steps=100.0))
        Registry(root / "registry").publish(dataclasses.replace(artifact, manifest=manifest))
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
    (root / "trainer.json").write_text(json.dumps(dict(link="tcp://127.0.0.1:1")))
    while True:
        time.sleep(0.05)
elif words[0] == "evaluate":
    Path(options["--json"]).write_text(json.dumps(dict(successes=int(options["--episodes"]) // 2)))
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Install the stand-in; the file that lists what was started."""
    started = tmp_path / "started"
    code = FAKE.format(tests=str(Path(__file__).parent), started=str(started))
    monkeypatch.setattr(lab_run, "steadyhand", lambda *words: (sys.executable, "-c", code, *words))
    return started


def run(settings: NoiseLabSettings, stop: threading.Event | None = None) -> NoiseLab:
    lab = NoiseLab(settings, stop or threading.Event())
    with Board(Console(quiet=True), list(lab.runs)) as board:
        lab.run(board)
    return lab


def one_cell(out: Path) -> NoiseLabSettings:
    return NoiseLabSettings(
        forms=(RewardForm.SUCCESS,), false_positive=(0.3,), false_negative=(0.15,), lag_s=(0.0,), seeds=(0,),
        steps=300, episodes=8, out=out,
    )  # fmt: skip


def test_every_cell_is_trained_judged_by_its_last_policy_written_down_and_kept(fake: Path, tmp_path: Path) -> None:
    settings = one_cell(tmp_path / "out")
    lab = run(settings)
    assert lab.problems == []
    noisy, quiet = lab.results()
    assert (noisy.noise, quiet.noise) == (Noise(0.3, 0.15), Noise())
    assert noisy.trials[0].final == Judged(2, 100, 1, 8, 4)
    # One of the recorded episodes was no success and nobody spoke of it; nobody denied one of the others.
    assert noisy.trials[0].words == Words(1, 0, 3, 0)
    lab_noise.write(settings, lab.results(), lab.problems, "steadyhand lab noise")
    data = json.loads((settings.out / "results.json").read_text())
    assert data["cells"][0]["noise"] == {"false_positive": 0.3, "false_negative": 0.15, "lag_s": 0.0}
    assert data["cells"][0]["place"]["rate"] == 0.5 and data["missing"] == []
    assert "| success | 30% | 15% | 0 s | 50.0% (" in (settings.out / "noise.md").read_text()
    assert (settings.out / "noise.png").read_bytes().startswith(b"\x89PNG")
    started = fake.read_text()
    assert started.count("evaluate --version 2 ") == 2 and "evaluate --version 1 " not in started
    run(settings)
    assert fake.read_text() == started


def test_what_was_stopped_is_said_and_nothing_of_it_is_called_a_result(fake: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    lab = run(one_cell(tmp_path), stop)
    assert lab.results() == [] and all("the same command goes on" in problem for problem in lab.problems)
    assert len(lab.problems) == 2 and not fake.exists()


def test_the_command_runs_the_short_form_and_says_where_the_results_are(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab_board, "stop_on_signals", lambda stop: None)
    copy = tmp_path / "copy.json"
    assert lab_noise.main(["--short", "--jobs", "2", "--out", str(tmp_path / "out"), "--json", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "50.0%" in said and "noise.png" in said
    assert json.loads(copy.read_text())["missing"] == []
    assert fake.read_text().count("train --run") == 4
