"""The model host: engine, tuning, cutoff and standby of the control process, set up from its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steadyhand_models import signing
from steadyhand_models.contract import Contract
from steadyhand_models.registry import Registry
from steadyhand_models.standing import QUARANTINE, Quarantine
from steadyhand_runtime import engine
from steadyhand_runtime.config import RuntimeSettings
from steadyhand_runtime.cutoff import Cutoff
from steadyhand_runtime.standby import Rules, Standby
from steadyhand_runtime.swap import Models
from steadyhand_runtime.telemetry import Log
from steadyhand_runtime.tuning import Tuner

HOLD_SHARE = 0.5  # of the control period: a build that holds the interpreter longer may outlast the pause after a tick
CUTOFF_LOOKS = 8  # a control period; with the limit of one period, a call ends within one and an eighth
AUTO_THREADS = 0
MAX_TRIES = 3  # a person may kill the process twice while a new model is on probation; a model that does so goes


@dataclass
class ModelHost:
    """What serves models to one control loop. `start` before the loop, `slack` after every tick, `stop` at the end."""

    models: Models
    standby: Standby
    tuner: Tuner
    cutoff: Cutoff
    log: Log
    period_s: float

    def start(self) -> None:
        """Have what was current ready, and go on in threads; called before this thread gets real-time priority."""
        self.cutoff.start()
        self.standby.start()
        held_s = self.standby.build_hold_s
        if held_s is not None:
            report = self.log.warn if held_s > HOLD_SHARE * self.period_s else self.log.info
            report("inference.build_hold", held_s=held_s, allowed_s=HOLD_SHARE * self.period_s)

    def slack(self) -> None:
        self.standby.slack()

    def stop(self) -> None:
        self.standby.stop()
        self.cutoff.stop()

    def figures(self) -> dict[str, Any]:
        """What computes, and how a build disturbs, for the process's figures."""
        now, encoder = self.tuner.engine, self.tuner.encoder_engine
        return {
            "providers": list(now.providers),
            "encoder_providers": list(encoder.providers),
            "threads": now.threads,
            "fallback": now.note,
            "encoder_fallback": encoder.note,
            "build_hold_s": self.standby.build_hold_s,
        }


def make(settings: RuntimeSettings, contract: Contract, missed: Callable[[], int], log: Log) -> ModelHost:
    """Everything, not started yet. Raises UserError or SettingsError, each naming the fix."""
    control, paths = settings.control, settings.paths
    for key in settings.link.trusted_keys:
        signing.public_bytes(key)
    threads = AUTO_THREADS if control.threads == "auto" else control.threads
    chosen = engine.choose(control.providers, threads)
    for_encoder = engine.choose_for_encoder(control.encoder_providers, threads, str(paths.edge / "tensorrt"))
    for models_of, one in (("models", chosen), ("encoder", for_encoder)):
        report = log.warn if one.note else log.info
        report("inference.engine", providers=" ".join(one.providers), of=models_of, fallback=one.note or "none")
    cutoff = Cutoff(1.0 / contract.rate_hz / CUTOFF_LOOKS, control.realtime_priority + 1)
    tuner = Tuner(chosen, contract, paths.edge / "inference.json", log, cutoff, for_encoder)
    rules = Rules(
        control.shadow_calls, control.shadow_far, control.probation_calls, settings.link.trusted_keys, MAX_TRIES
    )
    quarantine = Quarantine(paths.models / QUARANTINE)
    registry = Registry(paths.models)
    standby = Standby(
        registry, contract, quarantine, tuner.build, missed, rules, tuner.tune, build_encoder=tuner.build_encoder
    )
    differ = for_encoder.providers != chosen.providers
    models = Models(standby, quarantine, f"{chosen}, encoder {for_encoder}" if differ else str(chosen))
    return ModelHost(models, standby, tuner, cutoff, log, 1.0 / contract.rate_hz)
