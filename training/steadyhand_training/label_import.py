"""Import frames that were labelled elsewhere: pictures in two folders become episodes of their own in a run."""

from __future__ import annotations

import getpass
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from steadyhand_models import frames as preparation
from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models import wire
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Camera, Contract
from steadyhand_models.messages import EndReason, Label, LabelKind, Record, Source, Step
from steadyhand_models.task import Task
from steadyhand_training import progress
from steadyhand_training.delivery import DeliveryError, Parcel, deliver
from steadyhand_training.journal import IMPORT_EDGE
from steadyhand_training.review import task_name
from steadyhand_training.run_folder import RunFolder

U8 = npt.NDArray[np.uint8]
RUN = "import"
DEVICE = "import"
CLASSES = {"success": LabelKind.REVIEW_SUCCESS, "failure": LabelKind.REVIEW_NONE}
SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MOST_BYTES = 16 << 20  # of one picture's file
MOST_FRAMES = 20_000  # of one import; they are held in memory
STEPS_PER_LABEL = 4_000  # what one message may name
TOLD = 20  # refused files that are named one by one
_NUMBER = re.compile(r"^(?P<episode>.+)-(?P<number>\d{1,9})$")
_DESCRIPTION = """Import frames that were labelled elsewhere into a run: for the classifier only, never as actions.

The folder holds success/NAME.CAMERA.png and failure/NAME.CAMERA.png (or .jpg), one file for each of the task's cameras,
of the camera's native size or already of the prepared one. A NAME ending in -NNN belongs to the episode before it;
episodes are never split between learning and judging. Importing the same files twice changes nothing.

Example: steadyhand classifier import --run runs/lift --folder labelled/"""


@dataclass(frozen=True)
class ImportSettings:
    """From where, into which run, and whose labels they are."""

    folder: Path = Path("labelled")
    run: Path = Path("runs/latest")
    task: str = ""  # empty means the run's
    who: str = ""  # kept with every label; empty means the login name


@dataclass(frozen=True)
class Still:
    """One frame to import: what it shows and its pictures, one for each camera in the contract's order."""

    episode: str
    number: int
    name: str
    kind: LabelKind
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Refused:
    """A file that is not imported, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Found:
    stills: tuple[Still, ...]
    refused: tuple[Refused, ...]


def scan(folder: Path, contract: Contract) -> Found:
    """What a folder holds, by names alone, in order of episode and number. Raises UserError when it holds nothing."""
    if not any((folder / name).is_dir() for name in CLASSES):
        raise UserError(f"{folder}: holds neither success/ nor failure/; `--help` says how it must look")
    stills: list[Still] = []
    refused: list[Refused] = []
    for name, kind in CLASSES.items():
        found = _scan_class(folder / name, kind, [c.name for c in contract.cameras])
        stills += found.stills
        refused += found.refused
    if len(stills) > MOST_FRAMES:
        raise UserError(f"{folder}: {len(stills)} frames; import at most {MOST_FRAMES} at a time")
    stills.sort(key=lambda s: (s.episode, s.number, s.name, s.kind.value))
    return Found(tuple(stills), tuple(refused))


def _scan_class(folder: Path, kind: LabelKind, cameras: Sequence[str]) -> Found:
    by_name: dict[str, dict[str, Path]] = {}
    refused = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name, _, camera = path.stem.rpartition(".")
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            refused.append(Refused(path, "no .png or .jpg"))
        elif camera not in cameras or not name:
            refused.append(Refused(path, f"its name does not end in .{' or .'.join(cameras)}"))
        elif camera in by_name.setdefault(name, {}):
            refused.append(Refused(path, "the same name twice"))
        else:
            by_name[name][camera] = path
    stills = []
    for name, pictures in by_name.items():
        missing = [camera for camera in cameras if camera not in pictures]
        if missing:
            refused += [Refused(path, f"no picture of camera {missing[0]} beside it") for path in pictures.values()]
            continue
        split = _NUMBER.match(name)
        episode, number = (split["episode"], int(split["number"])) if split else (name, 0)
        stills.append(Still(episode, number, name, kind, tuple(pictures[camera] for camera in cameras)))
    return Found(tuple(stills), tuple(refused))


def load(path: Path, camera: Camera) -> U8:
    """A picture as models see it (h, w, 3). Raises ValueError with the reason why it cannot be used.

    Size and format are checked before any pixel is decoded.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES >> 20} MB")
        with Image.open(path, formats=FORMATS) as image:
            if image.size not in (camera.native_px, camera.size_px):
                wanted = f"{camera.native_px[0]}x{camera.native_px[1]} or {camera.size_px[0]}x{camera.size_px[1]}"
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels, not {wanted}")
            if image.mode not in ("RGB", "RGBA", "L", "P"):
                raise ValueError(f"pixels of kind {image.mode}, not RGB")
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except UnidentifiedImageError:
        raise ValueError("neither PNG nor JPEG inside") from None
    except (OSError, SyntaxError) as error:  # Pillow's way of saying that a file is broken
        raise ValueError(f"cannot be read: {error}") from None
    prepared = pixels.shape[:2] == camera.size_px[::-1] and camera.native_px != camera.size_px
    return pixels if prepared else preparation.prepare(pixels, camera)


@dataclass(frozen=True)
class Imported:
    """What became of a folder: the stream to deliver, and what is in it."""

    parcel: Parcel
    episodes: int
    positive: int
    negative: int
    repeated: int  # frames of success shown again, so that K of them follow each other
    refused: tuple[Refused, ...]


