"""Metrics in Prometheus's text format 0.0.4: families of samples, histograms re-binned to fixed bounds, an endpoint."""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from steadyhand_models.cli import UserError

PREFIX = "steadyhand_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Fixed, because a bound that comes and goes from scrape to scrape makes a histogram useless.
BOUNDS_S = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0)
REQUEST_S = 5.0

Labels = Mapping[str, str]


class Kind(str, enum.Enum):
    """Prometheus's metric types that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Histogram:
    """(upper edge in seconds, samples) pairs in any order, and the samples' sum in seconds."""

    edges: Sequence[tuple[float, int]]
    sum_s: float


@dataclass
class Family:
    """One metric: its name without the prefix, what it is, and its samples."""

    name: str
    kind: Kind
    text: str
    samples: list[tuple[Labels, float | Histogram]] = field(default_factory=list)

    def add(self, value: float | Histogram, **labels: str) -> None:
        self.samples.append((labels, value))


def render(families: Iterable[Family]) -> str:
    """The text of every family that has samples."""
    return "".join(_family(f) for f in families if f.samples)


def rebinned(histogram: Histogram, bounds_s: Sequence[float] = BOUNDS_S) -> list[tuple[float, int]]:
    """Cumulative counts up to each bound and up to infinity; a bucket counts where its upper edge lies."""
    bounds = (*bounds_s, math.inf)
    return [(bound, sum(n for edge, n in histogram.edges if edge <= bound)) for bound in bounds]


def _family(family: Family) -> str:
    name = PREFIX + family.name
    text = family.text.replace("\\", "\\\\").replace("\n", "\\n")
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {family.kind.value}"]
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            lines += _histogram(name, labels, value)
        else:
            lines.append(f"{name}{_labels(labels)} {_number(value)}")
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Labels, value: Histogram) -> list[str]:
    counts = rebinned(value)
    lines = [f"{name}_bucket{_labels({**labels, 'le': _number(bound)})} {count}" for bound, count in counts]
    total = counts[-1][1]
    return [*lines, f"{name}_sum{_labels(labels)} {_number(value.sum_s)}", f"{name}_count{_labels(labels)} {total}"]


def _labels(labels: Labels) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{key}="{quoted(value)}"' for key, value in labels.items()) + "}" if labels else ""


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else f"{value:.10g}"


class Endpoint:
    """Serves `text()` at /metrics on the loopback, in threads of its own. Use as a context manager."""

    def __init__(self, port: int, text: Callable[[], str]) -> None:
        """Raises UserError when the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_S

            def do_GET(self) -> None:
                if self.path.split("?")[0] != "/metrics":
                    self.send_error(404, "look at /metrics")
                    return
                body = text().encode()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass  # a scrape is no event

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(
                f"metrics.port: {port} cannot be listened on ({error.strerror}): stop what holds it, or choose another"
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
