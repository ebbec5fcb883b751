"""The drift experiment: what its lines are started with, what a run's trace and its figures mean, and what is kept."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import training_steps as given
from rich.console import Console

from steadyhand_models import settings as toml
from steadyhand_models.messages import Channel, EndReason, LabelKind, Source, Step
from steadyhand_models.registry import Registry
from steadyhand_training import lab_board, lab_drift, lab_lines, lab_run, lab_trace
from steadyhand_training import lab_drift_results as drift
from steadyhand_training.gate import GateSettings
from steadyhand_training.journal import Journal
from steadyhand_training.lab_board import Board
from steadyhand_training.lab_drift import DriftLab, DriftLabSettings, shortened
from steadyhand_training.lab_drift_results import Evaluated, LineResult, Standing, Trial
from steadyhand_training.lab_lines import DRIFT_RECIPES, DriftLine
from steadyhand_training.lab_trace import Window
from steadyhand_training.plots import drift_lines

sys.path.insert(0, str(Path(__file__).parent))
from test_publish import made

HIGH, LOW = np.array([0.9], np.float32), np.array([0.1], np.float32)


def classifier(version: int, step: int, threshold: float = 0.5):
    artifact = made(version, Channel.CLASSIFIER)
    manifest = dataclasses.replace(artifact.manifest, training_step=step, threshold=threshold, debounce_frames=1)
    return dataclasses.replace(artifact, manifest=manifest)


def ended(episode: int, said: np.ndarray, by: str, source: Source = Source.POLICY) -> list[Step]:
    """Ten steps of the policy; the classifier says `said` at each, and `by` ended it."""
    steps = [given.step(episode, t, source=source) for t in range(9)]
    reason = EndReason.TIMEOUT if by == "limit" else EndReason.SUCCESS
    last = given.step(episode, 9, source=source, end=reason)
    steps.append(dataclasses.replace(last, reasons=(f"ended_by_{by}",)))
    return [dataclasses.replace(s, classifier=said, classifier_version=1, policy_version=1) for s in steps]


def recorded(root: Path) -> Path:
    """A run of four episodes: a true success alone, a false one, a missed one with a flag, and one with a takeover."""
    registry = Registry(root / "registry")
    registry.publish(classifier(1, 0))
    registry.publish(classifier(2, 25))
    episodes = [
        ended(1, HIGH, "classifier"),
        ended(2, HIGH, "classifier"),
        ended(3, LOW, "operator"),
        ended(4, LOW, "operator", Source.TAKEOVER),
    ]
    flag = given.label(3, 5, LabelKind.FALSE_NEGATIVE)
    messages = [m for e in episodes for m in e]
    journal = Journal(root / "journal.sqlite")
    journal.commit("edge", given.RUN, list(given.records([*messages, flag])), given.CONTRACT)
    journal.close()
    rows = ["stamp_ns,lifted_m,grasped,success,cube_x,cube_y"]
    rows += [f"{m.stamp_ns},0,0,{int(m.episode != 2)},0,0" for m in messages]
    (root / "truth.csv").write_text("\n".join(rows) + "\n")
    event = {"kind": "promotion", "promotion": {"version": 2, "previous": 1, "flipped": 7, "actions": 20}}
    (root / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    return root


def test_a_trace_joins_what_was_recorded_with_what_was_true(tmp_path: Path) -> None:
    trace = lab_trace.read(recorded(tmp_path))
    assert trace.steps == 40
    assert [(e.step, e.alone, e.false_success) for e in trace.episodes] == [
        (9, True, False),
        (19, False, True),
        (29, True, False),
        (39, False, False),
    ]
    assert trace.flags == (25,)
    assert [(p.version, p.step, p.flipped) for p in trace.promoted] == [(1, 0, 0), (2, 25, 7)]


def test_windows_count_each_step_once(tmp_path: Path) -> None:
    trace = lab_trace.read(recorded(tmp_path))
    first, second, rest = lab_trace.windows(trace, 15)
    assert [(w.begin, w.end) for w in (first, second, rest)] == [(0, 15), (15, 30), (30, 40)]
    assert (first.episodes, first.alone, first.false_successes, first.flags) == (1, 1, 0, 0)
    assert (second.episodes, second.alone, second.false_successes, second.flags, second.flipped) == (2, 1, 1, 1, 7)
    # Steps 10 to 14 are of the second episode: said to be success, and none.
    assert (first.negatives, first.false_positives, first.positives, first.false_negatives) == (5, 5, 10, 0)
    assert (rest.false_negative_rate, rest.false_positive_rate) == (1.0, None)
    assert second.success == 0.5 and second.false_share == 0.5


@pytest.mark.parametrize(("false", "outside"), [(0, 0), (1, 0), (2, 1)])
def test_a_promotion_beyond_the_margin_in_one_stratum_is_found_in_the_record(
    tmp_path: Path, false: int, outside: int
) -> None:
    """Of ten episodes that never succeed, one may newly be a false success."""
    kept = {"refuted": 10, "false": 0, "confirmed": 10, "found": 10, "balanced_accuracy": 1.0}
    strata = [
        {"stratum": {"light": light}, "candidate": kept | {"false": false * light}, "champion": kept}
        for light in (0, 1)
    ]
    rows = [{"verdict": "promoted", "trial": {"strata": strata}}, {"verdict": "rejected", "trial": {"strata": []}}]
    assert lab_trace.outside_margin(tmp_path, GateSettings()) is None
    (tmp_path / "decisions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lab_trace.outside_margin(tmp_path, GateSettings()) == outside


def test_the_real_commands_understand_what_every_line_is_started_with() -> None:
    from steadyhand_runtime.config import RewardSource
    from steadyhand_runtime.sim.lockstep import LockstepSettings
    from steadyhand_training.trainer_settings import TrainerSettings

    assert set(DRIFT_RECIPES) == set(DriftLine)
    for line, recipe in DRIFT_RECIPES.items():
        words = lab_lines.trainer_words(recipe, "runs/x", 3, "lift")
        toml.parse_command_line(TrainerSettings, words[1:], "train", "")
        words = lab_lines.robot_words(recipe, "runs/x", 3, "lift", 700, "tcp://127.0.0.1:9")
        robot = toml.parse_command_line(LockstepSettings, words[2:], "lockstep", "")
        person = robot.operator
        perfect = person.wrong_key_rate == 0 and person.verdict_rate == 1
        assert perfect == (line is DriftLine.TRUTH)
        assert perfect or (person.reaction_lo_s, person.reaction_hi_s, person.wrong_key_rate) == (0.3, 0.8, 0.05)
        wanted = {DriftLine.TRUTH: RewardSource.MANUAL}
        wanted |= dict.fromkeys((DriftLine.FIXED, DriftLine.FIXED_INVARIANT), RewardSource.CLASSIFIER)
        assert robot.control.reward_source is wanted.get(line, RewardSource.HYBRID)


# -- figures -----------------------------------------------------------------------------------------------------------


def evaluated(won: int, of: int = 100, false: int = 0) -> Evaluated:
    return Evaluated(tuple(i < won for i in range(of)), false)


def trial(*classifiers: Standing, won: int = 90, deployed: Evaluated | None = None, seed: int = 0) -> Trial:
    window = Window(0, 500, 10, 5, 1, 3, 4, 100, 5, 20, 2)
    return Trial(
        seed=seed,
        minutes=2.0,
        change_step=500,
        windows=(window, dataclasses.replace(window, begin=500, end=1000)),
        final=window,
        classifiers=classifiers,
        alone=evaluated(won),
        deployed=deployed,
        outside_margin=None,
    )


def met(what: str, *results: LineResult) -> bool | None:
    (found,) = [t for t in drift.targets(results) if what in t.what]
    return found.met


def corrected(*trials: Trial) -> LineResult:
    return LineResult("corrected", "corrected classifier", trials)


BEFORE = Standing(1, 300, 0, 0.97, 0.6)


@pytest.mark.parametrize(
    ("later", "recovered", "kept"),
    [
        ((Standing(2, 600, 20, 0.96, 0.96),), True, True),
        ((Standing(2, 600, 61, 0.96, 0.96),), False, True),
        ((Standing(2, 600, 20, 0.94, 0.90), Standing(3, 700, 30, 0.96, 0.97)), True, False),
        ((Standing(2, 600, 20, 0.96, 0.97), Standing(3, 700, 30, 0.90, 0.97)), True, True),
        ((Standing(2, 600, 20, 0.96, 0.94),), False, True),
    ],
)
def test_a_classifier_has_recovered_within_its_flags_without_forgetting_the_old_light(
    later: tuple[Standing, ...], recovered: bool, kept: bool
) -> None:
    line = corrected(trial(BEFORE, *later))
    assert met("within 60 flags", line) is recovered
    assert met("under the old one", line) is kept


def test_every_seed_must_recover() -> None:
    good, bad = trial(BEFORE, Standing(2, 600, 20, 0.96, 0.96)), trial(BEFORE, seed=1)
    assert met("within 60 flags", corrected(good)) is True
    assert met("within 60 flags", corrected(good, bad)) is False


def test_the_policy_is_compared_episode_by_episode_with_the_true_rewards() -> None:
    truth = LineResult("truth", "true reward", (trial(won=95),))
    assert met("within 5 points", corrected(trial(won=90)), truth) is True
    assert met("within 5 points", corrected(trial(won=89)), truth) is False
    assert met("within 5 points", corrected(trial(won=89))) is None


def false_ends(name: str, evaluated_: int, robot: int) -> LineResult:
    """So many of 100 evaluated episodes, and of 100 on the robot at the end."""
    made = trial(deployed=evaluated(80, false=evaluated_))
    final = dataclasses.replace(made.final, episodes=100, false_successes=robot)
    return LineResult(name, name, (dataclasses.replace(made, final=final),))


@pytest.mark.parametrize(("evaluated_", "robot", "few"), [(4, 4, True), (5, 4, False), (4, 5, False)])
def test_false_ends_are_few_in_evaluation_and_on_the_robot(evaluated_: int, robot: int, few: bool) -> None:
    assert met("end under 5%", false_ends("corrected", evaluated_, robot)) is few


@pytest.mark.parametrize(
    ("ours", "silri", "half"),
    [((4, 4), (9, 9), True), ((4, 4), (8, 9), False), ((4, 4), (9, 8), False), ((0, 4), (0, 9), True)],
)
def test_false_ends_are_under_half_of_what_silri_leaves_in_evaluation_and_on_the_robot(
    ours: tuple[int, int], silri: tuple[int, int], half: bool
) -> None:
    assert met("half of what SiLRI", false_ends("corrected", *ours), false_ends("silri", *silri)) is half
    assert met("half of what SiLRI", false_ends("corrected", *ours)) is None


def test_what_was_not_recorded_is_neither_met_nor_missed() -> None:
    assert met("gate's margin", corrected(trial(BEFORE))) is None
    assert met("gate's margin", corrected(dataclasses.replace(trial(BEFORE), outside_margin=0))) is True
    assert met("gate's margin", corrected(dataclasses.replace(trial(BEFORE), outside_margin=1))) is False


def test_a_table_and_a_drawing_need_neither_classifier_nor_more_than_one_seed() -> None:
    lines = [corrected(trial(BEFORE, deployed=evaluated(80))), LineResult("truth", "true reward", (trial(won=95),))]
    table = drift.rows(lines)
    assert table[0][3:6] == ("80.0%", "0.0%", "97.0% / 60.0%") and table[1][3:6] == ("–", "–", "–")
    assert drift_lines(lines).startswith(b"\x89PNG")


# -- the whole ---------------------------------------------------------------------------------------------------------

# Stands in for `steadyhand`: a trainer that publishes, a robot that records, a probe and evaluations of fixed answers.
FAKE = """
import json, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
words = sys.argv[1:]
with open({started!r}, "a") as file:
    file.write(" ".join(words) + "\\n")
