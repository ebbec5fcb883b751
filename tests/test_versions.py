"""The best policy is the one that people saw succeed alone; a fall is called only beyond doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_trainer import DEMONSTRATIONS, LOCKSTEP, Bench, open_bench
from training_steps import label, step

from steadyhand_models.messages import Channel, EndReason, Label, LabelKind, Source, Step
from steadyhand_models.registry import Registry
from steadyhand_training.metrics import read_json_lines
from steadyhand_training.publish import PublishSettings
from steadyhand_training.versions import (
    OnFall,
    Standing,
    VersionBook,
    VersionSettings,
    autonomous,
    probability_below,
    verdict,
)

SOURCES = list(Source)
POLICY, TAKEOVER, DEMONSTRATION = (SOURCES.index(s) for s in (Source.POLICY, Source.TAKEOVER, Source.DEMONSTRATION))


def play(book: VersionBook, rates: Sequence[float], rng: np.random.Generator, each: int = 2) -> int | None:
    """Judge `each` episodes of versions with these rates; the version at which a fall was first called."""
    episode = 0
    for version, rate in enumerate(rates, 1):
        for _ in range(each):
            episode += 1
            book.judge(episode, version, bool(rng.random() < rate))
            if book.fall is not None:
                return version
    return None


def test_a_posterior_is_that_of_a_beta_distribution() -> None:
    standing = Standing(1, won=3.0, lost=1.0)
    assert standing.rate == pytest.approx(4 / 6)
    samples = np.random.default_rng(0).beta(4, 2, 200_000)
    lo, hi = standing.interval()
    assert (lo, hi) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=0.005)


def test_the_probability_of_being_worse_agrees_with_sampling() -> None:
    rng = np.random.default_rng(0)
    one, other = Standing(2, 3.0, 5.0), Standing(1, 9.0, 1.0)
    sampled = (rng.beta(4, 6, 200_000) < rng.beta(10, 2, 200_000) - 0.1).mean()
    assert probability_below(one, other, 0.1) == pytest.approx(sampled, abs=0.01)


def test_a_version_borrows_from_those_before_it_and_less_from_older_ones() -> None:
    book = VersionBook(VersionSettings(half_life_versions=1.0))
    book.judge(1, 1, True)
    book.judge(2, 2, True)
    book.judge(3, 9, False)
    assert book.standing(2).won == pytest.approx(1.5)
    assert book.standing(2).lost == 0.0
    assert book.standing(9).won < 0.02


def test_there_is_no_best_before_enough_was_judged() -> None:
    book = VersionBook(VersionSettings(least_episodes=4.0))
    for episode in range(3):
        book.judge(episode, 1, True)
    assert book.best is None
    book.judge(3, 1, True)
    assert book.best is not None and book.best.version == 1


def test_the_best_is_good_with_certainty_and_not_by_luck() -> None:
    book = VersionBook(VersionSettings(half_life_versions=0.1, least_episodes=2.0))
    for episode in range(20):
        book.judge(episode, 1, episode != 0)
    for episode in range(20, 22):
        book.judge(episode, 50, True)
    assert book.best is not None and book.best.version == 1


def test_a_collapse_is_noticed_within_a_few_versions() -> None:
    book = VersionBook()
    noticed = play(book, [0.9] * 30 + [0.2] * 30, np.random.default_rng(3))
    assert noticed is not None and 30 < noticed <= 45
    assert book.fall is not None and book.fall.best.version <= 31 and "fell from" in str(book.fall)


@pytest.mark.parametrize("rates", [[0.8] * 60, [0.95] * 60, list(np.linspace(0.1, 0.95, 60))])
def test_a_policy_that_stays_or_gets_better_is_not_called_fallen(rates: list[float]) -> None:
    alarms = [play(VersionBook(), rates, np.random.default_rng(seed), each=1) for seed in range(6)]
    assert alarms == [None] * 6


def test_a_verdict_that_is_taken_back_counts_no_longer() -> None:
    book = VersionBook()
    assert book.judge(1, 4, False)
    assert not book.judge(1, 4, False)
    assert book.judge(1, 4, None)
    assert book.counts == {}


def test_a_version_published_again_is_judged_with_what_it_copies_and_the_fall_is_over() -> None:
    book = VersionBook()
    play(book, [0.95] * 20 + [0.1] * 20, np.random.default_rng(0))
    assert book.fall is not None
    best = book.fall.best.version
    before = book.counts[best]
    book.rolled_back(41, best)
    assert book.fall is None
    book.judge(1000, 41, True)
    assert book.counts[best] == (before[0] + 1, before[1])
    assert 41 not in book.counts


def test_only_what_the_policy_did_alone_is_its_own() -> None:
    versions = np.array([3, 3, 4, 4, 4])
    alone = np.full(5, POLICY, np.int8)
    assert autonomous(alone, versions) == 4
    for other in (TAKEOVER, DEMONSTRATION):
        helped = alone.copy()
        helped[2] = other
        assert autonomous(helped, versions) == 0
    assert autonomous(alone[:0], versions[:0]) == 0


def test_silence_is_no_verdict_and_the_last_word_counts() -> None:
    assert verdict([]) is None
    wrong, right = label(1, 5, LabelKind.VERDICT_SUCCESS), label(1, 9, LabelKind.FALSE_POSITIVE)
    assert verdict([wrong]) is True
    assert verdict([right, wrong]) is False


# -- in the trainer ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    opened: list[Bench] = []
    yield opened
    for bench in opened:
        bench.close()


FEW = VersionSettings(half_life_versions=1.0, least_episodes=3.0, fall_certainty=0.8)


def settings_with(on_fall: OnFall, hold_updates: int = 10_000) -> PublishSettings:
    return PublishSettings(
        policy_every_s=0.1, least_updates=1, in_flight_s=0.1, on_fall=on_fall, versions=FEW, hold_updates=hold_updates
    )


def alone(episode: int, version: int, success: bool | None, end: EndReason = EndReason.SUCCESS) -> list[Step | Label]:
    """An episode of one policy version, with a person's verdict or without."""
    steps = [step(episode, t, source=Source.POLICY) for t in range(4)] + [step(episode, 4, end=end)]
    made: list[Step | Label] = [dataclasses.replace(s, policy_version=version) for s in steps]
    if success is None:
        return made
    return [*made, label(episode, 8, LabelKind.VERDICT_SUCCESS if success else LabelKind.VERDICT_FAILURE)]


