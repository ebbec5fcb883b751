"""Frames labelled elsewhere become labelled episodes without actions; what cannot be right is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_trainer import DEMONSTRATIONS, TINY, Bench, one_thread
from training_steps import CONTRACT, TASK

from steadyhand_models import frames, wire
from steadyhand_models import settings as toml
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Label, LabelKind, Step
from steadyhand_training import label_import
from steadyhand_training.journal import Journal
from steadyhand_training.label_import import build, load, scan
from steadyhand_training.labels import Ledger
from steadyhand_training.memory import Memory
from steadyhand_training.replay import Replay
from steadyhand_training.run_folder import RunFolder

__all__ = ["one_thread"]
CAMERA = CONTRACT.cameras[0]


def paint(path: Path, level: int, size_px: tuple[int, int] = CAMERA.native_px, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size_px
    rng = np.random.default_rng(level)
    pixels = np.clip(level + rng.integers(-9, 9, (height, width, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]


def still(folder: Path, what: str, name: str, level: int, suffix: str = "png") -> None:
    """One frame: a picture for each camera."""
    for camera in CONTRACT.cameras:
        paint(folder / what / f"{name}.{camera.name}.{suffix}", level)


def labelled(folder: Path) -> Path:
    """Two episodes, one with K successes, and a lonely failure."""
    for i in range(3):
        still(folder, "failure", f"morning-{i:03d}", 60 + i)
    for i in (3, 4, 5):
        still(folder, "success", f"morning-{i:03d}", 200 + i)
    still(folder, "success", "evening-001", 180)
    still(folder, "failure", "lonely", 70, "jpg")
    return folder


def remembered(folder: RunFolder) -> Memory:
    memory = Memory(Replay(CONTRACT, 10_000), Ledger())
    journal = Journal(folder.journal)
    for entry in journal.replay():
        memory.consume(entry)
    journal.close()
    return memory


def test_pictures_become_episodes_with_labels_on_the_right_frames(tmp_path: Path) -> None:
    imported = build(scan(labelled(tmp_path), CONTRACT), TASK, "ann")
    assert (imported.episodes, imported.positive, imported.negative, imported.repeated) == (3, 4, 4, 2)
    messages = [wire.decode(r.payload, Step, Label) for r in imported.parcel.records]
    by_episode = {e: [m for m in messages if isinstance(m, Step) and m.episode == e] for e in (1, 2, 3)}
    said = {(m.episode, m.kind): m.steps for m in messages if isinstance(m, Label)}
    # In order of name: evening, its one success shown three times for K = 3; lonely; morning.
    assert TASK.debounce_frames == 3 and [len(by_episode[e]) for e in (1, 2, 3)] == [3, 1, 6]
    assert said == {
        (1, LabelKind.REVIEW_SUCCESS): (0, 1, 2),
        (2, LabelKind.REVIEW_NONE): (0,),
        (3, LabelKind.REVIEW_SUCCESS): (3, 4, 5),
        (3, LabelKind.REVIEW_NONE): (0, 1, 2),
    }
    bright = [float(s.frames.mean()) > 128 for s in by_episode[3]]
    assert bright == [False, False, False, True, True, True]
    assert {(m.who, m.device) for m in messages if isinstance(m, Label)} == {("ann", "import")}


def test_frames_are_prepared_as_the_robot_prepares_them(tmp_path: Path) -> None:
    path = tmp_path / f"x.{CAMERA.name}.png"
    paint(path, 90)
    with Image.open(path) as image:
        native = np.asarray(image)
    np.testing.assert_array_equal(load(path, CAMERA), frames.prepare(native, CAMERA))


def test_prepared_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / f"x.{CAMERA.name}.png"
    paint(path, 90, CAMERA.size_px)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load(path, CAMERA), np.asarray(image))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.front.png", b"no picture", "neither PNG nor JPEG inside"),
        ("a.front.gif", b"GIF89a", "no .png or .jpg"),
        ("a.side.png", b"x", "does not end in"),
        ("front.png", b"x", "does not end in"),
    ],
)
def test_a_file_that_is_no_such_picture_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    labelled(tmp_path)
    (tmp_path / "success" / name).write_bytes(content)
    if name == "a.front.png":
        paint(tmp_path / "success" / "a.wrist.png", 80)
    refused = build(scan(tmp_path, CONTRACT), TASK, "ann").refused
    assert [r.reason for r in refused if r.path.name == name and reason in r.reason]


def test_wrong_sizes_and_broken_files_are_refused_and_the_rest_is_imported(tmp_path: Path) -> None:
    labelled(tmp_path)
    still(tmp_path, "failure", "small-1", 50)
    paint(tmp_path / "failure" / "small-1.front.png", 50, (40, 30))
    still(tmp_path, "failure", "cut-1", 50)
    whole = (tmp_path / "failure" / "cut-1.wrist.png").read_bytes()
    (tmp_path / "failure" / "cut-1.wrist.png").write_bytes(whole[: len(whole) // 2])
    imported = build(scan(tmp_path, CONTRACT), TASK, "ann")
    assert imported.negative == 4 and len(imported.refused) == 4
    text = label_import.report(imported)
    assert "40x30 pixels" in text and "cannot be read" in text and "4 files refused" in text


def test_a_frame_without_one_of_its_cameras_is_refused(tmp_path: Path) -> None:
    labelled(tmp_path)
    (tmp_path / "success" / "evening-001.wrist.png").unlink()
    (refused,) = scan(tmp_path, CONTRACT).refused
    assert refused.reason == "no picture of camera wrist beside it"


def test_an_oversized_file_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.front.png"
    paint(path, 90)
    monkeypatch.setattr(label_import, "MOST_BYTES", 100)
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(ValueError, match="larger than"):
        load(path, CAMERA)


def test_a_folder_that_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither success/ nor failure/"):
        scan(tmp_path, CONTRACT)
    (tmp_path / "success").mkdir()
    with pytest.raises(UserError, match="nothing to import"):
        build(scan(tmp_path, CONTRACT), TASK, "ann")


def test_importing_twice_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--folder",
        str(labelled(tmp_path / "in")),
        "--run",
        str(tmp_path / "run"),
        "--task",
        "lift",
        "--who",
        "ann",
    ]
    assert label_import.main(words) == 0
    first = remembered(RunFolder(tmp_path / "run")).replay.size
    assert label_import.main(words) == 0
    memory = remembered(RunFolder(tmp_path / "run"))
    assert memory.replay.size == first == 10 and "4 frames of success and 4 of anything else" in capsys.readouterr().out
    assert memory.tally.imported == 10 and memory.tally.steps == memory.tally.episodes == 0


def test_a_running_trainer_learns_the_labels_and_never_an_action_from_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", TINY)
    folder = bench.folder
    folder.settings.write_text(toml.to_toml(TINY), encoding="utf-8")
    bench.feed(DEMONSTRATIONS)
    trainer = bench.trainer
    before, transitions = trainer.memory.tally.steps, trainer.memory.replay.transitions
    with folder.claim():
        trainer.ingest.start()
        folder.write_addresses(trainer.ingest.endpoint, "")
        assert trainer.ingest.robots == []
        assert label_import.main(["--folder", str(labelled(tmp_path / "in")), "--run", str(folder.root)]) == 0
    bench.drain()
    memory = trainer.memory
    assert memory.tally.imported == 10 and memory.tally.steps == before
    assert memory.replay.transitions == transitions
    imported = [e for e in memory.replay.episodes if memory.origin(e)[0].startswith("import-")]
    spoken = trainer.correction.evidence.labelled()
    assert len(imported) == 3 and set(imported) <= set(spoken)
    bench.restart()
    assert set(imported) <= set(bench.trainer.correction.evidence.labelled())
    bench.close()