options = dict(zip(words[1::2], words[2::2])) if words[0] == "train" else dict(zip(words[2::2], words[3::2]))
if words[0] == "train":
    from test_lab_drift import recorded
    from test_publish import made
    from steadyhand_models.registry import Registry
    root = Path(options["--run"])
    recorded(root)
    Registry(root / "registry").publish(made(1))
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
    (root / "trainer.json").write_text(json.dumps(dict(link="tcp://127.0.0.1:1")))
    while True:
        time.sleep(0.05)
elif words[1] == "lockstep":
    sys.exit(0)
elif words[1] == "probe":
    good = dict(version=2, balanced_accuracy=0.97)
    old = dict(version=1, balanced_accuracy=0.96 if options["--at-step"] == "0" else 0.6)
    Path(options["--json"]).write_text(json.dumps(dict(verdicts=[old, good])))
else:
    won = [dict(success=i % 4 > 0) for i in range(int(options["--episodes"]))]
    Path(options["--json"]).write_text(json.dumps(dict(episodes=won, false_successes=1)))
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Install the stand-in; the file that lists what was started."""
    started = tmp_path / "started"
    code = FAKE.format(tests=str(Path(__file__).parent), started=str(started))
    monkeypatch.setattr(lab_run, "steadyhand", lambda *words: (sys.executable, "-c", code, *words))
    return started


def run(settings: DriftLabSettings) -> DriftLab:
    lab = DriftLab(settings, threading.Event())
    with Board(Console(quiet=True), list(lab.runs)) as board:
        lab.run(board)
    return lab


def test_a_line_is_trained_judged_under_both_lights_written_down_and_kept(fake: Path, tmp_path: Path) -> None:
    settings = DriftLabSettings(
        seeds=(0,), steps=300, change_step=20, episodes=8, every_steps=50, lines=(DriftLine.CORRECTED,), out=tmp_path
    )
    lab = run(settings)
    assert lab.problems == []
    (only,) = lab.results()[0].trials
    assert [(c.version, c.flags, c.old_light, c.new_light) for c in only.classifiers] == [
        (1, 0, 0.96, 0.6),
        (2, 0, 0.97, 0.97),
    ]
    assert only.alone.rate == 0.75 and only.deployed is not None and only.deployed.false_share == 1 / 8
    lab_drift.write(settings, lab.results(), lab.problems, "steadyhand lab drift")
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["lines"]["corrected"]["trials"][0]["success_deployed"] == 0.75
    assert data["targets"][0]["met"] is True
    assert "| corrected classifier | 75.0%" in (tmp_path / "drift.md").read_text()
    words = fake.read_text()
    assert "--light moved_lamp --light-change-step 20" in words and words.count("sim evaluate") == 2
    run(settings)
    assert fake.read_text() == words


def test_short_is_one_seed_of_the_corrected_and_the_fixed_line(fake: Path, tmp_path: Path) -> None:
    few = shortened(DriftLabSettings(short=True, seeds=(4, 5)))
    assert (few.seeds, few.lines, few.steps) == ((4,), (DriftLine.CORRECTED, DriftLine.FIXED), 2500)
    assert few.change_step < few.steps / 2
    assert shortened(DriftLabSettings()) == DriftLabSettings()


def test_the_command_says_what_was_shown_and_where_the_results_are(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab_board, "stop_on_signals", lambda stop: None)
    copy = tmp_path / "copy.json"
    assert lab_drift.main(["--short", "--out", str(tmp_path / "out"), "--json", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "yes" in said and "75.0%" in said and "drift.png" in said
    assert json.loads(copy.read_text())["missing"] == []
