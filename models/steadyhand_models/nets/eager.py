"""Times the sample networks in torch itself, one thread: what `steadyhand bench infer` compares with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
from pydantic import Field

from steadyhand_models import settings, task
from steadyhand_models.nets import classifier as classifiers
from steadyhand_models.nets.actor_critic import Policy
from steadyhand_models.pacing import Timing, paced


@dataclass(frozen=True)
class EagerSettings:
    """Policy and classifier in torch, at a pace.

    Example: python -m steadyhand_models.nets.eager --samples /tmp/samples --rate-hz 10 --calls 30
    """

    samples: Path = Path("samples")
    rate_hz: Annotated[float, Field(gt=0, le=500)] = 10.0
    calls: Annotated[int, Field(ge=2)] = 30
    task: str = "lift"


def main(argv: Sequence[str]) -> int:
    """Print the timing as JSON."""
    chosen = settings.parse_command_line(EagerSettings, argv, "eager", EagerSettings.__doc__ or "")
    torch.set_num_threads(1)
    contract = task.load(chosen.task).contract()
    policy = Policy(contract).eval()
    policy.load_state_dict(torch.load(chosen.samples / "policy.pt", weights_only=True))
    judge = classifiers.build(contract.frames_shape, classifiers.DEFAULT_HEADS, 0).eval()
    judge.load_state_dict(torch.load(chosen.samples / "classifier.pt", weights_only=True))
    frames = np.random.default_rng(0).integers(0, 256, (16, *contract.frames_shape), dtype=np.uint8)
    state, noise = torch.zeros(1, len(contract.state)), torch.zeros(1, len(contract.action))

    def call(number: int) -> None:
        seen = torch.from_numpy(frames[number % len(frames)])[None]
        with torch.inference_mode():
            judge(seen).numpy()
            policy(seen, state, noise).numpy()

    timing = paced(call, chosen.rate_hz, chosen.calls)
    sys.stdout.write(pydantic.TypeAdapter(Timing).dump_json(timing).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
