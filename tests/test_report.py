"""The report: facts joined from what a run leaves, whole or broken off."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from training_steps import CONTRACT, PERIOD_NS, RUN, label, step

from steadyhand_models import wire
from steadyhand_models.artifact import Artifact, Golden, Manifest, digest
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, EndReason, Label, LabelKind, Record, Source, Step, Swap, SwapOutcome
from steadyhand_models.registry import Registry
from steadyhand_training import report, video
from steadyhand_training.facts import TruthTrack, gather, moving, read_truth
from steadyhand_training.journal import Journal

LENGTH = 8


def episode(
    number: int,
    end: EndReason,
    by: str,
    source: Source = Source.POLICY,
    takeover_steps: int = 0,
    classifier: int = 1,
    probability: float = 0.1,
) -> list[Step]:
    """An episode of LENGTH steps with their actions, and its end."""
    steps = []
    for seq in range(LENGTH + 1):
        last = seq == LENGTH
        who = Source.TAKEOVER if seq < takeover_steps else source
        made = step(number, seq, source=who, end=end if last else None)
        judged = np.array([probability] * 3, np.float32) if classifier else None
        steps.append(
            dataclasses.replace(
                made,
                reasons=(f"ended_by_{by}",) if last else (),
                classifier=judged,
                classifier_version=classifier,
                policy_version=1 if source is Source.POLICY else 0,
            )
        )
    return steps


def swap(channel: Channel, version: int, tick: int, outcome: SwapOutcome = SwapOutcome.SWAPPED) -> Swap:
    return Swap(channel, version, version - 1, outcome, "", tick, tick * PERIOD_NS, 0.02, 0, 0.0001)


def artifact(channel: Channel, version: int) -> Artifact:
    golden = Golden(
        np.zeros((4, *CONTRACT.frames_shape), np.uint8),
        np.zeros((4, len(CONTRACT.state)), np.float32),
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), np.float32),
    )
    manifest = Manifest(
        channel, version, version - 1, CONTRACT.hash, digest(b"onnx", golden), 1, 0.0, "tick", 1e-4, threshold=0.6
    )
    return Artifact(manifest, b"onnx", golden)


def fill_journal(root: Path, messages: list[Step | Label | Swap]) -> None:
    journal = Journal(root / "journal.sqlite")
    records = [Record(i + 1, wire.encode(message)) for i, message in enumerate(messages)]
    journal.commit("edge", RUN, records, CONTRACT)
    journal.commit("edge", RUN, records[:3], CONTRACT)
    journal.close()


def truth_rows(true_from: dict[int, int], episodes: int) -> str:
    """truth.csv at twice the control rate; success from a step of an episode to its end."""
    lines = ["stamp_ns,lifted_m,grasped,success,cube_x,cube_y"]
    for number in range(1, episodes + 1):
        for half in range(2 * LENGTH + 1):
            first = true_from.get(number)
            success = first is not None and half >= 2 * first
            stamp_ns = (number * 1000) * PERIOD_NS + half * PERIOD_NS // 2
            lines.append(f"{stamp_ns},0.05,1,{int(success)},0.2,0.0")
    return "\n".join(lines) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A short run: a demonstration, a fooled classifier, a missed success, a helped one, a success alone, a timeout."""
    messages: list[Step | Label | Swap] = [
        *episode(1, EndReason.SUCCESS, "operator", Source.DEMONSTRATION, classifier=0),
        label(1, LENGTH, LabelKind.SUCCESS),
        swap(Channel.POLICY, 1, 1900),
        *episode(2, EndReason.SUCCESS, "classifier", probability=0.9),
        label(2, LENGTH + 5, LabelKind.FALSE_POSITIVE),
        label(2, LENGTH + 7, LabelKind.VERDICT_FAILURE),
        *episode(3, EndReason.SUCCESS, "operator"),
        label(3, LENGTH, LabelKind.SUCCESS),
        swap(Channel.CLASSIFIER, 2, 3900),
        *episode(4, EndReason.SUCCESS, "classifier", takeover_steps=4, classifier=2, probability=0.9),
        *episode(5, EndReason.SUCCESS, "classifier", classifier=2, probability=0.9),
        label(5, LENGTH + 5, LabelKind.VERDICT_FAILURE, event_id="wrong"),
        label(5, LENGTH + 9, LabelKind.UNDO, undo_of="wrong"),
        *episode(6, EndReason.TIMEOUT, "limit", classifier=2),
        swap(Channel.POLICY, 2, 6900, SwapOutcome.REFUSED),
    ]
    fill_journal(tmp_path, messages)
    truth = truth_rows({1: 6, 3: 6, 4: 7, 5: 7}, 6)
    (tmp_path / "truth.csv").write_text(truth + "60800000", encoding="ascii")
    registry = Registry(tmp_path / "registry")
    for channel in Channel:
        for version in (1, 2):
            registry.publish(artifact(channel, version))
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "sim.toml").write_text('task = "lift" # <b>\n', encoding="utf-8")
    (tmp_path / "edge").mkdir()
    control = {"ticks": 900, "missed_ticks": 1, "period_s": 0.1, "late_s": {"p50": 1e-4, "p99": 2e-4},
               "late_max_s": 0.01, "late_histogram": [[1e-4, 800], [0.01, 100]]}  # fmt: skip
    (tmp_path / "edge" / "control.json").write_text(json.dumps(control), encoding="utf-8")
    (tmp_path / "evaluation_final.json").write_text('{"success_rate": 0.95, "episodes": 200}', encoding="utf-8")
    (tmp_path / "evaluation_behaviour_cloning.json").write_text('{"success_rate": 0.5}', encoding="utf-8")
    status = {"kind": "status", "stamp_ns": 2000 * PERIOD_NS, "updates_per_s": 80.0, "promotions": 1, "updates": 40}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(status) + "\n{broken", encoding="utf-8")
    return tmp_path


