"""Real artifacts for benches: given ones, or those of untrained networks, made by a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from steadyhand_models.cli import UserError

MAKER = "steadyhand_models.nets.samples"
TIMEOUT_S = 300.0


def make(folder: Path, policies: int, seed: int, weights: bool = False) -> Path:
    """Fill a folder with sample registries; with `weights` also as torch saves them. Raises UserError.

    Torch is needed to make them, and loaded only there: the runtime never is in one process with it.
    """
    if any(importlib.util.find_spec(name) is None for name in ("torch", "onnx")):
        raise UserError("this bench makes its models with torch and onnx: pip install 'steadyhand[train]'")
    words = ["--out", str(folder), "--policies", str(policies), "--seed", str(seed), "--state-dicts", str(weights)]
    done = subprocess.run([sys.executable, "-m", MAKER, *words], capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise UserError(f"sample models could not be made: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return folder
