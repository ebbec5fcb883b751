"""What saturates the machine while `steadyhand bench loop` measures: a real learner per core, or matrix products."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
from types import TracebackType

from steadyhand_runtime.bench.busy import Busy

START_S = 120.0  # imports of torch and the first updates, all cores at once
LEARNER = "steadyhand_training.bench_learner_stack"
JOB = {"stack": "ours_end_to_end", "steps": 400, "seed": 0, "threads": 1, "batch": 64}


class Training:
    """Context manager: one learner process per core, updating without a pause; where none can, matrix products.

    `what` says which of them it became.
    """

    def __init__(self, cores: int = 0) -> None:
        self._count = cores or os.cpu_count() or 1
        self._learners: list[subprocess.Popen[str]] = []
        self._busy: Busy | None = None
        self.what = ""

    def __enter__(self) -> Training:
        if importlib.util.find_spec("torch") is not None:
            self._learners = [_start() for _ in range(self._count)]
            if all(_is_up(learner) for learner in self._learners):
                for learner in self._learners:
                    _tell(learner, 1e9)
                self.what = f"{self._count} SAC learners (torch), one thread each"
                return self
            self._end()
        self._busy = Busy(self._count).__enter__()
        self.what = f"{self._count} processes of matrix products (numpy)"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
        if self._busy is not None:
            self._busy.__exit__(kind, error, at)

    def _end(self) -> None:
        for learner in self._learners:
            learner.kill()
        for learner in self._learners:
            learner.communicate()
        self._learners = []


def _start() -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", LEARNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    _tell(process, JOB)
    return process


def _tell(process: subprocess.Popen[str], what: object) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended, which its missing answer shows


def _is_up(process: subprocess.Popen[str]) -> bool:
    """Whether its first line came: it has made its first updates."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    return bool(ready and process.stdout.readline())
