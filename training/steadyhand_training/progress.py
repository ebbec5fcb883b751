"""Progress of long work in the foreground: a bar in a terminal, a line now and then anywhere else; on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress

LINE_EVERY_S = 10.0


@contextlib.contextmanager
def shown(what: str) -> Iterator[Callable[[float], None]]:
    """Gives a function that takes the share done, 0..1."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda share: bar.update(task, completed=share)
        return
    due_s = time.monotonic() + LINE_EVERY_S

    def line(share: float) -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + LINE_EVERY_S
            print(f"{what}: {share:.0%}", file=sys.stderr, flush=True)

    yield line
