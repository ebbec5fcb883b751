"""A classifier whose successes are vetoed more often than those of the one before is taken back."""

from __future__ import annotations

import numpy as np
import pytest

from steadyhand_training.veto import VetoBook, VetoSettings


def judged(book: VetoBook, version: int, light: int, kept: int, vetoed: int) -> None:
    first = len(book._ended)
    for i in range(kept + vetoed):
        book.judge(first + i, version, light, i >= kept)


@pytest.fixture
def book() -> VetoBook:
    return VetoBook(VetoSettings())


def test_a_rise_beyond_doubt_is_named_with_its_figures(book: VetoBook) -> None:
    judged(book, 1, 1, kept=19, vetoed=1)
    judged(book, 2, 1, kept=2, vetoed=5)
    rise = book.rise(2, 1)
    assert rise is not None
    assert (rise.vetoed, rise.ended, rise.vetoed_before, rise.ended_before) == (5, 7, 1, 20)
    assert "from 1 of 20 episodes that classifier v1 ended to 5 of 7 of v2" in str(rise)


def test_a_few_vetoes_and_a_rate_that_stays_are_no_rise(book: VetoBook) -> None:
    judged(book, 1, 1, kept=16, vetoed=4)
    judged(book, 2, 1, kept=0, vetoed=4)
    assert book.rise(2, 1) is None, "four episodes are too few to say anything"
    judged(book, 3, 1, kept=15, vetoed=5)
    assert book.rise(3, 1) is None


def test_a_light_that_only_the_new_version_has_met_is_not_its_fault(book: VetoBook) -> None:
    judged(book, 1, 1, kept=20, vetoed=0)
    judged(book, 2, 2, kept=0, vetoed=12)
    assert book.rise(2, 1) is None
    judged(book, 2, 1, kept=1, vetoed=6)
    rise = book.rise(2, 1)
    assert rise is not None and rise.ended == 7, "of the light that both have met"


def test_a_veto_that_is_taken_back_counts_no_more(book: VetoBook) -> None:
    judged(book, 1, 1, kept=20, vetoed=0)
    judged(book, 2, 1, kept=0, vetoed=6)
    assert book.rise(2, 1) is not None
    for episode in range(20, 26):
        book.judge(episode, 2, 1, vetoed=False)
    assert book.rise(2, 1) is None
    assert book.counts(2) == (0, 6)
    book.judge(20, 2, 1, vetoed=None)
    assert book.counts(2) == (0, 5)


def test_versions_that_differ_in_nothing_are_seldom_called_worse() -> None:
    rng, called = np.random.default_rng(0), 0
    for _ in range(100):
        book = VetoBook(VetoSettings())
        for episode in range(80):
            version = 1 + (episode >= 40)
            book.judge(episode, version, 1, bool(rng.random() < 0.1))
            if version == 2 and book.rise(2, 1) is not None:
                called += 1
                break
    assert called <= 6
