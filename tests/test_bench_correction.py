"""The correction bench: words that contradict the classifier are followed from the key to the robot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_demo import STATUS

from steadyhand_training import bench_correction
from steadyhand_training.bench_correction import CorrectionBenchSettings, Figures, Tally, judge, measure, p90
from steadyhand_training.bench_relabel import Relabelling, relabel
from steadyhand_training.correction_times import PARTS, Journey, Way, journey, missed_between
from steadyhand_training.demo import Stop

S = 1_000_000_000
WAY = Way(3, 2, 0, S, 2 * S, 3 * S, 3 * S + S // 2, 4 * S, 5 * S)


def line(name: str, at_s: float, /, **what: Any) -> dict[str, Any]:
    return {"kind": name, "unix_s": 0.0, "stamp_ns": round(at_s * S), name: what}


def flag(at_s: float, episode: int, event_id: str = "f", kind: str = "false_positive", undo_of: str = "") -> Any:
    pressed_ns = round(at_s * S) - S // 10
    return line("label", at_s, event_id=event_id, kind=kind, stamp_ns=pressed_ns, episode=episode, undo_of=undo_of)


def published(at_s: float, version: int, channel: str = "classifier") -> dict[str, Any]:
    return line("publish", at_s, channel=channel, version=version)


def decided(at_s: float, verdict: str = "promoted") -> dict[str, Any]:
    return line("decision", at_s, verdict=verdict)


def swap(at_s: float, version: int, staged_s: float, outcome: str = "swapped") -> dict[str, Any]:
    stamps = {"found_ns": round((staged_s - 1) * S), "staged_ns": round(staged_s * S)}
    return line("swap", at_s, channel="classifier", version=version, outcome=outcome, **stamps)


RUN = [
    flag(10.0, 7),
    line("candidate", 12.0, episodes=[7]),
    {"kind": "status", "stamp_ns": 13 * S},
    decided(15.0),
    published(15.5, 9, "policy"),
    published(16.0, 2),
    swap(20.0, 2, 18.0),
]


def test_a_flag_is_followed_through_every_part_of_its_way() -> None:
    (way,) = journey(RUN).ways
    assert (way.episode, way.version) == (7, 2)
    parts = [way.part_s(since, until) for _, since, until in PARTS]
    assert parts == pytest.approx([0.1, 2.0, 3.0, 1.0, 1.0, 1.0])
    assert way.whole_s == pytest.approx(sum(parts)) == pytest.approx(8.1)


def test_a_candidate_for_other_episodes_or_one_that_was_refused_is_not_the_flag_s() -> None:
    early = [line("candidate", 10.5, episodes=[3]), decided(11.0), published(11.2, 2)]
    again = [line("candidate", 11.5, episodes=[7]), decided(12.0, "rejected"), line("candidate", 30.0, episodes=[7])]
    rest = [decided(31.0), published(31.5, 3), swap(33.0, 2, 12.5), swap(40.0, 3, 33.0)]
    (way,) = journey([flag(10.0, 7), *early, *again, *rest]).ways
    assert way.version == 3 and way.begun_ns == 30 * S


def test_words_without_a_promotion_are_counted_and_those_taken_back_or_agreed_with_are_not() -> None:
    lines = [*RUN, flag(21.0, 8, "g"), flag(21.5, 9, "h"), flag(22.0, 9, "u", "undo", undo_of="h")]
    later = [flag(23.0, 5, "s", "success"), line("candidate", 24.0, episodes=[8, 9]), decided(25.0, "rejected")]
    found = journey([*lines, *later])
    assert (found.contradictions, len(found.ways)) == (2, 1)


def test_a_word_that_went_to_review_is_on_its_way_no_longer() -> None:
    review = line("decision", 11.0, verdict="review", episodes=[7])
    found = journey([RUN[0], review, *RUN[1:]])
    assert (found.contradictions, found.ways, found.reviewed) == (1, (), 1)
    assert journey(RUN).reviewed == 0


def test_of_several_words_on_an_episode_the_first_counts() -> None:
    found = journey([*RUN, flag(10.5, 7, "v", "verdict_failure")])
    assert found.contradictions == 1 and found.ways[0].heard_ns == 10 * S


def test_a_version_that_was_replaced_before_its_boundary_counts_by_the_one_after_it_and_a_refused_one_does_not() -> (
    None
):
    assert journey([*RUN[:-1], swap(20.0, 2, 18.0, "refused")]).ways == ()
    (way,) = journey([*RUN[:-1], swap(30.0, 3, 28.0)]).ways
    assert (way.version, way.staged_ns) == (3, 28 * S)


def test_missed_ticks_are_those_between_the_key_and_the_staging() -> None:
    samples = [(0, 4), (S, 4), (2 * S, 5), (3 * S, 7), (4 * S, 9)]
    assert missed_between(samples, S + 1, 3 * S) == 3
    assert missed_between(samples, 0, 9 * S) == 0  # nothing is known that late


def test_targets_are_judged_by_median_worst_and_missed_ticks_and_not_without_a_measurement() -> None:
    slow = replace(WAY, staged_ns=11 * S)
    found = Figures(Journey(3, (WAY, WAY, slow)), missed_ticks=0, relabelling=Relabelling(100, 9.0, 1.0))
    assert [target.met for target in judge(found)] == [True, False, True, True]
    assert [target.met for target in judge(Figures())] == [None] * 4
    assert judge(replace(found, missed_ticks=2))[2].met is False


def test_nine_in_ten_do_not_exceed_the_p90() -> None:
    assert (p90(list(range(1, 11))), p90([3.0])) == (9, 3.0)


def test_the_tally_remembers_when_ticks_were_missed() -> None:
    tally = Tally()
    tally.control(replace(STATUS, stamp_ns=5, missed_ticks=2))
    assert tally.missed == [(5, 2)]


def test_relabelling_covers_every_stored_action() -> None:
    shares: list[float] = []
    found = relabel("lift", 400, 0, shares.append)
    assert found.steps == 400 and found.scoring_s > 0.0 and found.cached_s > 0.0 and shares[-1] == 1.0


def test_without_minutes_only_the_relabelling_is_measured_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stop, "install", lambda self: None)
    saved = tmp_path / "correction.json"
    words = ["--minutes", "0", "--relabel-steps", "400", "--json", str(saved)]
    assert bench_correction.main(words) == 0
    out = capsys.readouterr().out
    assert "relabelling" in out and "not measured" in out
    text = json.loads(saved.read_text(encoding="utf-8"))
    assert text["bench"] == "correction" and text["relabelling"]["steps"] == 400
    assert text["targets"][0]["met"] is None


@pytest.mark.slow
def test_in_real_time_flags_reach_the_robot_as_corrected_classifiers(tmp_path: Path) -> None:
    chosen = CorrectionBenchSettings(minutes=3.0, relabel_steps=0, run=tmp_path / "run")
    found = measure(chosen, Stop())
    assert found.journey.contradictions > 0
    for way in found.journey.ways:
        assert way.pressed_ns < way.heard_ns <= way.begun_ns < way.promoted_ns < way.published_ns < way.staged_ns