def build(found: Found, task: Task, who: str, told: Callable[[float], None] = lambda share: None) -> Imported:
    """Decode everything and make episodes of it. Raises UserError when nothing is left."""
    contract = task.contract()
    digest = hashlib.sha256(contract.hash.encode())
    refused = list(found.refused)
    episodes: dict[str, list[tuple[Still, U8]]] = {}
    for i, still in enumerate(found.stills):
        try:
            frames = np.stack([load(path, camera) for path, camera in zip(still.pictures, contract.cameras)])
        except ValueError as problem:
            refused += [Refused(path, str(problem)) for path in still.pictures]
            continue
        digest.update(f"{still.kind.value} {still.name} ".encode() + frames.tobytes())
        episodes.setdefault(still.episode, []).append((still, frames))
        told((i + 1) / len(found.stills))
    if not episodes:
        raise UserError(f"nothing to import: {len(refused)} files refused, the first because: {_first(refused)}")
    edge = f"{IMPORT_EDGE}{digest.hexdigest()[:12]}"
    messages: list[Step | Label] = []
    counts, repeated = Counter[LabelKind](), 0
    for number, stills in enumerate(episodes.values(), 1):
        held = _held(stills, task.debounce_frames)
        repeated += len(held) - len(stills)
        counts.update(still.kind for still, _ in stills)
        messages += _episode(edge, number, held, contract, who)
    records = tuple(Record(i, wire.encode(m)) for i, m in enumerate(messages, 1))
    return Imported(
        parcel=Parcel(edge, RUN, records),
        episodes=len(episodes),
        positive=counts[LabelKind.REVIEW_SUCCESS],
        negative=counts[LabelKind.REVIEW_NONE],
        repeated=repeated,
        refused=tuple(refused),
    )


def _first(refused: Sequence[Refused]) -> str:
    return f"{refused[0].path}: {refused[0].reason}" if refused else "there were none"


def _held(stills: list[tuple[Still, U8]], debounce_frames: int) -> list[tuple[Still, U8]]:
    """The frames, the last one of success repeated until K follow each other: fewer could never be found a success."""
    shows = [still.kind is LabelKind.REVIEW_SUCCESS for still, _ in stills]
    longest = run = end = 0
    for i, success in enumerate(shows, 1):
        run = run + 1 if success else 0
        if run > longest:
            longest, end = run, i
    missing = max(0, debounce_frames - longest) if longest else 0
    return [*stills[:end], *stills[end - 1 : end] * missing, *stills[end:]]


def _episode(
    edge: str, number: int, stills: Sequence[tuple[Still, U8]], contract: Contract, who: str
) -> Iterator[Step | Label]:
    """Steps without actions, the labels on them, and a last step that ends the episode."""
    steps = [
        _step(number, seq, frames, contract, last=seq + 1 == len(stills)) for seq, (_, frames) in enumerate(stills)
    ]
    yield from steps[:-1]
    for kind in CLASSES.values():
        seqs = [seq for seq, (still, _) in enumerate(stills) if still.kind is kind]
        for i in range(0, len(seqs), STEPS_PER_LABEL):
            part = tuple(seqs[i : i + STEPS_PER_LABEL])
            yield Label(
                event_id=f"{edge}-{number}-{kind.value}-{i}",
                kind=kind,
                stamp_ns=steps[part[-1]].stamp_ns,
                who=who,
                device=DEVICE,
                reaction_s=0.0,
                run=RUN,
                episode=number,
                contradicts=0,
                steps=part,
                said_unix_s=time.time(),
            )
    yield steps[-1]


def _step(number: int, seq: int, frames: U8, contract: Contract, *, last: bool) -> Step:
    """A frame as a step of nobody's: the state is not known and stands in the middle of its range."""
    return Step(
        run=RUN,
        episode=number,
        seq=seq,
        tick=seq,
        stamp_ns=round((number * 1e5 + seq) * 1e9 / contract.rate_hz),
        contract=contract.hash,
        frames=frames,
        state=contract.state_offset,
        proposed=None,
        executed=None,
        source=Source.NONE,
        reasons=("imported",),
        classifier=None,
        policy_version=0,
        classifier_version=0,
        frame_age_s=0.0,
        state_age_s=0.0,
        end=EndReason.OPERATOR if last else None,
    )


def report(imported: Imported) -> str:
    """What was imported and what was not, in words."""
    lines = [
        f"{imported.positive} frames of success and {imported.negative} of anything else "
        f"in {imported.episodes} episodes"
    ]
    if imported.repeated:
        lines.append(f"{imported.repeated} frames of success shown again, so that enough follow each other")
    if imported.refused:
        lines.append(f"{len(imported.refused)} files refused:")
        lines += [f"  {r.path}: {r.reason}" for r in imported.refused[:TOLD]]
        lines += [f"  and {len(imported.refused) - TOLD} more"] * (len(imported.refused) > TOLD)
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """`steadyhand classifier import`: 0 when everything was imported, 1 when files were refused or nothing was."""
    chosen = toml.parse_command_line(ImportSettings, argv, "steadyhand classifier import", _DESCRIPTION)
    folder = RunFolder(chosen.run)
    task = tasks.load(chosen.task or task_name(folder))
    found = scan(chosen.folder, task.contract())
    with progress.shown("reading pictures") as told:
        imported = build(found, task, chosen.who or getpass.getuser(), told)
    print(report(imported))
    try:
        way = deliver(folder, task.contract(), imported.parcel)
    except DeliveryError as problem:
        raise UserError(f"{problem}; run the same command again, what has arrived is not imported twice") from None
    print(f"{way.value}: {folder.root}")
    return 1 if imported.refused else 0
