"""Checkpoints: whole folders that appear at once, so that a crash leaves the last one or the one before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

KEPT = 2


def save(root: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write into a folder aside, then give it the next number; older ones than the last two go."""
    root.mkdir(parents=True, exist_ok=True)
    known = listing(root)
    final = root / f"{int(known[-1].name) + 1 if known else 1:06d}"
    aside = root / f".{final.name}.aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    fill(aside)
    for path in (*(p for p in aside.rglob("*") if p.is_file()), aside):
        _sync(path)
    aside.rename(final)
    _sync(root)
    for old in [*known, final][:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def listing(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name.isdigit())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
