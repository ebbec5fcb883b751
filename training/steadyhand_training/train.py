"""Learn from streamed steps: journal, replay, policy and classifier, published to the robot on a schedule."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import torch

from steadyhand_models import settings as toml
from steadyhand_models.cli import UserError
from steadyhand_training import log
from steadyhand_training.allocator import keep_freed_memory
from steadyhand_training.learner import Diverged
from steadyhand_training.run_folder import RunFolder, write_whole
from steadyhand_training.trainer import Trainer
from steadyhand_training.trainer_settings import TrainerSettings


def _stop_on_signals(trainer: Trainer) -> None:
    """The first Ctrl-C or SIGTERM ends the run in order, the second at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        trainer.stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)


def main(argv: Sequence[str]) -> int:
    """`steadyhand train`: run until told to stop."""
    settings = toml.parse_command_line(
        TrainerSettings,
        argv,
        prog="steadyhand train",
        description="Learn from streamed steps and publish policies and classifiers.\n\n"
        "Example: steadyhand train --run runs/lift --demonstrations 10",
    )
    folder = RunFolder(settings.run)
    log.configure()
    torch.set_num_threads(settings.threads)
    os.nice(settings.nice)
    keep_freed_memory()
    with folder.claim():
        text = toml.to_toml(settings)
        write_whole(folder.settings, text)
        log.info("trainer.settings", text=text)
        trainer = Trainer(settings, folder)
        _stop_on_signals(trainer)
        try:
            trainer.run()
        except Diverged as problem:
            raise UserError(f"{problem}; start again to go on from the last checkpoint, or lower the rates") from None
        finally:
            trainer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
