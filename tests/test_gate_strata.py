"""The golden set only grows, and the gate looks at every stratum of it by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from steadyhand_models import reward
from steadyhand_training import gate
from steadyhand_training.gate import Comparison, GateSettings, Judged, Quality, Trial
from steadyhand_training.golden import GoldenSet
from steadyhand_training.strata import ONE_CAMERA, Phase, Stratum

RULE = reward.Rule(threshold=0.7, debounce_frames=2)
OLD_LIFT, NEW_LIFT = (Stratum(light, ONE_CAMERA, Phase.LIFT) for light in (1, 2))
OLD_GRASP = Stratum(1, ONE_CAMERA, Phase.GRASP)
FINE = Quality(refuted=40, false=1, confirmed=40, found=39, balanced_accuracy=0.97)


def trial(*strata: Comparison, candidate: Quality = FINE) -> Trial:
    return Trial(candidate, FINE, 0, 0, 0, 0, 0, strata)


def compared(
    stratum: Stratum, refuted: int, false: tuple[int, int], confirmed: int = 0, found: tuple[int, int] = (0, 0)
) -> Comparison:
    champion, candidate = (Quality(refuted, f, confirmed, g, 0.9) for f, g in zip(false, found))
    return Comparison(stratum, candidate, champion)


def test_a_stratum_is_judged_by_its_own_frames_alone() -> None:
    strata = [OLD_GRASP] * 3 + [OLD_LIFT] * 3
    episode = Judged(
        np.array([0.9, 0.9, 0.1, 0.1, 0.9, 0.9], np.float32), np.array([-1, -1, -1, 0, 1, 1], np.int8), strata
    )
    found = gate.judge_strata([episode], RULE)
    assert (found[OLD_GRASP].refuted, found[OLD_GRASP].false, found[OLD_GRASP].confirmed) == (1, 1, 0)
    assert (found[OLD_LIFT].refuted, found[OLD_LIFT].confirmed, found[OLD_LIFT].found) == (0, 1, 1)
    whole = gate.judge([episode], RULE)
    assert (whole.refuted, whole.false, whole.confirmed, whole.found) == (1, 1, 1, 1)


def test_a_rise_in_one_stratum_is_refused_in_its_words_although_the_whole_got_better() -> None:
    better = dataclasses.replace(FINE, false=0)
    reason = gate.objection(trial(compared(NEW_LIFT, 14, (0, 3)), candidate=better), GateSettings())
    assert reason == "light 2, lift: false_success 0 -> 3 of 14 held-out episodes"


@pytest.mark.parametrize(("refuted", "margin"), [(1, 1), (3, 1), (20, 1), (40, 2), (100, 5)])
def test_what_is_checked_is_the_declared_margin(refuted: int, margin: int) -> None:
    settings = GateSettings()
    assert int(settings.margin(refuted)) == margin
    assert gate.objection(trial(compared(OLD_LIFT, refuted, (0, margin))), settings) == ""
    assert gate.objection(trial(compared(OLD_LIFT, refuted, (0, margin + 1))), settings)


def test_small_rises_do_not_add_up_and_what_the_champion_got_wrong_already_does_not_block() -> None:
    settings = GateSettings()
    assert gate.objection(trial(compared(OLD_LIFT, 10, (1, 2))), settings), "one more than the margin, step by step"
    assert gate.objection(trial(compared(OLD_LIFT, 10, (5, 5))), settings) == ""
    assert gate.objection(trial(compared(OLD_LIFT, 10, (5, 3))), settings) == ""


def test_recall_is_asked_of_every_stratum_with_evidence_of_it() -> None:
    settings = GateSettings()
    lost = compared(NEW_LIFT, 5, (0, 0), confirmed=10, found=(9, 5))
    assert gate.objection(trial(lost), settings) == "light 2, lift: recall 9 -> 5 of 10 held-out episodes"
    stray = compared(OLD_GRASP, 5, (0, 0), confirmed=1, found=(1, 0))
    assert gate.objection(trial(stray), settings) == "", "one frame in the wrong phase is no evidence"


def test_a_candidate_that_is_right_on_few_episodes_and_wrong_on_most_frames_is_refused() -> None:
    worse = dataclasses.replace(FINE, balanced_accuracy=0.55)
    assert gate.objection(trial(candidate=worse), GateSettings()).startswith("balanced_accuracy 0.970 -> 0.550")


def test_one_held_out_success_alone_cannot_keep_a_classifier_that_people_contradict() -> None:
    def judged(found: int, of: int, accuracy: float) -> Quality:
        return Quality(refuted=3, false=0, confirmed=of, found=found, balanced_accuracy=accuracy)

    def candidate(found: int, of: int, accuracy: float) -> Trial:
        return Trial(judged(found, of, accuracy), judged(of, of, 0.97), 5, 5, 0, 0, 0)

    settings = GateSettings()
    assert gate.objection(candidate(0, 1, 0.5), settings) == "", "it may be at an unusual place"
    assert gate.objection(candidate(1, 2, 0.75), settings) == "", "as may one of two"
    assert gate.objection(candidate(0, 2, 0.5), settings).startswith("recall 2 -> 0")
    assert gate.objection(candidate(3, 3, 0.75), settings).startswith("balanced_accuracy 0.970 -> 0.750")
    assert gate.objection(candidate(4, 4, 0.93), settings).startswith("balanced_accuracy 0.970 -> 0.930")


def test_of_thresholds_that_tell_episodes_alike_the_one_that_tells_frames_apart_is_chosen() -> None:
    lower = np.array([0.1, 0.2, 0.1, 0.62, 0.62, 0.62, 0.95, 0.95], np.float32)
    labels = np.array([-1, -1, -1, 1, 1, 1, 1, 1], np.int8)
    assert gate.choose_rule([Judged(lower, labels)], RULE, GateSettings()).threshold < 0.62


def test_what_was_never_recorded_speaks_neither_for_a_candidate_nor_against_it() -> None:
    late = np.array([0.1, 0.1, 0.3, 0.95], np.float32)  # one frame later than the classifier that ended the episode
    confirmed = Judged(late, np.array([-1, -1, 1, 1], np.int8), cut=True)
    assert gate.judge([confirmed], RULE).found == 1 and gate.right(confirmed, RULE)
    whole = dataclasses.replace(confirmed, cut=False)
    assert gate.judge([whole], RULE).found == 0 and not gate.right(whole, RULE)
    refuted = Judged(late, np.array([-1, -1, -1, -1], np.int8), cut=True)
    assert gate.judge([refuted], RULE).false == 0 and gate.right(refuted, RULE)


def test_a_first_classifier_is_ready_when_it_is_accurate_and_hardly_ever_wrong() -> None:
    settings = GateSettings()
    assert gate.unready(Quality(20, 1, 8, 8, 0.96), settings) == ""
    assert gate.unready(Quality(20, 2, 8, 8, 0.99), settings).startswith("false_success 2 of 20")
    assert gate.unready(Quality(20, 0, 8, 8, 0.94), settings).startswith("balanced_accuracy 0.940")
    assert gate.unready(Quality(20, 0, 0, 0, 0.99), settings).startswith("no_evidence")


def test_a_threshold_is_not_chosen_below_the_least_one() -> None:
    episodes = [Judged(np.array([0.6, 0.6], np.float32), np.array([1, 1], np.int8))]
    assert gate.choose_rule(episodes, RULE, GateSettings()).threshold < 0.6
    assert gate.choose_rule(episodes, RULE, GateSettings(), least_threshold=0.8).threshold >= 0.8


def test_the_golden_set_refuses_what_only_adds_to_full_strata_and_forgets_nothing() -> None:
    golden = GoldenSet(most_per_stratum=2)
    assert golden.offer(1, [OLD_LIFT, OLD_LIFT])
    assert golden.offer(2, [OLD_LIFT, OLD_GRASP])
    assert not golden.offer(3, [OLD_LIFT])
    assert golden.offer(4, [OLD_LIFT, NEW_LIFT]), "a new light comes in whatever there is of the old one"
    assert golden.offer(1, [NEW_LIFT]), "what is in stays in"
    assert golden.episodes == [1, 2, 4]
    assert golden.counts == {OLD_GRASP: 1, OLD_LIFT: 3, NEW_LIFT: 1}
    assert 3 not in golden and 2 in golden and len(golden) == 3
