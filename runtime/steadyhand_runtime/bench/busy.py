"""Load for benches: processes that keep cores busy, one each."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType

# Matrix products like a trainer's, in one thread each.
_WORK = """
import os, signal
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
import numpy as np
a = np.random.default_rng(0).normal(size=(256, 256)).astype("f4")
print("busy", flush=True)
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100):
        b = a @ a
"""


class Busy:
    """Context manager: `count` busy processes (0: one per core), ended with it or with this process."""

    def __init__(self, count: int = 0) -> None:
        self._count = count or os.cpu_count() or 1
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Busy:
        command = [sys.executable, "-c", _WORK]
        self._processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(self._count)]
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()
