"""A picture gallery of what a classifier got most wrong: a self-contained HTML page, or one PNG contact sheet."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from steadyhand_models import reward
from steadyhand_models.cli import UserError
from steadyhand_training.dataset import Dataset, Recorded
from steadyhand_training.frame_quality import Scored

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

PER_EPISODE = 3  # neighbouring frames show the same thing
CLOSE = 0.25  # from the threshold: right, but worth a look
SCALE = 3
COLUMNS = 3
LINE_PX = 14
GAP_PX = 10
PAPER, INK, ALARM = (24, 24, 28), (235, 235, 235), (255, 120, 110)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 84em; padding: 0 1em; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(24em, 1fr)); gap: 1.2em; }
figure { margin: 0; padding: 0.6em; background: #f3f5f8; border-radius: 6px; }
figure.wrong { background: #fbeceb; } img { width: 100%; image-rendering: pixelated; }
figcaption { font-size: 0.85em; } b { display: block; }
"""


@dataclass(frozen=True)
class Mistake:
    """A frame with what the classifier says of it; one that it got right was a close call."""

    episode: Recorded
    place: int  # in the episode
    probabilities: F32  # (H,)
    lower: float
    label: int  # +1 or -1
    wrong: bool


@dataclass(frozen=True)
class Exhibit:
    """A picture (H, W, 3), all cameras side by side, and the lines below it; the first says what is the matter."""

    picture: U8
    lines: tuple[str, ...]
    wrong: bool


def worst(episodes: Sequence[Recorded], scored: Sequence[Scored], rule: reward.Rule, count: int) -> list[Mistake]:
    """The labelled frames farthest on the wrong side of the threshold, then close calls; few of each episode."""
    found: list[tuple[float, Mistake]] = []
    for episode, one in zip(episodes, scored):
        lower = reward.lower_bound(one.probabilities, rule.pessimism)
        margins = (lower - np.float32(rule.threshold)) * one.labels
        own = [int(i) for i in np.argsort(margins, kind="stable") if one.labels[i] and margins[i] < CLOSE][:PER_EPISODE]
        for i in own:
            label, wrong = int(one.labels[i]), bool((lower[i] > rule.threshold) != (one.labels[i] > 0))
            mistake = Mistake(episode, i, one.probabilities[i], float(lower[i]), label, wrong)
            found.append((float(margins[i]), mistake))
    ranked = sorted(found, key=lambda pair: (not pair[1].wrong, pair[0]))
    return [mistake for _, mistake in ranked[:count]]


def exhibit(mistake: Mistake, frames: U8, rule: reward.Rule, said_by: str) -> Exhibit:
    """One mistake for people; frames (C, H, W, 3)."""
    called = "success" if (mistake.label > 0) != mistake.wrong else "no success"
    heads = " ".join(f"{p:.2f}" for p in mistake.probabilities)
    label = "success" if mistake.label > 0 else "no success"
    return Exhibit(
        picture=np.concatenate(list(frames), axis=1),
        lines=(
            f"called {called}{'' if mistake.wrong else ' (a close call)'}; label: {label}",
            f"{mistake.episode.origin.name}, step {int(mistake.episode.seq[mistake.place])}",
            f"heads {heads}; lower bound {mistake.lower:.2f}, threshold {rule.threshold:.2f}",
            f"said by {said_by}",
        ),
        wrong=mistake.wrong,
    )


def exhibits(
    data: Dataset, episodes: Sequence[Recorded], scored: Sequence[Scored], rule: reward.Rule, count: int, truth: bool
) -> list[Exhibit]:
    """The worst mistakes with their pictures; `truth`: the labels are the simulation's, not people's."""
    made = []
    for mistake in worst(episodes, scored, rule, count):
        word = None if truth else data.said_by(mistake.episode, mistake.place)
        said_by = f"{word.who}: {word.kind.value.replace('_', ' ')}" if word else "the simulation's truth"
        frames = data.frames(mistake.episode.rows[[mistake.place]])[0]
        made.append(exhibit(mistake, frames, rule, said_by))
    return made


def page(title: str, exhibits: Sequence[Exhibit]) -> bytes:
    """A page with its pictures inside."""
    figures = "\n".join(_figure(e) for e in exhibits) or "<p>No mistake, and no close call.</p>"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    body = f"<body><h1>{html.escape(title)}</h1><main>\n{figures}\n</main></body></html>\n"
    return f"{head}<style>{_STYLE}</style></head>\n{body}".encode()


def _figure(shown: Exhibit) -> str:
    data = base64.b64encode(_png(Image.fromarray(shown.picture))).decode("ascii")
    first, *rest = (html.escape(line) for line in shown.lines)
    caption = f"<b>{first}</b>{'<br>'.join(rest)}"
    kind = "wrong" if shown.wrong else "close"
    picture = f'<img alt="" src="data:image/png;base64,{data}">'
    return f'<figure class="{kind}">{picture}<figcaption>{caption}</figcaption></figure>'


def sheet(title: str, exhibits: Sequence[Exhibit]) -> bytes:
    """All exhibits as one PNG."""
    tiles = [_tile(e) for e in exhibits]
    width, height = tiles[0].size if tiles else (400, 0)
    columns = max(1, min(COLUMNS, len(tiles)))
    rows = -(-len(tiles) // columns)
    top = GAP_PX + LINE_PX
    image = Image.new("RGB", (GAP_PX + columns * (width + GAP_PX), top + GAP_PX + rows * (height + GAP_PX)), PAPER)
    ImageDraw.Draw(image).text((GAP_PX, GAP_PX // 2), title, fill=INK)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        image.paste(tile, (GAP_PX + column * (width + GAP_PX), top + GAP_PX + row * (height + GAP_PX)))
    return _png(image)


def _tile(shown: Exhibit) -> Image.Image:
    height, width = (SCALE * size for size in shown.picture.shape[:2])
    tile = Image.new("RGB", (width, height + LINE_PX * (len(shown.lines) + 1)), PAPER)
    tile.paste(Image.fromarray(shown.picture).resize((width, height), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(tile)
    for i, line in enumerate(shown.lines):
        draw.text((2, height + 4 + i * LINE_PX), line, fill=ALARM if shown.wrong and i == 0 else INK)
    return tile


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


RENDERERS: dict[str, Callable[[str, Sequence[Exhibit]], bytes]] = {".html": page, ".png": sheet}


def write(path: Path, title: str, shown: Sequence[Exhibit]) -> None:
    """Draw a gallery as its name says. Raises UserError when it cannot be written."""
    data = renderer(path)(title, shown)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def renderer(path: Path) -> Callable[[str, Sequence[Exhibit]], bytes]:
    """How a file of this name is drawn. Raises UserError for a name that is neither."""
    if path.suffix not in RENDERERS:
        raise UserError(f"{path}: a gallery is a page or a picture; name it .html or .png")
    return RENDERERS[path.suffix]