def test_every_episode_is_joined_with_truth_and_the_humans_word(run: Path) -> None:
    episodes = {e["episode"]: e for e in report.summarise(gather(run))["episodes"]}
    assert [episodes[n]["true_success"] for n in range(1, 7)] == [True, False, True, True, True, False]
    assert [episodes[n]["verdict"] for n in range(1, 7)] == ["success", "failure", "success", None, None, None]
    assert [episodes[n]["kind"] for n in (1, 2)] == ["demonstration", "policy"]
    assert episodes[4]["takeover_steps"] == 4 and episodes[6]["end"] == "timeout"


def test_an_undone_verdict_does_not_count(run: Path) -> None:
    assert gather(run).episodes[4].verdict == ""


def test_classifier_quality_is_counted_per_version_against_truth(run: Path) -> None:
    first, second = report.summarise(gather(run))["classifier"]
    assert (first["version"], first["episodes"], first["false_positives"], first["missed"]) == (1, 2, 1, 1)
    assert (second["version"], second["episodes"], second["false_positives"], second["missed"]) == (2, 3, 0, 0)
    assert first["frame_false_negative_rate"] == 1.0
    assert first["frame_false_positive_rate"] == pytest.approx(9 / 15)


def test_episodes_that_a_false_success_ended_are_counted_and_told(run: Path) -> None:
    summary = report.summarise(gather(run))
    assert summary["false_successes"] == {"episodes": 1, "of": 5, "last_20": 1}
    assert "a false success ended 1 of the policy's 5 episodes, 1 of its last 20" in report.headline(summary)


def test_success_alone_leaves_takeovers_out(run: Path) -> None:
    summary = report.summarise(gather(run))
    assert [p["rate"] for p in summary["autonomous_success"]] == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4, 2 / 5])
    assert summary["takeover_rate"] == pytest.approx(4 / (5 * (LENGTH + 1)))


def test_records_duplicates_and_swaps_are_counted(run: Path) -> None:
    summary = report.summarise(gather(run))
    assert summary["steps"] == {"recorded": None, "journal": 6 * (LENGTH + 1)}
    assert summary["records"]["resent_and_dropped"] == 3
    assert summary["records"]["duplicates"] == 0
    assert summary["versions"]["policy"]["published"] == 2
    assert summary["versions"]["policy"]["swapped"] == 1 and summary["versions"]["policy"]["refused"] == 1
    assert [s["tick"] for s in summary["swaps"]] == [1900, 3900, 6900]
    assert summary["labels"]["flags"] == 1 and summary["labels"]["promotions"] == 1
    assert summary["ticks"]["control"]["missed_ticks"] == 1


