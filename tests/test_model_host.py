"""The model host: what the control process's settings make of engine, trust and threads, and what people are told."""

from __future__ import annotations

import io
import time
from pathlib import Path

import onnx_models
import pytest
from control_world import Bench, FakeModel

from steadyhand_models import signing
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, Mode
from steadyhand_models.registry import Registry
from steadyhand_models.settings import SettingsError
from steadyhand_runtime import model_host
from steadyhand_runtime.config import ControlSettings, LinkSettings, RuntimeSettings
from steadyhand_runtime.engine import Provider
from steadyhand_runtime.swap import Pace
from steadyhand_runtime.telemetry import Log

CONTRACT = onnx_models.lift().contract()


def make(run: Path, **changes: object) -> tuple[model_host.ModelHost, io.StringIO]:
    settings = RuntimeSettings(run=run, **changes)  # type: ignore[arg-type]
    settings.paths.prepare()
    log = io.StringIO()
    return model_host.make(settings, CONTRACT, lambda: 0, Log(log)), log


def test_the_engine_and_why_nothing_faster_is_used_stand_in_log_status_and_figures(tmp_path: Path) -> None:
    host, log = make(tmp_path)
    figures = host.figures()
    assert figures["providers"][-1] == "CPUExecutionProvider" and figures["threads"] == 1
    assert figures["providers"][0] in host.models.engine and figures["fallback"] in host.models.engine
    assert "inference.engine providers=" in log.getvalue()


def test_settings_reach_engine_and_rules(tmp_path: Path) -> None:
    key = signing.public_of(bytes(32))
    control = ControlSettings(providers=(Provider.CPU,), threads=3, shadow_calls=4, shadow_far=1.0, probation_calls=7)
    host, _ = make(tmp_path, control=control, link=LinkSettings(trusted_keys=(key,)))
    assert (host.tuner.engine.threads, host.tuner.wanted, host.tuner.engine.note) == (3, False, "")
    rules = host.standby.rules
    assert (rules.shadow_calls, rules.shadow_far, rules.probation_calls) == (4, 1.0, 7)
    assert rules.trusted_keys == (key,) and rules.max_tries == model_host.MAX_TRIES


def test_settings_that_cannot_be_followed_end_the_start_and_not_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keys show"):
        make(tmp_path, link=LinkSettings(trusted_keys=("nonsense",)))
    with pytest.raises(SettingsError, match="providers"):
        make(tmp_path, control=ControlSettings(providers=()))


def test_a_started_host_has_what_is_published_ready_measures_its_build_and_ends_in_order(tmp_path: Path) -> None:
    host, log = make(tmp_path)
    registry = Registry(tmp_path / "edge" / "models")
    registry.publish(onnx_models.policy(CONTRACT, 1))
    host.start()
    try:
        host.models.turn(1, 1, Pace(), policy_free=True, episode_free=True)
        assert host.models.policy.version == 1
        assert "inference.build_hold" in log.getvalue() and host.figures()["build_hold_s"] >= 0
        registry.publish(onnx_models.policy(CONTRACT, 2))
        deadline_s, tick = time.monotonic() + 20, 1
        while host.models.policy.version != 2:
            assert time.monotonic() < deadline_s
            tick += 1
            host.models.turn(tick, tick, Pace(), policy_free=True, episode_free=True)
            host.slack()
            time.sleep(0.01)
    finally:
        host.stop()
    again, _ = make(tmp_path)
    again.standby.look()
    again.models.turn(1, 1, Pace(), policy_free=True, episode_free=True)
    assert again.models.policy.version == 2


def test_the_operator_reads_of_a_rollback_for_a_while_and_then_of_other_things() -> None:
    bench = Bench()
    for model in (FakeModel(Channel.POLICY, 1, 0.1), FakeModel(Channel.POLICY, 2, float("nan"))):
        bench.stage(model)
        bench.until(Mode.POLICY)
        bench.tick()
    status = bench.tick().status
    assert status.message == "policy v2 was rolled back: policy v2: output is not finite; v1 is in force"
    for _ in range(100):
        bench.tick()
    assert bench.tick().status.message != status.message
