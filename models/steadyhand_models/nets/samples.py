"""Artifacts of untrained networks for benches: the real architectures and exports, no learning."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from steadyhand_models import settings, task
from steadyhand_models.artifact import Artifact, Golden, Manifest, digest
from steadyhand_models.contract import Contract
from steadyhand_models.faulty import Fault, make
from steadyhand_models.messages import Channel
from steadyhand_models.nets import classifier as classifiers
from steadyhand_models.nets.actor_critic import Policy
from steadyhand_models.nets.export import TOLERANCE, Exporter
from steadyhand_models.registry import Registry

GOLDEN = 8
SPREAD = 0.02  # of the weights from one policy to the next: another network, and not another behaviour
SLOW_TURNS = 25_000  # about 0.07 s: over half of a period of 10 Hz
ENDLESS_TURNS = 100_000_000
FAULTS = {"nan": (Fault.NAN, 0), "error": (Fault.ERROR, 0), "slow": (Fault.SLOW, SLOW_TURNS),
          "endless": (Fault.SLOW, ENDLESS_TURNS)}  # fmt: skip


@dataclass(frozen=True)
class SamplesSettings:
    """Registries of sample artifacts: `good`, and one `fault-NAME` of a single policy for each fault.

    Policies take the features of one frozen encoder, which is in `good`.

    Example: python -m steadyhand_models.nets.samples --out /tmp/samples --policies 3
    """

    out: Path = Path("samples")
    policies: Annotated[int, Field(ge=1, le=1000)] = 3
    seed: Annotated[int, Field(ge=0)] = 0
    task: str = "lift"
    state_dicts: bool = False  # also the weights as torch saves them, policy.pt and classifier.pt


def main(argv: Sequence[str]) -> int:
    """Write the registries."""
    chosen = settings.parse_command_line(SamplesSettings, argv, "samples", SamplesSettings.__doc__ or "")
    torch.manual_seed(chosen.seed)
    contract = task.load(chosen.task).contract()
    rng = np.random.default_rng(chosen.seed)
    frames = rng.integers(0, 256, (GOLDEN, *contract.frames_shape), dtype=np.uint8)
    state = (contract.state_offset + contract.state_scale * rng.normal(size=(GOLDEN, len(contract.state)))).astype("f4")
    good, net, exporter = Registry(chosen.out / "good"), Policy(contract).eval(), Exporter()
    eye = _artifact(contract, Channel.ENCODER, 1, *Exporter().encoder(net.encoder, contract, frames))
    good.publish(eye)
    for version in range(1, chosen.policies + 1):
        made = exporter.policy_on_features(net.behind(), contract, eye, state)
        last = _artifact(contract, Channel.POLICY, version, *made, eye.manifest.sha256)
        good.publish(last)
        _drift(net)
    judge = classifiers.build(contract.frames_shape, classifiers.DEFAULT_HEADS, chosen.seed).eval()
    good.publish(_artifact(contract, Channel.CLASSIFIER, 1, *Exporter().classifier(judge, contract, frames)))
    for name, (fault, turns) in FAULTS.items():
        Registry(chosen.out / f"fault-{name}").publish(make(last, fault, last.manifest.version + 1, turns))
    if chosen.state_dicts:
        torch.save(net.state_dict(), chosen.out / "policy.pt")
        torch.save(judge.state_dict(), chosen.out / "classifier.pt")
    return 0


def _drift(net: Policy) -> None:
    """Move the actor's weights a little, as learning does between two versions."""
    with torch.no_grad():
        for weight in net.actor.parameters():
            weight.add_(torch.randn_like(weight) * SPREAD * (weight.std() if weight.numel() > 1 else 0.0))


def _artifact(
    contract: Contract, channel: Channel, version: int, model: bytes, golden: Golden, encoder_sha256: str = ""
) -> Artifact:
    boundary: Literal["tick", "episode"] = "episode" if channel is Channel.CLASSIFIER else "tick"
    manifest = Manifest(
        channel, version, version - 1, contract.hash, digest(model, golden), 0, time.time(), boundary, TOLERANCE,
        encoder_version=1 if encoder_sha256 else 0, encoder_sha256=encoder_sha256,
    )  # fmt: skip
    return Artifact(manifest, model, golden)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
