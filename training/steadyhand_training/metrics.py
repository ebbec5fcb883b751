"""Numbers for people and programs: a line-by-line JSON log and the Wilson interval."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TAIL_BYTES = 64 << 10
Z_95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution


class JsonLines:
    """Appends one JSON object per line; a line cut off by a crash is skipped when read back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, default=_plain) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete object of a file written by JsonLines; nothing when the file does not exist."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                row = json.loads(text)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def last_json_line(path: Path, kind: str) -> dict[str, Any] | None:
    """The newest object of a kind near a growing file's end; None when there is none, or no file."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for text in reversed(lines):
        try:
            row = json.loads(text)
        except ValueError:  # cut off at either end
            continue
        if isinstance(row, dict) and row.get("kind") == kind:
            return row
    return None


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); (0, 1) when nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    scale = 1.0 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _plain(value: Any) -> Any:
    """Numpy scalars and enums as their plain values."""
    return value.item() if hasattr(value, "item") else getattr(value, "value", str(value))
