"""Checkpoints: whole folders that appear at once, so that a crash leaves the last one or the one before."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

KEPT = 2

Fill = Callable[[Path], None]


def save(root: Path, fill: Fill) -> Path:
    """Let `fill` write into a folder aside, then give it the next number; older ones than the last two go."""
    aside = _begin(root)
    fill(aside)
    return _finish(root, aside)


def listing(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name.isdigit())


class Saver:
    """Writes checkpoints in a thread, one at a time, so that learning goes on meanwhile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._thread: threading.Thread | None = None
        self._problem: OSError | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, fill_now: Fill, fill_later: Fill) -> None:
        """Run `fill_now` here and `fill_later` in the thread, which then gives the folder its number.

        Waits for the one before. Raises OSError when a folder cannot be written, now or the last time.
        """
        self.wait()
        aside = _begin(self.root)
        fill_now(aside)
        self._thread = threading.Thread(target=self._write, args=(aside, fill_later), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises OSError when that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _write(self, aside: Path, fill: Fill) -> None:
        try:
            fill(aside)
            _finish(self.root, aside)
        except OSError as error:
            self._problem = error


def _begin(root: Path) -> Path:
    """An empty folder aside."""
    root.mkdir(parents=True, exist_ok=True)
    known = listing(root)
    aside = root / f".{int(known[-1].name) + 1 if known else 1:06d}.aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    return aside


def _finish(root: Path, aside: Path) -> Path:
    """Make a filled folder durable and give it its number."""
    for path in (*(p for p in aside.rglob("*") if p.is_file()), aside):
        _sync(path)
    final = root / aside.name.removeprefix(".").removesuffix(".aside")
    aside.rename(final)
    _sync(root)
    for old in listing(root)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
