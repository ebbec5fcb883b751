"""The engine: which execution providers and how many threads onnxruntime's sessions get, and proof that they got them.

onnxruntime is imported when it is first needed, so that whoever only names these classes does not load it.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from steadyhand_models.artifact import CPU, ArtifactError
from steadyhand_models.cli import UserError, two_onnxruntimes
from steadyhand_models.settings import SettingsError

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
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
    TENSORRT = "tensorrt"  # frozen encoders only


NAMES = {Provider.CPU: CPU, Provider.CUDA: CUDA, Provider.TENSORRT: TENSORRT}


@dataclass(frozen=True, slots=True)
class Engine:
    """How sessions are made; `note` says why something slower than wished for is in use."""

    providers: tuple[str, ...] = (CPU,)
    threads: int = 1
    note: str = ""
    cache: str = ""  # folder where TensorRT keeps what it has built; empty: nowhere

    def __str__(self) -> str:
        """The provider that computes, with the note, for a status line."""
        return f"{self.providers[0]} ({self.note})" if self.note else self.providers[0]


def choose(wanted: Sequence[Provider], threads: int = 1) -> Engine:
    """The engine for the models that are pushed, from `control.providers`: the first of `wanted` that really starts
    computes; the others must follow it.

    Raises UserError when none starts, SettingsError for a list that makes no sense.
    """
    if Provider.TENSORRT in wanted:
        raise SettingsError(
            "control.providers: TensorRT builds an engine for each model, which takes minutes, and every policy that "
            "is pushed is a new one; give it the frozen encoder with control.encoder_providers"
        )
    return _first_that_starts("control.providers", wanted, threads)


def choose_for_encoder(wanted: Sequence[Provider], threads: int = 1, cache: str = "") -> Engine:
    """The engine for frozen encoders, from `control.encoder_providers`; raises as `choose`.

    `cache` is a folder where TensorRT keeps what it has built, so that only the first start takes minutes.
    """
    return replace(_first_that_starts("control.encoder_providers", wanted, threads), cache=cache)


def _first_that_starts(setting: str, wanted: Sequence[Provider], threads: int) -> Engine:
    order = [Provider.CUDA, Provider.CPU] if list(wanted) == [Provider.AUTO] else list(wanted)
    if not order or Provider.AUTO in order:
        raise SettingsError(f'{setting}: write ["auto"], or the providers to try, best first: ["cuda", "cpu"]')
    names = [NAMES[p] for p in order]
    for i, name in enumerate(names):
        if starts(name):
            note = f"{', '.join(names[:i])} did not start" if i else ""
            return Engine(tuple(names[i:]), threads, note)
    raise UserError(
        f"onnxruntime cannot compute with {', '.join(names)} here: install its driver and libraries, "
        f'or allow others with {setting} = ["auto"]'
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
        made = onnxruntime.InferenceSession(model, options, providers=_with_options(engine))
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise ArtifactError(f"{name}: onnxruntime cannot build it: {str(error)[:300]}") from None
    # A provider that cannot start is silently replaced by the CPU's.
    got = made.get_providers()
    missing = [p for p in engine.providers if p not in got]
    if missing:
        raise UserError(f"onnxruntime gave {got} instead of {', '.join(missing)}")
    return made


def _with_options(engine: Engine) -> list[str | tuple[str, dict[str, str]]]:
    """The providers, best first; TensorRT's with the folder of its engines (onnxruntime's TensorRT page)."""
    if not engine.cache:
        return list(engine.providers)
    cached = (TENSORRT, {"trt_engine_cache_enable": "True", "trt_engine_cache_path": engine.cache})
    return [cached if name == TENSORRT else name for name in engine.providers]


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