def fallen(bench: Bench) -> int:
    """A run whose first version is good and whose later ones are not; the number of policies at the fall's verdict."""
    bench.feed(DEMONSTRATIONS)
    for episode in range(10, 18):
        bench.feed(alone(episode, 1, True))
    for episode in range(20, 26):
        bench.feed(alone(episode, 6, False))
    return bench.trainer.release.newest(Channel.POLICY)


def test_a_fall_is_reported_in_status_and_left_to_people_by_default(benches: list[Bench], tmp_path: Path) -> None:
    assert PublishSettings().on_fall is OnFall.REPORT
    bench = open_bench(benches, tmp_path, dataclasses.replace(LOCKSTEP, publish=settings_with(OnFall.REPORT)))
    fallen(bench)
    view = bench.trainer._view()
    assert view.versions["best_version"] == 1 and view.versions["fallen"] == 1
    assert "success fell from" in view.warnings[0]
    manifests = [bench.trainer.release.registry.manifest(Channel.POLICY, v) for v in versions(bench)]
    assert not any("rolled_back_at" in m.metrics for m in manifests)


def test_a_success_of_the_classifier_alone_is_no_verdict(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path)
    bench.feed(DEMONSTRATIONS)
    for episode in range(10, 20):
        bench.feed(alone(episode, 1, None))
    assert "best_version" not in bench.trainer._view().versions


def test_a_fall_is_rolled_back_to_the_best_when_so_configured(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path, dataclasses.replace(LOCKSTEP, publish=settings_with(OnFall.ROLLBACK)))
    newest = fallen(bench)
    registry = Registry(bench.folder.registry)
    back = registry.load(Channel.POLICY, newest)
    assert back.manifest.parent == 1 and back.manifest.metrics["fell_to"] < back.manifest.metrics["fell_from"]
    assert back.model == registry.load(Channel.POLICY, 1).model
    # The learner goes on, and its own policy waits.
    updates = bench.trainer.learner.updates
    bench.feed(alone(30, newest, True))
    assert bench.trainer.learner.updates > updates
    assert bench.trainer.release.newest(Channel.POLICY) == newest
    published = [r["publish"] for r in read_json_lines(bench.folder.metrics) if r["kind"] == "publish"]
    assert [p["parent"] for p in published if "rolled_back_at" in p["metrics"]] == [1]


def test_after_the_wait_the_learners_policy_follows_again(benches: list[Bench], tmp_path: Path) -> None:
    publish = settings_with(OnFall.ROLLBACK, hold_updates=8)
    bench = open_bench(benches, tmp_path, dataclasses.replace(LOCKSTEP, publish=publish))
    newest = fallen(bench)
    for episode in range(30, 34):
        bench.feed(alone(episode, newest, None))
    later = [v for v in versions(bench) if v > newest]
    assert later and "rolled_back_at" not in Registry(bench.folder.registry).manifest(Channel.POLICY, later[-1]).metrics


def test_a_restart_remembers_verdicts_and_roll_backs(benches: list[Bench], tmp_path: Path) -> None:
    bench = open_bench(benches, tmp_path, dataclasses.replace(LOCKSTEP, publish=settings_with(OnFall.ROLLBACK)))
    newest = fallen(bench)
    before = bench.trainer.release.standings.metrics
    bench.trainer._save()
    bench.restart()
    assert bench.trainer.release.standings.metrics == before
    bench.feed(alone(30, newest, None))
    assert bench.trainer.release.newest(Channel.POLICY) == newest


def versions(bench: Bench) -> list[int]:
    return Registry(bench.folder.registry).versions(Channel.POLICY)
