"""Metrics are text that Prometheus reads, with fixed buckets, from what the processes really wrote."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from control_world import bus_state

from steadyhand_models.cli import UserError
from steadyhand_models.messages import Frame, Goal
from steadyhand_runtime import clock, metrics, prometheus
from steadyhand_runtime.clock import LatenessHistogram
from steadyhand_runtime.control import Inputs
from steadyhand_runtime.prometheus import CONTENT_TYPE, Endpoint, Family, Histogram, Kind
from steadyhand_runtime.timeline import Timeline

# One line of the exposition format: a comment, or name{labels} value.
LINE = re.compile(
    r'# (HELP|TYPE) steadyhand_[a-z_]+ .+|steadyhand_[a-z_]+(\{[a-z_]+="[^\n]*"(,[a-z_]+="[^\n]*")*\})? [-+0-9.eINnaf]+'
)


def sample(text: str, start: str) -> float:
    """The value of the only line that begins so."""
    (line,) = [one for one in text.splitlines() if one.startswith(start)]
    return float(line.rsplit(" ", 1)[1])


def test_text_is_what_the_format_says() -> None:
    family = Family("odd", Kind.GAUGE, "First line\nsecond \\ line.")
    family.add(1.5, path='C:\\a "b"\nc')
    family.add(math.inf)
    empty = Family("empty", Kind.GAUGE, "Nothing.")
    assert prometheus.render([family, empty]) == (
        "# HELP steadyhand_odd First line\\nsecond \\\\ line.\n# TYPE steadyhand_odd gauge\n"
        'steadyhand_odd{path="C:\\\\a \\"b\\"\\nc"} 1.5\nsteadyhand_odd +Inf\n'
    )


def test_histograms_are_cumulative_over_the_same_bounds_whatever_was_measured() -> None:
    family = Family("late_seconds", Kind.HISTOGRAM, "Late.")
    family.add(Histogram([(0.0001, 3), (0.02, 2), (7.0, 1)], 7.1), process="bus")
    text = prometheus.render([family])
    counts = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "_bucket" in line]
    assert counts == sorted(counts) and len(counts) == len(prometheus.BOUNDS_S) + 1
    assert sample(text, 'steadyhand_late_seconds_bucket{process="bus",le="0.0001"}') == 3
    assert sample(text, 'steadyhand_late_seconds_bucket{process="bus",le="0.025"}') == 5
    assert sample(text, 'steadyhand_late_seconds_bucket{process="bus",le="+Inf"}') == 6
    assert sample(text, "steadyhand_late_seconds_sum") == 7.1 and sample(text, "steadyhand_late_seconds_count") == 6


def test_no_sample_is_lost_between_the_two_kinds_of_buckets() -> None:
    measured = LatenessHistogram()
    rng = np.random.default_rng(1)
    for ns in (10 ** rng.uniform(2, 10, 500)).astype(int):
        measured.add(int(ns))
    histogram = metrics._histogram(measured)
    assert prometheus.rebinned(histogram)[-1][1] == 500
    assert histogram.sum_s == pytest.approx(measured.sum_ns / 1e9)


def test_every_source_becomes_lines_of_the_format(tmp_path: Path) -> None:
    timeline = Timeline()
    (tmp_path / "control.json").write_text(
        json.dumps({"ticks": 9, "missed_ticks": 1, "policy_version": 4, **timeline.figures()})
    )
    (tmp_path / "link.json").write_text(json.dumps({"connected": True, "recorded": 30, "acked": 12}))
    (tmp_path / "camera.json").write_text(json.dumps({"front": {"published": 7, "reopened": 2}}))
    ear = metrics.BusEar(tmp_path)
    ear.take(bus_state(1, np.zeros(6), refusals=("speed",), voltage_v=np.full(6, 7.5)))
    children = {"bus": {"pid": os.getpid(), "restarts": 2, "stalls": 1}, "link": {"pid": None}}
    text = metrics.text(tmp_path, lambda: children, ear)
    ear.close()
    assert all(LINE.fullmatch(line) for line in text.splitlines())
    assert sample(text, 'steadyhand_process_restarts_total{process="bus"}') == 2
    assert sample(text, 'steadyhand_process_up{process="link"}') == 0
    assert sample(text, 'steadyhand_realtime_degraded{process="bus"}') == 1  # a test runs without privileges
    assert sample(text, "steadyhand_control_policy_version") == 4
    assert sample(text, "steadyhand_link_unacknowledged_records") == 18
    assert sample(text, 'steadyhand_camera_reopened_total{camera="front"}') == 2
    assert sample(text, 'steadyhand_bus_refusals_total{reason="speed"}') == 1
    assert sample(text, 'steadyhand_servo_supply_volts{joint="gripper"}') == 7.5
    assert sample(text, "steadyhand_bus_tick_lateness_seconds_count") == 1
    types = re.findall(r"# TYPE (\w+) (\w+)", text)
    assert len({name for name, _ in types}) == len(types)
    assert all(name.endswith("_total") for name, kind in types if kind == "counter")


def test_missing_and_broken_stat_files_are_simply_not_there(tmp_path: Path) -> None:
    (tmp_path / "control.json").write_text("{half")
    (tmp_path / "link.json").write_text("[1]")
    ear = metrics.BusEar(tmp_path)
    assert metrics.text(tmp_path, dict, ear) == ""
    ear.close()


def test_the_endpoint_answers_on_the_loopback_and_only_at_its_path() -> None:
    with Endpoint(0, lambda: "steadyhand_x 1\n") as endpoint:
        address = f"http://127.0.0.1:{endpoint.port}"
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
            assert answer.read() == b"steadyhand_x 1\n" and answer.headers["Content-Type"] == CONTENT_TYPE
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/", timeout=10)


def test_a_taken_port_is_said_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=r"metrics\.port"):
        Endpoint(taken.getsockname()[1], str)


def test_ages_and_a_goals_way_to_the_wire_are_measured_once_each() -> None:
    timeline = Timeline()
    frame = Frame("front", 1, 1_000_000, np.zeros((1, 1, 3), np.uint8))
    inputs = Inputs(bus=bus_state(9_000_000, np.zeros(6)), frames={"front": frame})
    goal = Goal(1, 10_000_000, 60_000_000, np.zeros(6))
    timeline.used(10_000_000, inputs, goal, 12_000_000)
    for _ in range(2):
        timeline.heard(bus_state(16_000_000, np.zeros(6), goal_stamp_ns=10_000_000, goal_written_ns=15_000_000))
    timeline.heard(bus_state(16_000_000, np.zeros(6), goal_stamp_ns=5, goal_written_ns=6))  # another control's goal
    found = {name: getattr(timeline, name) for name in ("frame_age", "frame_to_goal", "tick_to_wire", "frame_to_wire")}
    assert {name: (h.total, h.sum_ns) for name, h in found.items()} == {
        "frame_age": (1, 9_000_000),
        "frame_to_goal": (1, 11_000_000),
        "tick_to_wire": (1, 5_000_000),
        "frame_to_wire": (1, 14_000_000),
    }
    assert timeline.figures()["tick_to_wire_max_s"] == 0.005


def test_a_tick_without_a_goal_measures_no_age() -> None:
    timeline = Timeline()
    timeline.used(10, Inputs(), None, 12)
    assert timeline.frame_age.total == 0


def test_the_kernel_says_how_long_a_thread_waited_for_a_core() -> None:
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("this kernel does not say")
    first = clock.runqueue_delay_ns()
    second = clock.runqueue_delay_ns()
    assert first is not None and second is not None and 0 <= first <= second
    assert (clock.main_thread_delay_s(os.getpid()) or 0.0) >= 0.0 and clock.main_thread_delay_s(2**30) is None
    assert not clock.is_realtime(2**30)
