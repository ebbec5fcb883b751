"""The engine: which execution providers and how many threads onnxruntime's sessions get, and proof that they got them.

onnxruntime is imported when it is first needed, so that whoever only names these classes does not load it.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steadyhand_models.artifact import CPU, ArtifactError
from steadyhand_models.cli import UserError, two_onnxruntimes
from steadyhand_models.settings import SettingsError

CUDA = "CUDAExecutionProvider"
# y = Identity(x) of one float, opset 17: the smallest graph that makes a provider start.
PROBE = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201705a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001011"
)
_QUIET = 4  # onnxruntime's severity "fatal"


class Provider(str, enum.Enum):
    """Where models are computed. AUTO is CUDA where that starts, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


NAMES = {Provider.CPU: CPU, Provider.CUDA: CUDA}


@dataclass(frozen=True, slots=True)
class Engine:
    """How sessions are made; `note` says why something slower than wished for is in use."""

    providers: tuple[str, ...] = (CPU,)
    threads: int = 1
    note: str = ""

    def __str__(self) -> str:
        """The provider that computes, with the note, for a status line."""
        return f"{self.providers[0]} ({self.note})" if self.note else self.providers[0]


def choose(wanted: Sequence[Provider], threads: int = 1) -> Engine:
    """The engine for settings: the first of `wanted` that really starts computes; the others must follow it.

    Raises UserError when none starts, SettingsError for a list that makes no sense.
    """
    order = [Provider.CUDA, Provider.CPU] if list(wanted) == [Provider.AUTO] else list(wanted)
    if not order or Provider.AUTO in order:
        raise SettingsError('control.providers: write ["auto"], or the providers to try, best first: ["cuda", "cpu"]')
    names = [NAMES[p] for p in order]
    for i, name in enumerate(names):
        if starts(name):
            note = f"{', '.join(names[:i])} did not start" if i else ""
            return Engine(tuple(names[i:]), threads, note)
    raise UserError(
        f"onnxruntime cannot compute with {', '.join(names)} here: install its driver and libraries, "
        'or allow others with control.providers = ["auto"]'
    )


def starts(provider: str) -> bool:
    """Whether a session asked for this provider gets it; onnxruntime's own list names some that cannot start."""
    onnxruntime = import_onnxruntime()
    if provider not in onnxruntime.get_available_providers():
        return False
    onnxruntime.set_default_logger_severity(_QUIET)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return provider in onnxruntime.InferenceSession(PROBE, providers=[provider]).get_providers()
    except Exception:  # onnxruntime's exceptions share no base of their own
        return False
    finally:
        onnxruntime.set_default_logger_severity(2)  # warnings, its default


def session(model: bytes, engine: Engine, name: str) -> Any:
    """A session for a graph's bytes. Raises ArtifactError when it cannot be built, UserError without its providers."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine.threads
    options.inter_op_num_threads = 1
    # Measured: spinning at 30 Hz costs up to a whole core; without it a tenth to a quarter.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        made = onnxruntime.InferenceSession(model, options, providers=list(engine.providers))
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise ArtifactError(f"{name}: onnxruntime cannot build it: {str(error)[:300]}") from None
    # A provider that cannot start is silently replaced by the CPU's.
    got = made.get_providers()
    missing = [p for p in engine.providers if p not in got]
    if missing:
        raise UserError(f"onnxruntime gave {got} instead of {', '.join(missing)}")
    return made


def import_onnxruntime() -> Any:
    """onnxruntime, imported. Raises UserError when it is missing, or when two distributions of it are installed."""
    doubled = two_onnxruntimes()
    if doubled:
        raise UserError(doubled)
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is not installed: pip install 'steadyhand[edge]'") from None
    return onnxruntime
