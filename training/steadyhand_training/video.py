"""A short video of a run from its journal: what the cameras saw in a few telling episodes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from steadyhand_models.messages import Step
from steadyhand_training.facts import EpisodeFacts, EpisodeKind, RunFacts
from steadyhand_training.journal import Journal
from steadyhand_training.run_folder import RunFolder

U8 = npt.NDArray[np.uint8]
SCALE = 4
CAPTION_PX = 24
REST_FRAMES = 6  # shown still at the end of an episode
CODECS = (("libx264", "mp4", {"crf": "23", "preset": "veryfast"}), ("libvpx-vp9", "webm", {"crf": "33", "b": "0"}))


@dataclass(frozen=True)
class Scene:
    """One episode worth showing, and the words below it."""

    episode: EpisodeFacts
    caption: str


@dataclass(frozen=True)
class Video:
    data: bytes
    mime: str


def choose(facts: RunFacts) -> list[Scene]:
    """First demonstration, first try, a takeover, a false success, the last success alone; in their order of time."""
    shown = [e for e in facts.episodes if e.end is not None]
    wanted = (
        ("demonstration", [e for e in shown if e.kind is EpisodeKind.DEMONSTRATION and e.true_success]),
        ("last success alone", [e for e in reversed(shown) if e.alone and e.true_success]),
        ("first policy, alone", [e for e in shown if e.alone]),
        ("classifier fooled", [e for e in shown if e.false_positive]),
        ("with a takeover", [e for e in shown if e.takeover_steps]),
    )
    found: dict[int, Scene] = {}
    for what, episodes in wanted:
        episode = next((e for e in episodes if e.number not in found), None)
        if episode is not None:
            version = f", policy v{episode.policy_version}" if episode.policy_version else ""
            found[episode.number] = Scene(episode, f"{what}: episode {episode.number}{version}")
    return sorted(found.values(), key=lambda scene: scene.episode.begin_ns)


def make(facts: RunFacts, rate_hz: float) -> Video | None:
    """The video in real time; None when nothing was recorded or no encoder is there."""
    return of(facts, choose(facts), rate_hz)


def of(facts: RunFacts, scenes: Sequence[Scene], rate_hz: float) -> Video | None:
    """A video of chosen episodes of a run; None when nothing was recorded or no encoder is there."""
    journal_path = RunFolder(facts.folder).journal
    if not journal_path.is_file():
        return None
    journal = Journal(journal_path)
    try:
        pictures = [picture for scene in scenes for picture in _pictures(journal, facts.run, scene)]
    finally:
        journal.close()
    return encode(pictures, rate_hz) if pictures else None


def encode(pictures: Sequence[U8], rate_hz: float) -> Video | None:
    """Pictures (H, W, 3) of one size as a video that browsers play; None without an encoder for one."""
    for codec, container, options in CODECS:
        if codec not in av.codecs_available:
            continue
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as output:
            stream = output.add_stream(codec, rate=round(rate_hz), options=options)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for picture in pictures:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(stream.encode(None))
        return Video(buffer.getvalue(), f"video/{container}")
    return None


def _pictures(journal: Journal, run: str, scene: Scene) -> list[U8]:
    found = []
    for entry in journal.episode(run, scene.episode.number):
        message = entry.message
        if isinstance(message, Step):
            found.append(_picture(message, scene.caption))
    return found + found[-1:] * REST_FRAMES


def _picture(step: Step, caption: str) -> U8:
    """All cameras side by side, enlarged, above a line of text."""
    probability = "" if step.classifier is None else f"  p = {float(step.classifier.mean()):.2f}"
    text = f"{caption}  step {step.seq}  {step.source.value}{probability}"
    return captioned(np.concatenate(list(step.frames), axis=1), text)


def captioned(row: U8, text: str) -> U8:
    """A picture (H, W, 3), enlarged, above a line of text."""
    large = row.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    height, width = large.shape[:2]
    image = Image.new("RGB", (width, height + CAPTION_PX), (24, 24, 28))
    image.paste(Image.fromarray(large), (0, 0))
    ImageDraw.Draw(image).text((6, height + 6), text, fill=(235, 235, 235))
    return np.asarray(image, np.uint8)
