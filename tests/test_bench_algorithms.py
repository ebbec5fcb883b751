"""The bench of algorithms and encoders: what it covers, and that its figures are of learners that learn."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from steadyhand_models import task
from steadyhand_training import bench_algorithms
from steadyhand_training.config import Algorithm, Encoders, LearnerSettings
from steadyhand_training.learner import Learner

torch.set_num_threads(1)


def test_every_algorithm_and_every_encoder_is_measured() -> None:
    found = bench_algorithms.candidates().values()
    assert {each.algorithm for each in found} == set(Algorithm)
    assert {each.sight for each in found} == set(Encoders) - {Encoders.AUTO}


def test_figures_are_of_updates_that_were_made() -> None:
    contract = task.load("lift").contract()
    replay = bench_algorithms.filled(contract, 200, 0)
    small = LearnerSettings(batch=4, pretrain_batches=1, pretrain_batch=4, warmup_updates=1, shifted_copies=0)
    learner = Learner(contract, replay, small, 0)
    figures = bench_algorithms.measure(learner, rounds=2, seconds=1e-6)
    assert learner.updates == bench_algorithms.WARM_UP + 2
    assert figures.updates_per_cpu_s > 0 and figures.bytes_per_step == learner.bytes_per_step


def test_what_has_no_weights_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {name: each for name, each in bench_algorithms.candidates().items() if each.sight is Encoders.BACKBONE}
    missing = chosen.popitem()[1]
    bad = {"with a file that is not there": _with_file(missing, tmp_path / "absent.pth")}
    monkeypatch.setattr(bench_algorithms, "candidates", lambda: bad)
    assert bench_algorithms.main(["--steps", "200", "--json", str(tmp_path / "out.json")]) == 0
    assert "absent.pth" in capsys.readouterr().out.replace("\n", "")
    assert "with a file that is not there" not in json.loads((tmp_path / "out.json").read_text())


def _with_file(each: LearnerSettings, file: Path) -> LearnerSettings:
    return dataclasses.replace(each, backbone=dataclasses.replace(each.backbone, file=file))
