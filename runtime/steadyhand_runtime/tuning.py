"""Tuning: how many threads inference gets on this machine, measured once per run at the control loop's own pace."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pydantic

from steadyhand_models import durable
from steadyhand_models.artifact import Artifact, ArtifactError
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_runtime import inference
from steadyhand_runtime.cutoff import Cutoff
from steadyhand_runtime.engine import Engine, import_onnxruntime
from steadyhand_runtime.inference import Encoder, Model, ModelFailure
from steadyhand_runtime.telemetry import Log

CANDIDATES = (1, 2)
RUNS = 15  # of each candidate; the medians of so many differ by a few percent between repetitions
WORTH = 0.75  # a second thread must bring this share of one thread's time: it takes a core from everything else


@dataclass(frozen=True)
class Tuned:
    """What was measured: median seconds of a call by number of threads, where, and what follows."""

    threads: int
    one_s: float
    two_s: float
    onnxruntime: str
    cores: int
    rate_hz: float


_TUNED = pydantic.TypeAdapter(Tuned)


class Tuner:
    """Builds models for standby, at first with one thread; `tune` measures and decides for those to come."""

    def __init__(
        self,
        engine: Engine,
        contract: Contract,
        path: Path,
        log: Log,
        cutoff: Cutoff | None = None,
        encoder_engine: Engine | None = None,
    ) -> None:
        """path is where the measurement is kept; engine.threads of 0 asks for one. Encoders get the same threads."""
        self._contract, self._path, self._log, self._cutoff = contract, path, log, cutoff
        self.wanted = engine.threads == 0
        self.engine = replace(engine, threads=max(1, engine.threads))
        self.encoder_engine = replace(encoder_engine or engine, threads=self.engine.threads)
        if self.wanted and (known := self._known()) is not None:
            self._decide(known)

    def build(self, artifact: Artifact, contract: Contract, encoder: Encoder | None = None) -> Model:
        """As `inference.load`, with the engine of the moment."""
        return inference.load(artifact, contract, encoder, self.engine, self._cutoff)

    def build_encoder(self, artifact: Artifact, contract: Contract) -> Encoder:
        """As `inference.load_encoder`, with the engine of the moment."""
        return inference.load_encoder(artifact, contract, self.encoder_engine)

    def tune(self, artifact: Artifact, wait: Callable[[float], bool], encoder: Artifact | None = None) -> bool:
        """Measure with this model and its encoder, once; `wait` sleeps some seconds and says whether to go on.

        Returns whether that has changed how models are built.
        """
        if not self.wanted:
            return False
        before = self.engine
        try:
            times = paced([self._candidate(artifact, encoder, n) for n in CANDIDATES], self._contract, wait)
        except (ArtifactError, UserError, ModelFailure) as error:
            self._log.warn("inference.not_tuned", every_s=60.0, reason=error)
            return False
        if times is None:
            return False
        one_s, two_s = (statistics.median(t) for t in times)
        made = Tuned(best(one_s, two_s), one_s, two_s, _version(), os.cpu_count() or 1, self._contract.rate_hz)
        self._decide(made)
        try:
            durable.replace(self._path, _TUNED.dump_json(made, indent=1) + b"\n")
        except OSError as error:
            self._log.warn("inference.tuning_not_kept", path=self._path, reason=error.strerror)
        return self.engine != before

    def _candidate(self, artifact: Artifact, encoder: Artifact | None, threads: int) -> Model:
        front = None
        if encoder is not None:
            front = Encoder(encoder, self._contract, replace(self.encoder_engine, threads=threads))
        return Model(artifact, self._contract, front, replace(self.engine, threads=threads))

    def _decide(self, tuned: Tuned) -> None:
        self.wanted = False
        self.engine = replace(self.engine, threads=tuned.threads)
        self.encoder_engine = replace(self.encoder_engine, threads=tuned.threads)
        self._log.info("inference.tuned", **asdict(tuned))

    def _known(self) -> Tuned | None:
        """An earlier measurement of this machine, onnxruntime and rate."""
        try:
            known = _TUNED.validate_json(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        here = (_version(), os.cpu_count() or 1, self._contract.rate_hz)
        return known if (known.onnxruntime, known.cores, known.rate_hz) == here else None


def best(one_s: float, two_s: float) -> int:
    """How many threads to use, from the median seconds of a call with one and with two."""
    return 2 if two_s <= WORTH * one_s else 1


def paced(
    models: Sequence[Model], contract: Contract, wait: Callable[[float], bool], runs: int = RUNS
) -> list[list[float]] | None:
    """Seconds of each model's calls, one call a control period, in turn; None when told to stop."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, contract.frames_shape, dtype=np.uint8)
    state, noise = np.zeros(len(contract.state), np.float32), np.zeros(len(contract.action), np.float32)
    times: list[list[float]] = [[] for _ in models]
    for number in range(runs * len(models)):
        begun_s = time.perf_counter()
        model = models[number % len(models)]
        model.run(frames, state, noise)
        times[number % len(models)].append(model.last_s)
        if not wait(max(0.0, 1.0 / contract.rate_hz - (time.perf_counter() - begun_s))):
            return None
    return times


def _version() -> str:
    return str(import_onnxruntime().__version__)
