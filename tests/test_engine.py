"""Engines: providers that really start, threads as measured, and the errors that name the way out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import onnx_models
import pytest

from steadyhand_models.cli import UserError
from steadyhand_models.settings import SettingsError
from steadyhand_runtime import engine, tuning
from steadyhand_runtime.config import ControlSettings
from steadyhand_runtime.engine import Engine, Provider
from steadyhand_runtime.telemetry import Log
from steadyhand_runtime.tuning import Tuner

CONTRACT = onnx_models.lift().contract()
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(engine, "starts", lambda provider: provider in names)


def test_the_cpu_really_starts_and_a_provider_nobody_has_does_not() -> None:
    assert engine.starts(CPU)
    assert not engine.starts("NoSuchExecutionProvider")


def test_auto_prefers_cuda_and_says_why_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, CPU, CUDA)
    assert engine.choose([Provider.AUTO]) == Engine((CUDA, CPU))
    only(monkeypatch, CPU)
    fallen = engine.choose([Provider.AUTO])
    assert fallen.providers == (CPU,) and str(fallen) == f"{CPU} ({CUDA} did not start)"


def test_a_provider_that_was_demanded_and_does_not_start_is_an_error_and_not_a_slower_robot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only(monkeypatch, CPU)
    with pytest.raises(UserError, match="CUDAExecutionProvider here"):
        engine.choose([Provider.CUDA])
    assert engine.choose([Provider.CUDA, Provider.CPU]).note


def test_tensorrt_is_for_the_encoder_alone_and_what_it_built_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, CPU, engine.TENSORRT)
    with pytest.raises(SettingsError, match=r"control\.encoder_providers"):
        engine.choose([Provider.TENSORRT, Provider.CPU])
    chosen = engine.choose_for_encoder([Provider.TENSORRT, Provider.CPU], cache="/somewhere")
    assert chosen.providers == (engine.TENSORRT, CPU) and chosen.cache == "/somewhere"
    (name, options), after = engine._with_options(chosen)
    assert (name, after) == (engine.TENSORRT, CPU) and options["trt_engine_cache_path"] == "/somewhere"


def test_an_encoder_s_providers_are_chosen_by_their_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, CPU)
    fallen = engine.choose_for_encoder([Provider.TENSORRT, Provider.CUDA, Provider.CPU])
    assert fallen.providers == (CPU,) and "TensorrtExecutionProvider, CUDA" in fallen.note
    with pytest.raises(UserError, match=r"control\.encoder_providers"):
        engine.choose_for_encoder([Provider.TENSORRT])
    with pytest.raises(SettingsError, match=r"control\.encoder_providers: write"):
        engine.choose_for_encoder([])


@pytest.mark.parametrize("wanted", [[], [Provider.AUTO, Provider.CPU]])
def test_a_list_that_makes_no_sense_is_refused_with_the_right_form(wanted: list[Provider]) -> None:
    with pytest.raises(SettingsError, match="best first"):
        engine.choose(wanted)


def test_the_defaults_are_auto() -> None:
    assert ControlSettings().providers == (Provider.AUTO,) and ControlSettings().threads == "auto"


@pytest.mark.parametrize(("two_s", "threads"), [(0.5, 2), (0.75, 2), (0.8, 1), (1.2, 1)])
def test_a_second_thread_must_be_worth_a_core(two_s: float, threads: int) -> None:
    assert tuning.best(1.0, two_s) == threads


def tuner(folder: Path, threads: int = 0) -> Tuner:
    return Tuner(Engine(threads=threads), CONTRACT, folder / "inference.json", Log(io.StringIO()))


def measured(monkeypatch: pytest.MonkeyPatch, one_s: float, two_s: float) -> list[int]:
    """Replace the measurement by its result; the list grows with every one."""
    made: list[int] = []

    def paced(models: list[object], *_: object) -> list[list[float]]:
        made.append(len(models))
        return [[one_s] * 3, [two_s] * 3]

    monkeypatch.setattr(tuning, "paced", paced)
    return made


def test_threads_are_measured_once_and_remembered_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = measured(monkeypatch, 1.0, 0.5)
    first = tuner(tmp_path)
    assert first.engine.threads == 1 and first.wanted
    first.tune(onnx_models.policy(CONTRACT), lambda seconds: True)
    first.tune(onnx_models.policy(CONTRACT), lambda seconds: True)
    again = tuner(tmp_path)
    assert first.engine.threads == again.engine.threads == 2
    assert made == [2] and not again.wanted


def test_a_measurement_of_another_machine_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1.0, 0.5)
    tuner_here = tuner(tmp_path)
    tuner_here.tune(onnx_models.policy(CONTRACT), lambda seconds: True)
    path = tmp_path / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cores": 999}))
    assert tuner(tmp_path).wanted
    path.write_text("nonsense")
    assert tuner(tmp_path).wanted


def test_a_number_of_threads_in_the_settings_is_not_argued_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = measured(monkeypatch, 1.0, 0.1)
    fixed = tuner(tmp_path, threads=3)
    fixed.tune(onnx_models.policy(CONTRACT), lambda seconds: True)
    assert fixed.engine.threads == 3 and made == []


def test_the_real_measurement_calls_each_candidate_in_turn_at_the_pace_and_stops_when_told(tmp_path: Path) -> None:
    made = tuner(tmp_path)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return True

    made.tune(onnx_models.policy(CONTRACT), wait)
    assert len(waits) == 2 * tuning.RUNS and max(waits) <= 1 / CONTRACT.rate_hz
    assert json.loads((tmp_path / "inference.json").read_text())["threads"] in (1, 2)
    stopped = tuner(tmp_path / "none")
    stopped.tune(onnx_models.policy(CONTRACT), lambda seconds: False)
    assert stopped.wanted


def test_an_encoder_is_measured_with_its_policy_and_gets_as_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eye = onnx_models.encoder(CONTRACT)
    policy = onnx_models.policy_behind(eye, CONTRACT)
    made = measured(monkeypatch, 1.0, 0.5)
    one = tuner(tmp_path)
    assert one.tune(policy, lambda seconds: True, eye), "models are to be built otherwise from now on"
    assert made == [2] and one.encoder_engine.threads == 2
    assert one.build(policy, CONTRACT, one.build_encoder(eye, CONTRACT)).version == 1
    assert not one.tune(policy, lambda seconds: True, eye)
