"""First classifiers from labels alone, SiLRI's rule, roll-backs, suspect flags, new lights, and decisions."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from test_correction import CONTRACT, FOREVER, HIGH, LOW, QUICK, TASK, Robot, first_checkpoint, fool, ready

from steadyhand_models import reward
from steadyhand_models.messages import EndReason, LabelKind, Source
from steadyhand_training import course, gate
from steadyhand_training.correction import Correction, CorrectionError, CorrectionRule, Promotion, Start
from steadyhand_training.decisions import Decision, Verdict
from steadyhand_training.fitting import Fit
from steadyhand_training.veto import VetoSettings

SILRI = dataclasses.replace(QUICK, rule=CorrectionRule.SILRI)
GROW = dataclasses.replace(
    QUICK, start=Start.LABELS, first_batches=150, first_positive=20, first_negative=60, held_out_every=3, quiet_labels=4
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return first_checkpoint(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def robot(checkpoint: Path) -> Robot:
    return ready(checkpoint, QUICK)


def recording(robot: Robot) -> list[Decision]:
    decisions: list[Decision] = []
    robot.correction._record = decisions.append
    return decisions


def promote(robot: Robot, flags: int = 3) -> None:
    for _ in range(flags):
        robot.miss()
        robot.say(LabelKind.FALSE_POSITIVE)
    assert robot.correction.work(FOREVER) is not None


# -- from no classifier at all -------------------------------------------------------------------------------------


def test_the_first_classifier_grows_from_keys_alone_and_is_offered_when_it_is_ready() -> None:
    robot = Robot(GROW)
    decisions = recording(robot)
    for _ in range(10):
        robot.lift()
        robot.say(LabelKind.SUCCESS, after_s=0.0)
        robot.record([LOW] * 12, [14] * 12, Source.POLICY, EndReason.FAILURE)
        robot.say(LabelKind.FAILURE)
    assert robot.correction.offer == ""
    promotion = robot.correction.work(FOREVER)
    assert promotion is not None, decisions
    assert (promotion.previous, promotion.version) == (0, 1)
    assert promotion.quality.balanced_accuracy >= GROW.gate.ready_balanced_accuracy
    assert "hybrid" in robot.correction.offer
    assert decisions[-1].verdict is Verdict.FIRST
    silent = robot.lift()
    robot.correction.settle([silent])
    assert robot.rewarded(silent), "what nobody spoke of now pays by the classifier"


def test_until_it_is_ready_a_first_classifier_pays_nothing_and_says_why() -> None:
    robot = Robot(dataclasses.replace(GROW, first_batches=1))
    decisions = recording(robot)
    for _ in range(8):
        robot.lift()
        robot.say(LabelKind.SUCCESS, after_s=0.0)
        robot.record([LOW] * 12, [14] * 12, Source.POLICY, EndReason.FAILURE)
        robot.say(LabelKind.FAILURE)
        assert robot.correction.work(FOREVER) is None
    assert robot.correction.version == 0
    assert decisions and all(d.verdict is Verdict.REJECTED for d in decisions)
    assert decisions[-1].reason.startswith(("balanced_accuracy", "false_success"))
    assert not robot.rewarded(robot.lift())


def test_words_about_successes_alone_grow_nothing() -> None:
    robot = Robot(GROW)
    for _ in range(10):
        robot.record([HIGH] * 6, [6] * 6, Source.POLICY, EndReason.SUCCESS)
        robot.say(LabelKind.SUCCESS, after_s=-0.5)
        assert robot.correction.work(FOREVER) is None
    assert not robot.correction.busy


# -- SiLRI's rule --------------------------------------------------------------------------------------------------


def test_silris_rule_takes_ten_batches_of_each_class_per_flag_and_asks_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    robot = Robot(SILRI)
    robot.prepare()
    assert robot.correction.threshold == course.SILRI_THRESHOLD
    assert robot.correction.evidence.held_out() == []
    batches: list[int] = []
    draw = course.fitting.draw

    def spy(pools: object, batch: int, rng: np.random.Generator) -> object:
        batches.append(batch)
        return draw(pools, batch, rng)  # type: ignore[arg-type]

    monkeypatch.setattr(course.fitting, "draw", spy)
    fool(robot, 1)
    robot.say(LabelKind.FALSE_POSITIVE)
    promotion = robot.correction.work(FOREVER)
    assert promotion is not None and promotion.version == 2
    assert batches == [256] * 10
    robot.record([LOW] * 12, [14] * 12, Source.POLICY, EndReason.TIMEOUT)
    robot.say(LabelKind.VERDICT_FAILURE)
    assert robot.correction.work(FOREVER) is None, "only what contradicts it trains"


def test_silris_rule_leaves_what_is_stored_as_it_was_but_for_the_flagged_episode(tmp_path: Path) -> None:
    robot = Robot(SILRI)
    robot.prepare()
    silent = fool(robot, 2)
    robot.correction.settle(silent)
    [flagged] = fool(robot, 1)
    robot.correction.settle([flagged])
    for _ in range(4):
        robot.say(LabelKind.FALSE_POSITIVE, episode=flagged)
        robot.correction.work(FOREVER)
    assert not robot.rewarded(silent[0]), "the classifier of now would not pay for it"
    stored = [robot.replay.reward[robot.replay.rows(e)].any() for e in (*silent, flagged)]
    assert stored == [True, True, False]
    robot.correction.save(tmp_path / "c.pt")
    robot.replay.reward[:] = 0.5
    Correction(CONTRACT, TASK, robot.replay, robot.ledger, SILRI, seed=0).load(tmp_path / "c.pt")
    again = [robot.replay.reward[robot.replay.rows(e)].any() for e in (*silent, flagged)]
    assert again == stored, "a restart remembers what it cannot work out"


# -- vetoes --------------------------------------------------------------------------------------------------------


def vetoed(robot: Robot) -> Promotion | None:
    """Seven successes in a row are denied; what becomes of it at once."""
    for _ in range(7):
        robot.lift()
        robot.say(LabelKind.FALSE_POSITIVE)
    return robot.correction.work(0.0) or robot.correction.work(FOREVER)


def test_vetoes_that_rise_beyond_doubt_bring_the_version_before_back_under_a_new_number(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, veto=VetoSettings(least_episodes=5)))
    decisions = recording(robot)
    for _ in range(8):
        robot.correction.settle([robot.lift()])
    before = robot.correction.champion
    promote(robot)
    after = robot.correction.champion
    assert before is not None and after is not None
    rolled_back = vetoed(robot)
    assert rolled_back is not None and rolled_back.version == 3
    assert "vetoes rose from" in rolled_back.reason
    assert robot.correction.champion is before
    assert robot.correction.metrics["rollbacks"] == 1
    assert "v3 is v1 again" in robot.correction.warnings[0]
    assert next(d.verdict for d in decisions if d.version == 3) is Verdict.ROLLED_BACK


def test_a_classifier_can_be_rolled_back_after_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, veto=VetoSettings(least_episodes=5))
    robot = ready(checkpoint, settings)
    for _ in range(8):
        robot.correction.settle([robot.lift()])
    before = robot.correction.champion
    promote(robot)
    for _ in range(7):
        robot.lift()
        robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.save(tmp_path / "c.pt")
    other = Correction(CONTRACT, TASK, robot.replay, robot.ledger, settings, seed=0)
    other.load(tmp_path / "c.pt")
    promotion = other.work(0.0) or other.work(FOREVER)
    assert promotion is not None and "vetoes rose" in promotion.reason
    assert before is not None and other.champion is not None
    rows = np.arange(20)
    np.testing.assert_array_equal(other.champion.scores.of(rows), before.scores.of(rows))


# -- suspect flags -------------------------------------------------------------------------------------------------


def praised(robot: Robot, episodes: int) -> None:
    for _ in range(episodes):
        robot.lift()
        robot.say(LabelKind.VERDICT_SUCCESS)


def test_a_flag_that_classifier_and_neighbours_contradict_goes_to_review_and_blocks_nothing(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, quiet_labels=100))
    decisions = recording(robot)
    praised(robot, 8)
    robot.correction.work(FOREVER)
    episode = robot.lift()
    robot.say(LabelKind.FALSE_POSITIVE)  # a wrong key: it was a lift like the others
    assert robot.correction.work(FOREVER) is None
    assert robot.correction.evidence.review == [episode]
    assert (robot.correction.version, robot.correction.rejections) == (1, 0)
    assert decisions[-1].verdict is Verdict.REVIEW and decisions[-1].episodes == (episode,)
    assert episode not in (*robot.correction.evidence.taught(), *robot.correction.evidence.held_out())


def test_flags_that_pile_up_on_what_looks_alike_are_believed_in_the_end(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, quiet_labels=100))
    praised(robot, 5)
    robot.correction.work(FOREVER)
    flagged = []
    while not robot.correction.busy and len(flagged) < 12:
        flagged.append(robot.lift())
        robot.say(LabelKind.FALSE_POSITIVE)
        robot.correction.work(0.0)
        if not robot.correction.busy:
            assert robot.correction.evidence.review == flagged
    evidence = robot.correction.evidence
    assert 3 <= len(flagged) < 12, "two may be wrong keys"
    assert flagged[-1] in evidence.fresh and len(evidence.fresh) > 1, "it calls back those that it looks like"


def test_a_wrong_key_under_a_new_light_is_known_by_how_lifts_looked_under_the_old_one(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, quiet_labels=100))
    praised(robot, 8)
    robot.correction.work(FOREVER)
    dimmed(robot)
    episode = robot.lift()
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(FOREVER)
    assert robot.correction.evidence.strata.light(episode) == 2
    assert robot.correction.evidence.review == [episode]


def test_any_word_may_be_a_wrong_key(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, quiet_labels=100))
    praised(robot, 8)
    robot.correction.work(FOREVER)
    episode = robot.lift()
    robot.say(LabelKind.FAILURE)
    robot.correction.work(FOREVER)
    assert robot.correction.evidence.review == [episode]


def test_a_held_out_word_that_candidates_in_turn_contradict_goes_to_review(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, quiet_labels=2))
    praised(robot, 8)
    for _ in range(4):
        robot.miss()
        robot.say(LabelKind.FAILURE)
    robot.correction.work(FOREVER)
    evidence, episode = robot.correction.evidence, robot.lift()
    robot.say(LabelKind.FAILURE)
    evidence.admit(episode)
    evidence._admitted[episode] = True  # a wrong key that judges every candidate from now on
    robot.correction._docket.drop([episode])
    assert episode in evidence.held_out()
    for candidate in (1, 2):
        praised(robot, 2)
        robot.correction.work(FOREVER)
        assert (episode in evidence.review) == (candidate == 2)


def test_doubts_outlive_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    robot = ready(checkpoint, QUICK)
    assert not robot.correction.evidence.doubt(3)
    robot.correction.save(tmp_path / "doubts.pt")
    other = Correction(CONTRACT, TASK, robot.replay, robot.ledger, QUICK, seed=0)
    other.load(tmp_path / "doubts.pt")
    assert other.evidence.doubt(3)


def test_a_network_that_looks_at_something_else_is_not_taken_up(checkpoint: Path) -> None:
    levels = dataclasses.replace(QUICK, fit=dataclasses.replace(QUICK.fit, light_invariant=False))
    with pytest.raises(CorrectionError, match="light_invariant = True"):
        ready(checkpoint, levels)


def test_a_single_episode_weighs_less_than_a_pool_of_several(robot: Robot) -> None:
    several = [robot.miss() for _ in range(8)]
    for episode in several:
        robot.say(LabelKind.FALSE_POSITIVE, episode=episode)
    evidence = robot.correction.evidence
    assert (evidence.pool(several).weight, evidence.pool(several[:1]).weight) == (1.0, 0.25)


def test_a_flag_that_a_verdict_repeats_is_no_slip_of_the_finger(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, quiet_labels=100))
    praised(robot, 8)
    robot.correction.work(FOREVER)
    episode = robot.lift()
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.say(LabelKind.VERDICT_FAILURE, after_s=0.7)
    robot.correction.work(0.0)
    assert robot.correction.busy and robot.correction.evidence.fresh == [episode]


# -- lights --------------------------------------------------------------------------------------------------------


def dimmed(robot: Robot) -> None:
    robot.picture = functools.partial(_dim, robot.picture)  # type: ignore[method-assign]


def _dim(picture: object, arm: int, cube: int) -> np.ndarray:
    return (picture(arm, cube) * np.array([0.6, 0.5, 0.4])).astype(np.uint8)  # type: ignore[operator]


def test_a_new_light_is_held_out_early_has_its_share_of_batches_and_a_high_threshold_while_young(
    checkpoint: Path,
) -> None:
    robot = ready(checkpoint, QUICK)
    dimmed(robot)
    for _ in range(2):
        robot.miss()
        robot.say(LabelKind.FAILURE)
        robot.lift()
        robot.say(LabelKind.SUCCESS, after_s=0.0)
    robot.correction.work(FOREVER)
    evidence = robot.correction.evidence
    assert evidence.strata.newest_light == 2
    new = [e for e in evidence.held_out() if evidence.strata.light(e) == 2]
    assert len(new) == 2, "the second failure and the second success"
    lights = [{evidence.strata.light(int(e)) for e in robot.replay.episode[p.negative]} for p in evidence.pools(20)]
    assert {1} in lights and {2} in lights and {1, 2} not in lights
    assert robot.correction.version == 1 or robot.correction.threshold >= QUICK.young_light_threshold


def test_failures_alone_under_a_new_light_do_not_make_it_a_sign_of_failure(checkpoint: Path) -> None:
    robot = ready(checkpoint, QUICK)
    dimmed(robot)
    promote(robot, flags=5)
    champion, lift, miss = robot.correction.champion, robot.lift(), robot.miss()
    assert champion is not None
    held, empty = (robot.correction.judge.lower(champion, e)[-4:].min() for e in (lift, miss))
    assert held > 0.5, "it is still a success where nobody has shown one"
    assert held > empty


def test_every_decision_has_the_figures_of_every_stratum(checkpoint: Path) -> None:
    robot = ready(checkpoint, QUICK)
    decisions = recording(robot)
    promote(robot)
    [decision] = [d for d in decisions if d.verdict is Verdict.PROMOTED]
    assert decision.trial is not None and decision.quality == decision.trial.candidate
    named = {str(c.stratum) for c in decision.trial.strata}
    assert named and all(name.startswith("light 1, ") for name in named)
    manifest = robot.correction.artifact(2).manifest
    assert manifest.metrics["held_out_light_1_balanced_accuracy"] == decision.quality.balanced_accuracy


# -- drift ---------------------------------------------------------------------------------------------------------


def test_caution_raises_the_threshold_that_was_found(robot: Robot) -> None:
    judge, champion = robot.correction.judge, robot.correction.champion
    assert champion is not None
    plain, careful, most = (
        judge.calibrated(Fit(champion.net, QUICK.fit).net, lift=lift).rule.threshold for lift in (0.0, 0.1, 1.0)
    )
    assert careful == pytest.approx(min(plain + 0.1, gate.THRESHOLDS[-1]))
    assert most == gate.THRESHOLDS[-1]


def unsure(robot: Robot) -> int:
    """A success of which the classifier in force is just sure enough; its episode."""
    episode, judge, champion = robot.lift(), robot.correction.judge, robot.correction.champion
    assert champion is not None
    net = copy.deepcopy(champion.net)
    net.temperature.fill_(4.0)
    second = float(np.sort(judge.lower(judge.standing(net, 0.5), episode))[-2])
    robot.correction._in_force.champion = judge.standing(net, round(second - 0.01, 2))
    robot.correction.settle([episode])
    assert robot.rewarded(episode)
    return episode


def test_drift_lifts_the_threshold_in_force_at_once_and_its_end_takes_that_back(robot: Robot) -> None:
    decisions, episode = recording(robot), unsure(robot)
    found, net = robot.correction.threshold, robot.correction.champion.net
    robot.correction.caution = 0.05
    lifted = robot.correction.work(FOREVER)
    assert lifted is not None and (lifted.previous, lifted.version) == (1, 2)
    assert robot.correction.threshold == min(round(found + 0.05, 2), gate.THRESHOLDS[-1]) > found
    assert not robot.replay.reward[robot.replay.rows(episode)].any() and lifted.flipped > 0
    assert robot.correction.artifact(2).manifest.threshold == robot.correction.threshold
    assert robot.correction.work(FOREVER) is None, "once"
    robot.correction.caution = 0.0
    assert robot.correction.work(FOREVER).version == 3
    assert robot.correction.threshold == found
    assert robot.replay.reward[robot.replay.rows(episode)].any()
    assert robot.correction.champion.net is net and robot.correction.since == 1
    assert robot.correction.metrics["promotions"] == 0
    assert [(d.verdict, d.version) for d in decisions] == [(Verdict.LIFTED, 2), (Verdict.LIFTED, 3)]
    assert decisions[0].reason == f"drift: threshold {found} -> {lifted.threshold}"
    assert robot.correction.artifact(3).manifest.parent == 2


def test_a_threshold_stays_lifted_where_the_lower_one_would_call_more_failures_a_success(robot: Robot) -> None:
    decisions = recording(robot)
    for _ in range(8):
        robot.miss()
        robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(0.0)
    robot.correction._course = None  # what was said is noted, and no candidate has come of it yet
    judge, champion = robot.correction.judge, robot.correction.champion
    assert champion is not None
    net = copy.deepcopy(champion.net)
    net.temperature.fill_(4.0)
    probing = judge.standing(net, 0.5)
    held_out = robot.correction.evidence.held_out()
    refuted = [e for e in held_out if (robot.ledger.frame_labels(e, robot.replay) <= 0).all()]
    assert len(refuted) >= 2
    highest = max(float(judge.lower(probing, e).max()) for e in refuted)
    standing = dataclasses.replace(judge.standing(net, round(highest + 0.02, 2)), found=0.5)
    robot.correction._in_force.champion = standing
    assert robot.correction.work(0.0) is None
    assert (robot.correction.threshold, robot.correction.version) == (standing.rule.threshold, 1)
    assert "drift is over" in decisions[-1].reason and "false_success 0 -> 2" in decisions[-1].reason
    assert robot.correction.champion.found == standing.rule.threshold, "it is not asked again"


def test_a_lifted_threshold_outlives_a_restart_and_is_still_taken_back(robot: Robot, tmp_path: Path) -> None:
    unsure(robot)
    found = robot.correction.threshold
    robot.correction.caution = 0.05
    robot.correction.work(FOREVER)
    robot.correction.save(tmp_path / "c.pt")
    other = Correction(CONTRACT, TASK, robot.replay, robot.ledger, QUICK, seed=0)
    other.load(tmp_path / "c.pt")
    assert (other.threshold, other.version, other.since) == (robot.correction.threshold, 2, 1)
    other.caution = 0.0
    assert other.work(FOREVER) is not None and other.threshold == found


@pytest.mark.parametrize("given", ["silri", "success_threshold"])
def test_drift_leaves_a_threshold_alone_that_somebody_gave(given: str, checkpoint: Path) -> None:
    settings = SILRI if given == "silri" else QUICK
    paid = reward.RewardSettings(success_threshold=None if given == "silri" else 0.6)
    robot = Robot(settings)
    robot.correction = Correction(CONTRACT, TASK, robot.replay, robot.ledger, settings, seed=0, paid=paid)
    robot.prepare()
    before = robot.correction.threshold
    robot.correction.caution = 0.05
    assert robot.correction.work(FOREVER) is None
    assert (robot.correction.threshold, robot.correction.version) == (before, 1)


def test_a_lift_keeps_the_way_back_to_the_version_that_the_champion_replaced(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, veto=VetoSettings(least_episodes=5)))
    for _ in range(8):
        robot.correction.settle([robot.lift()])
    first = robot.correction.champion
    promote(robot)
    champion = robot.correction.champion
    assert first is not None and champion is not None
    robot.correction._in_force.champion = dataclasses.replace(
        champion, rule=robot.correction.judge.rule(0.6), found=0.6
    )
    robot.correction.caution = 0.05
    assert robot.correction.work(FOREVER).version == 3
    rolled_back = vetoed(robot)
    assert rolled_back is not None and "vetoes rose" in rolled_back.reason
    assert robot.correction.champion is first or robot.correction.champion.net is first.net
