"""TensorBoard and Weights & Biases get the run's scalars when asked for; without them the way to install is named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steadyhand_models.cli import UserError
from steadyhand_training.ingest import Counters
from steadyhand_training.memory import Tally
from steadyhand_training.metric_writers import WriterSettings, open_writers
from steadyhand_training.metrics import read_json_lines
from steadyhand_training.status import Reporter, View


class Fake:
    """Remembers what either library would be told."""

    def __init__(self, *words: Any, **options: Any) -> None:
        self.made = (words, options)
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.scalars += [(name, value, step) for name, value in scalars.items()]

    def close(self) -> None:
        self.closed = True

    finish = close


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Both libraries replaced; the writers that were opened."""
    opened: list[Fake] = []

    def make(*words: Any, **options: Any) -> Fake:
        opened.append(Fake(*words, **options))
        return opened[-1]

    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    board.SummaryWriter = make  # type: ignore[attr-defined]
    wandb.init = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return opened


def view() -> View:
    return View(
        phase="learn", message="", tally=Tally(steps=120, episodes=4), arrived=Counters(), updates=60,
        steps_learning=30, policy_version=3, classifier_version=1, q_bound=1.0, learner={"q": 0.5},
        correction={"promotions": 2.0}, versions={"best_version": 2.0}, warnings=("The arm stands still.",),
    )  # fmt: skip


def test_nothing_is_opened_unless_asked_for(made: list[Fake], tmp_path: Path) -> None:
    assert open_writers(WriterSettings(), tmp_path) == [] and made == []


def test_both_get_every_scalar_at_the_recorded_step_and_are_closed(made: list[Fake], tmp_path: Path) -> None:
    writers = open_writers(WriterSettings(tensorboard=True, wandb="arms"), tmp_path)
    reporter = Reporter("tcp://127.0.0.1:*", tmp_path / "metrics.jsonl", writers)
    reporter.report(view(), 1.0)
    reporter.close()
    board, wandb = made
    assert board.made[0] == (str(tmp_path / "tensorboard"),) and wandb.made[1]["project"] == "arms"
    for one in made:
        assert one.closed
        found = {name: value for name, value, step in one.scalars if step == 120}
        assert found["learner/q"] == 0.5 and found["classifier/promotions"] == 2.0
        assert found["versions/best_version"] == 2.0 and found["run/utd_ratio"] == 2.0


def test_the_run_folder_keeps_warnings_and_versions_beside_them(tmp_path: Path) -> None:
    reporter = Reporter("tcp://127.0.0.1:*", tmp_path / "metrics.jsonl")
    reporter.report(view(), 1.0)
    reporter.close()
    (row,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert row["warnings"] == ["The arm stands still."] and row["metrics"]["best_version"] == 2.0


@pytest.mark.parametrize(
    ("settings", "module", "extra"),
    [
        (WriterSettings(tensorboard=True), "torch.utils.tensorboard", "tensorboard"),
        (WriterSettings(wandb="arms"), "wandb", "wandb"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: WriterSettings, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"steadyhand\[{extra}\]"):
        open_writers(settings, tmp_path)
