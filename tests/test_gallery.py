"""The worst mistakes come first, few of each episode, and the gallery needs nothing beside it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from offline_runs import fill, lessons, refuted
from PIL import Image
from training_steps import TASK

from steadyhand_models.cli import UserError
from steadyhand_models.reward import Rule
from steadyhand_training import dataset, gallery
from steadyhand_training.dataset import Recorded
from steadyhand_training.frame_quality import Scored

RULE = Rule(threshold=0.5, debounce_frames=2, pessimism=0.0)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Recorded]:
    return dataset.read([fill(tmp_path_factory.mktemp("run"), [*refuted(1), *refuted(2)])], TASK).episodes


def scored(episode: Recorded, *probabilities: float) -> Scored:
    """The first frames of a refuted episode as a classifier sees them, the rest at 0."""
    all_of_them = np.zeros((len(episode.rows), 2), np.float32)
    all_of_them[: len(probabilities)] = np.array(probabilities)[:, None]
    return Scored(all_of_them, episode.labels)


def test_the_surest_mistakes_come_first_and_close_calls_after_them(episodes: list[Recorded]) -> None:
    one, other = episodes
    found = gallery.worst(episodes, [scored(one, 0.6, 0.45), scored(other, 0.99)], RULE, 10)
    assert [(m.episode.origin.episode.number, m.place, m.wrong) for m in found] == [
        (2, 0, True), (1, 0, True), (1, 1, False)
    ]  # fmt: skip
    assert len(gallery.worst(episodes, [scored(one, 0.6, 0.45), scored(other, 0.99)], RULE, 2)) == 2


def test_one_bad_episode_does_not_fill_the_gallery(episodes: list[Recorded]) -> None:
    found = gallery.worst(episodes, [scored(episodes[0], *[0.9] * 8), scored(episodes[1], 0.7)], RULE, 10)
    numbers = [m.episode.origin.episode.number for m in found]
    assert numbers.count(1) == gallery.PER_EPISODE and numbers.count(2) == 1


def test_frames_that_nobody_spoke_of_are_not_mistakes(episodes: list[Recorded]) -> None:
    silent = Scored(scored(episodes[0], 0.9).probabilities, np.zeros_like(episodes[0].labels))
    assert gallery.worst(episodes[:1], [silent], RULE, 10) == []


def exhibits(episodes: list[Recorded]) -> list[gallery.Exhibit]:
    found = gallery.worst(episodes, [scored(episodes[0], 0.9, 0.8), scored(episodes[1], 0.7)], RULE, 10)
    frames = np.full((2, 64, 64, 3), 90, np.uint8)
    return [gallery.exhibit(m, frames, RULE, "ann: <verdict>") for m in found]


def test_a_caption_says_what_was_called_what_is_so_and_by_whom(episodes: list[Recorded]) -> None:
    first = exhibits(episodes)[0]
    text = "\n".join(first.lines)
    assert first.wrong and "called success; label: no success" in text
    assert "episode 1, step 0" in text and "heads 0.90 0.90" in text and "said by ann" in text


def test_the_page_holds_its_pictures_and_fetches_nothing(episodes: list[Recorded]) -> None:
    shown = exhibits(episodes)
    page = gallery.page("mistakes & more", shown).decode()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == len(shown) == page.count("<img")
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (128, 64)
    assert "http" not in page and "&lt;verdict&gt;" in page and "mistakes &amp; more" in page


def test_the_sheet_is_one_picture_with_a_place_for_each(episodes: list[Recorded]) -> None:
    shown = exhibits(episodes)
    one = Image.open(io.BytesIO(gallery.sheet("t", shown[:1])))
    two = Image.open(io.BytesIO(gallery.sheet("t", shown[:2])))
    four = Image.open(io.BytesIO(gallery.sheet("t", [*shown, shown[0]][:4])))
    assert two.width > one.width and two.height == one.height
    assert four.height > two.height


def test_a_gallery_without_any_mistake_says_so() -> None:
    assert b"No mistake" in gallery.page("t", [])
    assert Image.open(io.BytesIO(gallery.sheet("t", []))).width > 0


def test_other_kinds_of_file_are_refused_before_anything_is_judged() -> None:
    with pytest.raises(UserError, match=r"name it \.html or \.png"):
        gallery.renderer(Path("mistakes.gif"))


def test_a_missed_success_is_captioned_as_one(tmp_path: Path) -> None:
    episode = dataset.read([fill(tmp_path, lessons(1, 0))], TASK).episodes[0]
    blind = Scored(np.zeros((len(episode.rows), 1), np.float32), episode.labels)
    mistake = gallery.worst([episode], [blind], RULE, 1)[0]
    lines = gallery.exhibit(mistake, np.zeros((1, 8, 8, 3), np.uint8), RULE, "ann").lines
    assert lines[0] == "called no success; label: success"