def test_the_best_version_is_named_by_truth_and_by_verdicts_apart(tmp_path: Path) -> None:
    messages: list[Step | Label | Swap] = []
    for number in range(1, 21):
        version, success = (1, True) if number <= 10 else (9, False)
        messages += [
            dataclasses.replace(s, policy_version=version) for s in episode(number, EndReason.SUCCESS, "limit")
        ]
        if number % 2:
            kind = LabelKind.VERDICT_SUCCESS if success else LabelKind.VERDICT_FAILURE
            messages.append(label(number, LENGTH + 5, kind))
    fill_journal(tmp_path, messages)
    (tmp_path / "truth.csv").write_text(truth_rows(dict.fromkeys(range(1, 11), 3), 20), encoding="ascii")
    summary = report.write(tmp_path, with_video=False)
    best = summary["best"]["truth"]
    assert best["version"] == 1 and best["success"] > 0.85 and "fell from" in best["fall"]
    assert summary["best"]["verdict"] is None  # five judged episodes are too few
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Best by ground truth: v1" in page and "Best by people" not in page


def test_warnings_and_values_of_learning_are_told_once_with_their_minute(run: Path) -> None:
    rows = [
        {"kind": "status", "stamp_ns": (1000 + 600 * i) * PERIOD_NS, "updates": 40 * i, "critic_q": 0.4, "q_bound": 1.0,
         "utd_ratio": 3.5, "warnings": ["The arm hardly moves."] if i else []}
        for i in range(4)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    learning = report.write(run, with_video=False)["learning"]
    assert learning["warnings"] == [{"time_s": 60.0, "warning": "The arm hardly moves."}]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("The arm hardly moves.") == 1 and "3.50 per recorded step" in page
    assert "0.40 of at most 1.00" in page


def test_the_page_needs_nothing_beside_it(run: Path) -> None:
    summary = report.write(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert json.loads((run / "summary.json").read_text(encoding="utf-8")) == summary
    assert page.count("<svg") >= 4 and 'src="data:video/' in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "&lt;b&gt;" in page and "# <b>" not in page
    assert "95%" in page and "behaviour cloning" in page


def test_an_empty_run_folder_still_gives_a_report(tmp_path: Path) -> None:
    summary = report.write(tmp_path)
    assert summary["steps"]["journal"] == 0 and summary["episodes"] == []
    assert "Nothing was recorded" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_run_without_truth_says_nothing_about_success(run: Path) -> None:
    (run / "truth.csv").unlink()
    summary = report.write(run, with_video=False)
    assert summary["autonomous_success"] == []
    assert all(e["true_success"] is None for e in summary["episodes"])
    assert all(q["episodes"] == 0 for q in summary["classifier"])


def test_a_run_broken_off_in_an_episode_is_reported(tmp_path: Path) -> None:
    fill_journal(tmp_path, [*episode(1, EndReason.SUCCESS, "operator")[:4]])
    assert report.write(tmp_path)["episodes"][0]["end"] is None


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        report.write(tmp_path / "nothing")


def test_truth_is_looked_up_by_the_nearest_row() -> None:
    track = TruthTrack(np.array([300, 100, 200]) * 1_000_000, np.array([True, False, True]))
    said, known = track.at(np.array([110, 160, 290, 900]) * 1_000_000)
    assert said.tolist() == [False, True, True, True] and known.tolist() == [True, True, True, False]
    assert track.any_between(0, 150_000_000) is False
    assert track.any_between(0, 200_000_000) is True
    assert track.any_between(400_000_000, 500_000_000) is None


def test_truth_rows_that_a_crash_cut_off_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("stamp_ns,lifted_m,grasped,success,cube_x,cube_y\n5,0,0,1,0,0\n7,0,0", encoding="ascii")
    assert len(read_truth(path)) == 1
    assert len(read_truth(tmp_path / "none.csv")) == 0


def test_the_moving_mean_is_of_the_last_values_only() -> None:
    assert moving([1, 0, 0, 1], window=2) == [1.0, 0.5, 0.0, 0.5]
    assert moving([]) == []


def test_the_video_shows_the_telling_episodes(run: Path) -> None:
    captions = [scene.caption for scene in video.choose(gather(run))]
    assert [c.split(",")[0] for c in captions] == [
        "demonstration: episode 1", "first policy", "with a takeover: episode 4", "last success alone: episode 5",
    ]  # fmt: skip
