"""The classifier is split by episodes, corrected from labels, gated, and what it changes is relabelled."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from steadyhand_models import artifact, reward
from steadyhand_models import task as tasks
from steadyhand_models.messages import EndReason, Label, LabelKind, Source, Step
from steadyhand_training import fitting, gate
from steadyhand_training.correction import Correction, CorrectionError, CorrectionRule, CorrectionSettings, Promotion
from steadyhand_training.fitting import FitSettings
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay

torch.set_num_threads(1)  # more threads than free cores wait for each other

TICK_NS = 100_000_000
SIZE_PX = 16
LOW, HIGH = 11, 3  # rows of the picture where the arm is
FOREVER = float("inf")


def small_task() -> tasks.Task:
    task = tasks.load("lift")
    return dataclasses.replace(
        task, cameras=tuple(dataclasses.replace(c, size_px=(SIZE_PX, SIZE_PX)) for c in task.cameras)
    )


TASK = small_task()
CONTRACT = TASK.contract()
QUICK = CorrectionSettings(
    first_batches=60,
    candidate_batches=40,
    least_steps=0,
    fit=FitSettings(batch=32, shift_px=1, learning_rate=3e-3, brightness=0.1, colour=0.0, shade=0.0, hidden=0.0),
)


class Robot:
    """Records little lifts: the arm is a large block, the cube a dot that only a lift takes up with it."""

    def __init__(self, settings: CorrectionSettings = QUICK, seed: int = 0) -> None:
        self.replay = Replay(CONTRACT, 10_000)
        self.ledger = Ledger()
        self.correction = Correction(CONTRACT, TASK, self.replay, self.ledger, settings, seed)
        self.rng = np.random.default_rng(seed)
        self.now_ns = 10**9
        self.episode = -1
        self._ids = itertools.count()

    def picture(self, arm: int, cube: int) -> np.ndarray:
        frames = self.rng.integers(90, 110, CONTRACT.frames_shape, dtype=np.uint8)
        frames[:, arm : arm + 4, 3:13] = 40
        frames[:, cube : cube + 1, 7:9] = (250, 30, 30)
        return frames

    def record(self, arms: list[int], cubes: list[int], source: Source, end: EndReason | None) -> int:
        """One episode, ended where `end` is given; its number."""
        self.episode += 1
        for i, (arm, cube) in enumerate(zip(arms, cubes)):
            self.now_ns += TICK_NS
            last = end is not None and i == len(arms) - 1
            self.replay.append(self.step(i, self.picture(arm, cube), source, end if last else None))
        return self.episode

    def step(self, seq: int, frames: np.ndarray, source: Source, end: EndReason | None) -> Step:
        action = None if end else np.zeros(4, np.float32)
        return Step(
            run="r",
            episode=self.episode,
            seq=seq,
            tick=seq,
            stamp_ns=self.now_ns,
            contract=CONTRACT.hash,
            frames=frames,
            state=np.zeros(18, np.float32),
            proposed=action,
            executed=action,
            source=Source.NONE if end else source,
            reasons=(),
            classifier=None,
            policy_version=0,
            classifier_version=self.correction.version,
            frame_age_s=0.0,
            state_age_s=0.0,
            end=end,
        )

    def say(self, kind: LabelKind, *, episode: int | None = None, after_s: float = 0.5, undo_of: str = "") -> Label:
        """The operator's word after the last frame, passed on as the trainer does."""
        stamp_ns = self.now_ns + round(after_s * 1e9)
        about = self.episode if episode is None else episode
        version = self.correction.version
        label = Label(f"e{next(self._ids)}", kind, stamp_ns, "ann", "keys", 0.5, "r", about, version, undo_of)
        self.ledger.add(label)
        self.correction.notice(label)
        return label

    def demonstrate(self) -> None:
        """A demonstrated lift: 8 frames low, 2 between, 6 high."""
        self.record(
            [LOW] * 8 + [7, 5] + [HIGH] * 6, [14] * 8 + [10, 8] + [6] * 6, Source.DEMONSTRATION, EndReason.SUCCESS
        )
        self.say(LabelKind.SUCCESS, after_s=0.0)

    def miss(self) -> int:
        """The arm goes up without the cube, and the classifier ends the episode."""
        return self.record([LOW] * 6 + [7, 5] + [HIGH] * 4, [14] * 12, Source.POLICY, EndReason.SUCCESS)

    def lift(self, end: EndReason = EndReason.SUCCESS) -> int:
        return self.record([LOW] * 6 + [7, 5] + [HIGH] * 4, [14] * 6 + [10, 8] + [6] * 4, Source.POLICY, end)

    def prepare(self, demonstrations: int = 8) -> Promotion:
        for _ in range(demonstrations):
            self.demonstrate()
        return self.correction.first_fit()

    def rewarded(self, episode: int) -> bool:
        return bool(self.correction.outcomes(episode).reward.any())


