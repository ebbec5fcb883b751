"""Every safeguard of the correction is missed when it is taken away: the check that holds with it fails without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_correction import FOREVER, HIGH, LOW, QUICK, Robot, first_checkpoint, fool, ready

from steadyhand_models import reward
from steadyhand_models.messages import EndReason, Label, LabelKind, Source
from steadyhand_training import gate, labels
from steadyhand_training.evidence import Evidence
from steadyhand_training.gate import Comparison, GateSettings, Quality, Trial
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay
from steadyhand_training.strata import ONE_CAMERA, Phase, Strata, Stratum
from steadyhand_training.suspicion import Suspicion
from steadyhand_training.vetoes import Vetoes

Check = Callable[[Robot], None]
Mutate = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return first_checkpoint(tmp_path_factory.mktemp("classifier"))


# -- checks --------------------------------------------------------------------------------------------------------


def held_out_episodes_teach_nothing(robot: Robot) -> None:
    for _ in range(4):
        robot.miss()
        robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(0.0)
    evidence = robot.correction.evidence
    drawn = {int(r) for pool in evidence.pools(20) for r in (*pool.positive, *pool.negative)}
    assert not drawn & {int(r) for r in evidence.rows(evidence.held_out())[0]}


def silence_teaches_nothing(robot: Robot) -> None:
    silent = fool(robot, 2)
    evidence = robot.correction.evidence
    rows = {int(r) for e in silent for r in robot.replay.rows(e)}
    assert not set(silent) & set(evidence.labelled())
    assert not rows & {int(r) for pool in evidence.pools(20) for r in (*pool.positive, *pool.negative)}


def a_candidate_that_fixes_nothing_is_refused(robot: Robot) -> None:
    robot.correction._grower._settings = dataclasses.replace(QUICK, candidate_batches=1, attempts=1)
    fool(robot, 1)
    robot.say(LabelKind.FALSE_POSITIVE)
    assert robot.correction.work(FOREVER) is None
    assert robot.correction.version == 1


def a_stratum_that_gets_worse_is_seen(robot: Robot) -> None:
    fine = Quality(40, 0, 40, 40, 0.98)
    worse = Comparison(Stratum(2, ONE_CAMERA, Phase.LIFT), dataclasses.replace(fine, false=4), fine)
    assert gate.objection(Trial(fine, fine, 0, 0, 0, 0, 0, (worse,)), GateSettings())


def a_refuted_success_is_bootstrapped(robot: Robot) -> None:
    [episode] = fool(robot, 1)
    robot.correction.settle([episode])
    robot.say(LabelKind.FALSE_POSITIVE)
    rows = robot.replay.rows(episode)[:-1]
    assert not robot.replay.reward[rows].any()
    assert not robot.replay.terminal[rows].any() and robot.replay.usable[rows].all()


def a_key_speaks_of_what_was_seen_a_reaction_before(robot: Robot) -> None:
    episode = robot.record([LOW] * 20, [14] * 20, Source.POLICY, EndReason.SUCCESS)
    robot.say(LabelKind.SUCCESS, after_s=0.0)  # seen at frame 14 of 0..19, certain from 15 on
    said = robot.ledger.frame_labels(episode, robot.replay)
    assert said.tolist() == [-1] * 12 + [0] * 3 + [1] * 5


def a_moment_is_not_denied_by_the_end(robot: Robot) -> None:
    stamps = np.arange(20) * 100_000_000
    held_up = (stamps >= 500_000_000) & (stamps < 900_000_000)
    failure = Label("e", LabelKind.FAILURE, int(stamps[-1]), "ann", "keys", 0.5, "r", 0, 1)
    said = labels.resolve([failure], labels.Course(stamps, True, held_up=held_up), labels.Windows())
    assert not said[held_up].any() and (said[~held_up] < 0).all()


def an_undo_takes_the_word_back(robot: Robot) -> None:
    [episode] = fool(robot, 1)
    robot.correction.settle([episode])
    before = robot.replay.reward[robot.replay.rows(episode)].copy()
    flag = robot.say(LabelKind.FALSE_POSITIVE)
    robot.say(LabelKind.UNDO, undo_of=flag.event_id)
    np.testing.assert_array_equal(robot.replay.reward[robot.replay.rows(episode)], before)
    assert before.any()


def a_persons_word_is_above_the_models(robot: Robot) -> None:
    [episode] = fool(robot, 1)
    robot.say(LabelKind.VERDICT_FAILURE)
    assert not robot.rewarded(episode)
    missed = robot.record([LOW] * 12, [14] * 12, Source.POLICY, EndReason.TIMEOUT)
    robot.say(LabelKind.FALSE_NEGATIVE, after_s=0.0)
    assert robot.rewarded(missed)


def a_wrong_key_goes_to_review(robot: Robot) -> None:
    for _ in range(7):
        robot.lift()
        robot.say(LabelKind.VERDICT_SUCCESS)
    robot.correction.work(0.0)
    episode = robot.lift()
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(0.0)
    assert robot.correction.evidence.review == [episode]


def rising_vetoes_are_noticed(robot: Robot) -> None:
    book = robot.correction._vetoes
    for version, vetoed in ((1, False), (2, True)):
        for _ in range(10):
            episode = robot.record([HIGH] * 4, [6] * 4, Source.POLICY, EndReason.SUCCESS)
            robot.replay.classifier_version[robot.replay.rows(episode)] = version
            if vetoed:
                robot.say(LabelKind.FALSE_POSITIVE)
            book.notice(episode)
    assert book.rise(2, 1) is not None


def frames_of_a_light_with_failures_alone_are_seen_in_others(robot: Robot) -> None:
    strata, rows = robot.correction.evidence.strata, robot.replay.rows(0)
    strata.light(0)
    strata.lights.known.append(strata.lights.known[0] * 0.5)
    assert (strata.relit(rows, np.random.default_rng(0)) < 0.9).any()


# -- what they rest on, taken away ---------------------------------------------------------------------------------


def _all_teach(self: Evidence) -> list[int]:
    return self.labelled()


def _ended_is_labelled(self: Evidence) -> list[int]:
    return self.ended()


def _keep_terminals(self: Replay, episode: int, outcome: reward.Outcome) -> None:
    self.reward[self.rows(episode)[:-1]] = outcome.reward


def _at_the_stamp(words: list[Label], *rest: Any) -> Any:
    return _RESOLVE([dataclasses.replace(w, reaction_s=0.0) for w in words], *rest)


def _model_alone(lower: Any, said: Any, source: Any) -> Any:
    return lower, np.zeros_like(said)


_RESOLVE = labels.resolve


def replaced(target: object, name: str, by: object) -> Mutate:
    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        assert hasattr(target, name)
        monkeypatch.setattr(target, name, by)

    return mutate


SAFEGUARDS: dict[str, tuple[Check, Mutate]] = {
    "split by episodes": (held_out_episodes_teach_nothing, replaced(Evidence, "taught", _all_teach)),
    "silence never trains": (silence_teaches_nothing, replaced(Evidence, "labelled", _ended_is_labelled)),
    "gate": (a_candidate_that_fixes_nothing_is_refused, replaced(gate, "objection", lambda trial, settings: "")),
    "strata": (a_stratum_that_gets_worse_is_seen, replaced(gate, "_stratum_objection", lambda *_: "")),
    "terminal repair": (a_refuted_success_is_bootstrapped, replaced(Replay, "set_outcome", _keep_terminals)),
    "the right frame": (a_key_speaks_of_what_was_seen_a_reaction_before, replaced(labels, "resolve", _at_the_stamp)),
    "moments": (
        a_moment_is_not_denied_by_the_end,
        replaced(labels, "_moments", lambda word, *_: np.zeros(len(word), np.bool_)),
    ),
    "undo": (an_undo_takes_the_word_back, replaced(Ledger, "_taken_back", lambda self: set())),
    "human above model": (a_persons_word_is_above_the_models, replaced(reward, "heard", _model_alone)),
    "review": (a_wrong_key_goes_to_review, replaced(Suspicion, "suspects", lambda *_: False)),
    "roll-back": (rising_vetoes_are_noticed, replaced(Vetoes, "notice", lambda *_: None)),
    "light": (
        frames_of_a_light_with_failures_alone_are_seen_in_others,
        replaced(Strata, "relit", lambda self, rows, rng: np.ones((len(rows), 2, 3), np.float32)),
    ),
}


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_with_it_the_check_holds_and_without_it_fails(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, mutate = SAFEGUARDS[name]
    check(ready(checkpoint, QUICK))
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check(ready(checkpoint, QUICK))
