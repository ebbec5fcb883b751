"""Shadow runs, probation and cutoff: what a candidate must show before and after it takes over."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from control_world import FakeModel

from steadyhand_models.artifact import ArtifactError
from steadyhand_models.messages import Channel
from steadyhand_models.runqueue import RunQueue
from steadyhand_runtime import shadow
from steadyhand_runtime.cutoff import Cutoff
from steadyhand_runtime.hold import HoldMeter
from steadyhand_runtime.probation import Probation
from steadyhand_runtime.shadow import Limits, Recent, Sample

FRAMES = np.zeros((1, 2, 2, 3), np.uint8)
ROOMY = Limits(budget_s=1.0, far=1.5)


def sample(action: float, state: float = 0.0) -> Sample:
    return Sample(FRAMES, np.full(3, state, np.float32), np.zeros(4, np.float32), np.full(4, action, np.float32))


def recent(*actions: float, size: int = 10) -> Recent:
    made = Recent(size)
    for action in actions:
        made.add(sample(action))
    return made


def policy(value: float, call_s: float = 0.001) -> FakeModel:
    made = FakeModel(Channel.POLICY, 2, value)
    made.last_s = call_s
    return made


def test_a_candidate_that_answers_like_the_champion_passes_after_every_sample() -> None:
    assert shadow.run(policy(0.2), recent(*[0.1] * 10), ROOMY) == 10


def test_without_anything_to_show_there_is_nothing_to_compare() -> None:
    assert shadow.run(policy(float("nan")), recent(), ROOMY) == 0


def test_an_answer_that_is_not_finite_refuses_the_candidate() -> None:
    with pytest.raises(ArtifactError, match=r"shadow run: .*not finite"):
        shadow.run(policy(float("nan")), recent(0.1), ROOMY)


def test_a_candidate_that_is_far_from_the_champion_in_every_call_is_refused_with_the_distance() -> None:
    with pytest.raises(ArtifactError, match=r"all 6 actions are over 1\.5 .*1\.90 at the least"):
        shadow.run(policy(-0.95), recent(*[0.95] * 6), ROOMY)


def test_one_answer_near_the_champion_s_is_enough_and_so_are_too_few_to_tell() -> None:
    assert shadow.run(policy(-0.95), recent(*[0.95] * 5, -0.9), ROOMY) == 6
    assert shadow.run(policy(-0.95), recent(*[0.95] * 4), ROOMY) == 4


def test_a_classifier_may_differ_as_it_likes() -> None:
    assert shadow.run(policy(-0.95), recent(*[0.95] * 6), Limits(1.0)) == 6


def verdicts(*answers: float) -> Recent:
    made = Recent(10)
    for answer in answers:
        made.add(Sample(np.full((1, 2, 2, 3), made.added, np.uint8), None, None, np.full(3, answer, np.float32)))
    return made


class Sequence:
    """A classifier that gives these answers in turn."""

    last_s = 0.001

    def __init__(self, *answers: float) -> None:
        self._answers = iter(answers)

    def run(self, frames: np.ndarray, state: object = None, noise: object = None) -> np.ndarray:
        return np.full(2, next(self._answers), np.float32)


CLASSIFIER = Limits(1.0, probabilities=True)


def test_a_classifier_that_takes_away_a_row_of_false_successes_passes() -> None:
    assert shadow.run(Sequence(*np.linspace(0.0, 0.02, 6)), verdicts(*[0.999] * 6), CLASSIFIER) == 6


def test_a_classifier_that_calls_everything_a_success_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"success on all 6 frames, each over 0\.9 above"):
        shadow.run(Sequence(*np.linspace(0.97, 0.99, 6)), verdicts(*[0.01] * 6), CLASSIFIER)
    assert shadow.run(Sequence(0.05, *[0.99] * 5), verdicts(*[0.01] * 6), CLASSIFIER) == 6


def test_a_classifier_that_answers_all_frames_alike_is_refused_where_they_differ_to_the_present_one() -> None:
    with pytest.raises(ArtifactError, match="the same answer to 6 frames that differ"):
        shadow.run(Sequence(*[0.3] * 6), verdicts(0.1, 0.2, 0.1, 0.4, 0.9, 0.1), CLASSIFIER)
    assert shadow.run(Sequence(*[0.3] * 6), verdicts(*[0.1] * 6), CLASSIFIER) == 6


def test_an_answer_that_is_no_probability_refuses_the_classifier() -> None:
    with pytest.raises(ArtifactError, match=r"outside 0\.\.1"):
        shadow.run(Sequence(0.2, 1.5), verdicts(0.1, 0.1), CLASSIFIER)


def test_only_every_few_calls_are_kept_so_that_they_reach_back_further() -> None:
    made = Recent(3, every=4)
    for i in range(20):
        made.add(sample(float(i)))
    assert [float(s.output[0]) for s in made.samples()] == [11.0, 15.0, 19.0] and made.added == 5


def test_a_candidate_over_its_budget_is_refused_by_its_median() -> None:
    with pytest.raises(ArtifactError, match="a call takes 80 ms, allowed 50 ms"):
        shadow.run(policy(0.1, call_s=0.08), recent(0.1, 0.1, 0.1), Limits(0.05))


def test_new_calls_are_shown_as_they_come_and_old_ones_where_none_come() -> None:
    shown, book = [], recent(0.0, 0.0, size=4)

    class Watched(FakeModel):
        def run(self, frames: np.ndarray, state: np.ndarray, noise: np.ndarray) -> np.ndarray:
            shown.append(float(state[0]))
            return super().run(frames, state, noise)

    ticks = iter([7.0, None, 8.0])

    def wait() -> bool:
        state = next(ticks, "over")
        if isinstance(state, float):
            book.add(sample(0.0, state))
        return state != "over"

    shadow.run(Watched(Channel.POLICY, 2, 0.0), book, ROOMY, wait)
    assert shown == [7.0, 0.0, 8.0]


def test_probation_forgives_one_slow_call_and_not_two_in_a_row() -> None:
    watch = Probation(10, 0.05)
    assert [bool(watch.call(s)) for s in (0.06, 0.01, 0.06, 0.01)] == [False] * 4
    assert watch.call(0.06) == ""
    assert watch.call(0.07) == "2 calls in a row took over 50 ms, the last one 70 ms"


def test_probation_is_over_after_its_calls() -> None:
    watch = Probation(2, 0.05)
    watch.call(0.01)
    assert not watch.over
    watch.call(0.01)
    assert watch.over


def test_the_cutoff_ends_a_call_that_has_used_its_limit_and_no_other() -> None:
    cutoff, options, next_options = Cutoff(1.0), SimpleNamespace(terminate=False), SimpleNamespace(terminate=False)
    cutoff.begin(options, limit_s=10.0)
    now_s = time.perf_counter()
    cutoff.look(now_s + 9.0)
    assert not options.terminate
    cutoff.end()
    cutoff.begin(next_options, limit_s=20.0)
    cutoff.look(now_s + 15.0)
    assert not options.terminate and not next_options.terminate
    cutoff.look(now_s + 1000.0)
    assert next_options.terminate and not options.terminate
    cutoff.end()


def test_time_in_the_run_queue_is_not_the_call_s_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    waited_s = [0.0]
    monkeypatch.setattr(RunQueue, "delay_s", lambda self: waited_s[0])
    cutoff, options = Cutoff(1.0), SimpleNamespace(terminate=False)
    cutoff.begin(options, limit_s=1.0)
    begun_s = time.perf_counter()
    waited_s[0] = 100.0
    cutoff.look(begun_s + 100.5)
    assert not options.terminate
    cutoff.look(begun_s + 102.0)
    assert options.terminate


def test_a_thread_that_waits_for_the_processor_has_run_queue_delay_and_a_sleeping_one_does_not() -> None:
    queue = RunQueue()
    assert 0.0 <= queue.delay_s() <= queue.delay_s()
    queue.close()
    assert queue.delay_s() == 0.0
    assert RunQueue(thread_id=2**22 + 1).delay_s() == 0.0


def test_a_held_interpreter_shows_in_the_meter() -> None:
    with HoldMeter() as idle:
        threading.Event().wait(0.05)
    begun_s = time.thread_time()
    with HoldMeter() as held:
        sum(range(30_000_000))  # one C call that never lets another thread run
    assert held.longest_s > 0.5 * (time.thread_time() - begun_s)
    assert held.longest_s > 10 * idle.longest_s