def _both(mark: np.ndarray, arm: int, cube: int) -> np.ndarray:
    return np.stack([mark, mark])


def first_checkpoint(folder: Path) -> Path:
    robot = Robot()
    robot.prepare()
    path = folder / "first.pt"
    robot.correction.save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first classifier, fitted once for all tests that need any."""
    return first_checkpoint(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def robot(checkpoint: Path) -> Robot:
    """A robot with eight demonstrations and the naive classifier that they make."""
    return ready(checkpoint, QUICK)


def ready(checkpoint: Path, settings: CorrectionSettings) -> Robot:
    robot = Robot(settings)
    for _ in range(8):
        robot.demonstrate()
    robot.correction.load(checkpoint)
    return robot


def fool(robot: Robot, misses: int) -> list[int]:
    """Episodes without success that the classifier takes for one."""
    episodes = [robot.miss() for _ in range(misses)]
    assert all(robot.rewarded(e) for e in episodes), "the naive classifier looks at the arm"
    return episodes


# -- first fit -----------------------------------------------------------------------------------------------------


def test_without_a_classifier_rewards_are_the_humans_word_alone() -> None:
    robot = Robot()
    robot.demonstrate()
    spoken, silent = 0, robot.lift()
    assert robot.rewarded(spoken)
    assert not robot.rewarded(silent)


def test_the_first_fit_makes_version_one_and_reports_both_sides_of_the_split(robot: Robot) -> None:
    metrics = robot.correction.metrics
    assert robot.correction.version == 1
    assert metrics["held_out_refuted_episodes"] == 2  # the second and the sixth of eight
    assert metrics["taught_balanced_accuracy"] > 0.95
    assert metrics["held_out_balanced_accuracy"] > 0.95
    assert gate.THRESHOLDS[0] <= robot.correction.threshold <= gate.THRESHOLDS[-1]


def test_frames_of_held_out_episodes_never_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    robot = Robot(dataclasses.replace(QUICK, first_batches=20, candidate_batches=20, held_out_every=2))
    drawn: set[int] = set()
    draw = fitting.draw

    def spy(pools: list[fitting.Pool], batch: int, rng: np.random.Generator) -> object:
        rows, targets = draw(pools, batch, rng)
        drawn.update(int(r) for r in rows)
        return rows, targets

    monkeypatch.setattr(fitting, "draw", spy)
    robot.prepare(4)
    for _ in range(4):
        robot.miss()
        robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(FOREVER)
    held_out = robot.correction.evidence.held_out()
    assert held_out == [1, 3, 5, 7]
    hidden = {int(r) for e in held_out for r in robot.replay.rows(e)}
    assert drawn
    assert not drawn & hidden


def test_what_only_tells_episodes_apart_does_not_pass_for_knowledge() -> None:
    plain = FitSettings(batch=32, shift_px=0, brightness=0.0, colour=0.0, shade=0.0, hidden=0.0)
    robot = Robot(dataclasses.replace(QUICK, heads=1, first_batches=80, fit=plain))
    for i in range(32):
        mark = robot.rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        robot.picture = functools.partial(_both, mark)  # type: ignore[method-assign]
        robot.record([LOW] * 6, [14] * 6, Source.DEMONSTRATION, EndReason.SUCCESS)
        # Half are called a success from the first frame on, for no reason that could be seen.
        robot.say(LabelKind.SUCCESS if i % 2 else LabelKind.FAILURE, after_s=-0.5)
    robot.correction.first_fit()
    assert robot.correction.metrics["held_out_balanced_accuracy"] < 0.9
    assert robot.correction.metrics["temperature"] > 2.0, "it knows that it does not know"


def test_a_fit_without_successes_says_what_is_missing() -> None:
    robot = Robot()
    for _ in range(4):
        robot.miss()
        robot.say(LabelKind.FAILURE)
    with pytest.raises(CorrectionError, match="demonstrate and press success"):
        robot.correction.first_fit()


def test_a_fit_from_one_demonstration_asks_for_another() -> None:
    robot = Robot()
    robot.demonstrate()
    with pytest.raises(CorrectionError, match="at least two demonstrations"):
        robot.correction.first_fit()


# -- labels and rewards --------------------------------------------------------------------------------------------


def test_a_flag_turns_a_false_success_into_a_truncation_at_once_and_an_undo_turns_it_back(robot: Robot) -> None:
    [episode] = fool(robot, 1)
    robot.correction.settle([episode])
    rows = robot.replay.rows(episode)[:-1]
    before = robot.replay.reward[rows].copy()
    assert robot.replay.terminal[rows].any()
    flag = robot.say(LabelKind.FALSE_POSITIVE)
    assert not robot.replay.reward[rows].any()
    assert not robot.replay.terminal[rows].any(), "a false success is bootstrapped, not the end of the world"
    assert robot.replay.usable[rows].all()
    robot.say(LabelKind.UNDO, undo_of=flag.event_id)
    np.testing.assert_array_equal(robot.replay.reward[rows], before)
    assert robot.replay.terminal[rows].any()


def test_a_missed_success_becomes_terminal_and_masks_what_follows(robot: Robot) -> None:
    episode = robot.record([LOW] * 12, [14] * 12, Source.POLICY, EndReason.TIMEOUT)
    robot.correction.settle([episode])
    rows = robot.replay.rows(episode)[:-1]
    assert robot.replay.usable[rows].all()
    # Pressed at frame 10 of 0..11 about what was seen at frame 5, and is certain 0.1 s later.
    robot.say(LabelKind.FALSE_NEGATIVE, after_s=-0.1)
    assert np.flatnonzero(robot.replay.reward[rows]).tolist() == [5], "frame 6 judges action 5"
    assert np.flatnonzero(robot.replay.terminal[rows]).tolist() == [5]
    assert np.flatnonzero(robot.replay.usable[rows]).tolist() == list(range(6))


def test_a_label_on_a_running_episode_waits_for_its_end(robot: Robot) -> None:
    episode = robot.record([LOW] * 6, [14] * 6, Source.POLICY, None)
    robot.say(LabelKind.FALSE_NEGATIVE, after_s=0.0)
    assert robot.correction.work(FOREVER) is None
    robot.now_ns += TICK_NS
    robot.replay.append(robot.step(6, robot.picture(LOW, 14), Source.POLICY, EndReason.SUCCESS))
    robot.correction.work(FOREVER)
    assert episode in (*robot.correction.evidence.taught(), *robot.correction.evidence.review)


# -- correction ----------------------------------------------------------------------------------------------------


def test_flags_correct_the_classifier_and_relabel_what_nobody_spoke_of(robot: Robot) -> None:
    silent = fool(robot, 3)
    good = robot.lift()
    robot.correction.settle([*silent, good])
    for _ in range(3):
        fool(robot, 1)
        robot.say(LabelKind.FALSE_POSITIVE)
    promotion = robot.correction.work(FOREVER)
    assert promotion is not None
    assert (promotion.previous, promotion.version, robot.correction.version) == (1, 2, 2)
    for episode in silent:
        rows = robot.replay.rows(episode)[:-1]
        assert not robot.replay.reward[rows].any()
        assert not robot.replay.terminal[rows].any()
    assert robot.replay.reward[robot.replay.rows(good)].any(), "what was right stays right"
    assert promotion.flipped >= len(silent)
    assert promotion.flip_rate == promotion.flipped / promotion.actions


def test_frames_without_actions_count_for_no_flips(robot: Robot) -> None:
    [fooled, imported] = fool(robot, 2)
    robot.correction.settle([fooled, imported])
    robot.replay.has_action[robot.replay.rows(imported)] = False
    for _ in range(3):
        fool(robot, 1)
        robot.say(LabelKind.FALSE_POSITIVE)
    before, acted = robot.replay.reward.copy(), robot.replay.has_action
    promotion = robot.correction.work(FOREVER)
    assert promotion is not None and promotion.actions == acted.sum()
    changed = before != robot.replay.reward
    assert changed[robot.replay.rows(imported)].any()
    assert promotion.flipped == (changed & acted).sum() < changed.sum()


def test_a_candidate_is_for_the_episodes_of_which_the_classifier_in_force_is_wrong(robot: Robot) -> None:
    [wrong] = fool(robot, 1)
    robot.say(LabelKind.FALSE_POSITIVE)
    right = robot.record([LOW] * 12, [14] * 12, Source.POLICY, EndReason.SUCCESS)  # an older version ended it
    assert not robot.rewarded(right)
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(0.0)
    assert robot.correction.busy
    assert {wrong, right} <= set(robot.correction.evidence.fresh)
    assert robot.correction.contradicted == (wrong,)


def test_the_labels_that_made_the_first_classifier_ask_for_no_second(robot: Robot) -> None:
    assert robot.correction.work(FOREVER) is None
    assert not robot.correction.busy


def test_silence_teaches_nothing(robot: Robot) -> None:
    fool(robot, 10)
    assert robot.correction.work(FOREVER) is None
    assert robot.correction.version == 1
    assert len(robot.correction.evidence.labelled()) == 8


def test_words_that_agree_with_the_classifier_wait_until_there_are_several(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, quiet_labels=5))
    robot.lift()
    robot.say(LabelKind.VERDICT_SUCCESS)
    assert robot.correction.work(0.0) is None
    assert not robot.correction.busy
    for _ in range(4):
        robot.lift()
        robot.say(LabelKind.VERDICT_SUCCESS)
    robot.correction.work(0.0)
    assert robot.correction.busy


def test_the_fixed_classifier_heeds_no_label_and_is_never_replaced(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, rule=CorrectionRule.FIXED))
    for episode in fool(robot, 4):
        robot.say(LabelKind.FALSE_POSITIVE, episode=episode)
        assert robot.rewarded(episode)
    assert robot.correction.work(FOREVER) is None
    assert robot.correction.version == 1


def test_work_stops_when_its_budget_is_spent_and_slices_give_what_one_go_gives(checkpoint: Path) -> None:
    def flagged(clock: object) -> Robot:
        robot = ready(checkpoint, QUICK)
        robot.correction._clock = clock  # type: ignore[assignment]
        for _ in range(3):
            robot.miss()
            robot.say(LabelKind.FALSE_POSITIVE)
        return robot

    ticks = itertools.count()
    sliced, whole = flagged(lambda: float(next(ticks))), flagged(lambda: 0.0)
    slices = 0
    while (promotion := sliced.correction.work(2.0)) is None:
        slices += 1
        assert slices < 1000
    assert slices > 10
    assert whole.correction.work(FOREVER) == promotion
    rows = np.arange(whole.replay.size)
    np.testing.assert_array_equal(sliced.correction.champion.scores.of(rows), whole.correction.champion.scores.of(rows))


def test_a_refused_candidate_changes_nothing_and_says_why(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "objection", lambda trial, settings: "recall 9 -> 2")
    rows = np.arange(robot.replay.size)
    before = robot.correction.champion.scores.of(rows).copy()
    [episode] = fool(robot, 1)
    robot.say(LabelKind.FALSE_POSITIVE)
    assert robot.correction.work(FOREVER) is None
    assert (robot.correction.version, robot.correction.promotions, robot.correction.rejections) == (1, 0, 1)
    assert robot.correction.last_rejection == "recall 9 -> 2"
    np.testing.assert_array_equal(robot.correction.champion.scores.of(rows), before)
    assert not robot.rewarded(episode), "the human's word holds for its own episode whatever the classifier says"


def test_a_flag_that_no_candidate_can_agree_with_goes_to_review(checkpoint: Path) -> None:
    robot = ready(checkpoint, dataclasses.replace(QUICK, candidate_batches=1, attempts=1))
    [episode] = fool(robot, 1)
    robot.say(LabelKind.FALSE_POSITIVE)
    assert robot.correction.work(FOREVER) is None
    assert robot.correction.last_rejection.startswith("not_fixed")
    assert robot.correction.evidence.review == [episode]
    assert robot.correction.metrics["review"] == 1


def test_every_stored_row_is_scored_by_the_champion_as_the_network_says(robot: Robot) -> None:
    for _ in range(3):
        robot.miss()
        robot.say(LabelKind.FALSE_POSITIVE)
    assert robot.correction.work(FOREVER)
    champion = robot.correction.champion
    assert len(champion.scores.missing()) == 0
    fresh = fitting.Scores(champion.scores.net, robot.replay)
    rows = np.arange(robot.replay.size)
    np.testing.assert_allclose(champion.scores.of(rows), fresh.of(rows[::-1])[::-1], atol=1e-5)


# -- artifacts and checkpoints -------------------------------------------------------------------------------------


def test_the_artifact_carries_the_rule_and_gives_what_the_trainer_scored(robot: Robot) -> None:
    made = robot.correction.artifact(1)
    artifact.verify(made, CONTRACT.hash)
    manifest = made.manifest
    assert (manifest.boundary, manifest.debounce_frames) == ("episode", TASK.debounce_frames)
    assert manifest.threshold == robot.correction.threshold
    assert manifest.metrics["held_out_balanced_accuracy"] == robot.correction.metrics["held_out_balanced_accuracy"]
    scored = robot.correction.champion.scores.of(np.arange(robot.replay.size))
    for output in made.golden.output:
        assert np.abs(scored - output).max(axis=1).min() < 1e-4


def test_a_checkpoint_goes_on_where_it_was(robot: Robot, tmp_path: Path) -> None:
    robot.miss()
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(FOREVER)
    robot.miss()
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.save(tmp_path / "c.pt")
    other = Correction(CONTRACT, TASK, robot.replay, robot.ledger, QUICK, seed=5)
    other.load(tmp_path / "c.pt")
    assert other.metrics == robot.correction.metrics
    assert other.evidence.held_out() == robot.correction.evidence.held_out()
    for episode in robot.replay.episodes:
        ours, theirs = robot.correction.outcomes(episode), other.outcomes(episode)
        np.testing.assert_array_equal(ours.reward, theirs.reward)
    assert other.work(FOREVER) == robot.correction.work(FOREVER)


def test_a_candidate_in_growth_is_begun_anew_after_a_restart(robot: Robot, tmp_path: Path) -> None:
    robot.miss()
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.correction.work(0.0)
    assert robot.correction.busy
    robot.correction.save(tmp_path / "c.pt")
    other = Correction(CONTRACT, TASK, robot.replay, robot.ledger, QUICK, seed=0)
    other.load(tmp_path / "c.pt")
    assert not other.busy
    other.work(0.0)
    assert other.busy


def test_labels_that_came_after_the_checkpoint_are_heard_after_a_restart(robot: Robot, tmp_path: Path) -> None:
    robot.correction.save(tmp_path / "c.pt")
    [episode] = fool(robot, 1)
    robot.correction.settle([episode])
    robot.say(LabelKind.FALSE_POSITIVE)
    robot.replay.reward[:] = 0.5
    other = Correction(CONTRACT, TASK, robot.replay, robot.ledger, QUICK, seed=0)
    other.load(tmp_path / "c.pt")
    assert not robot.replay.reward[robot.replay.rows(episode)[:-1]].any(), "loading settles every episode"
    other.work(0.0)
    assert other.busy


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused_with_the_fix(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(CorrectionError, match="remove it"):
        Robot().correction.load(path)


def test_a_promotions_outcome_is_the_pure_rule_of_reward(robot: Robot) -> None:
    episode = robot.lift()
    champion = robot.correction.champion
    lower = reward.lower_bound(champion.scores.of(robot.replay.rows(episode)), champion.rule.pessimism)
    fired = reward.fires(lower, champion.rule)
    expected = reward.outcome(fired, EndReason.SUCCESS)
    np.testing.assert_array_equal(robot.correction.outcomes(episode).reward, expected.reward)
