"""Downloads meet trust and housekeeping: what a robot keeps, and what it never lets into its registry."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import onnx_models

from steadyhand_models import artifact, signing
from steadyhand_models.artifact import Artifact
from steadyhand_models.messages import Channel, ModelChunk, ModelNotice
from steadyhand_models.registry import Registry
from steadyhand_models.standing import Pins, Standing, Standings
from steadyhand_runtime.fetch import CHUNK_BYTES, Fetcher
from steadyhand_runtime.telemetry import Log

CONTRACT = onnx_models.lift().contract()
KEY = bytes(range(32))


def deliver(fetcher: Fetcher, made: Artifact) -> None:
    """Offer one artifact and answer every request for it."""
    data = artifact.pack(made)
    manifest = made.manifest
    fetcher.notice(ModelNotice(manifest.channel, manifest.version, len(data), hashlib.sha256(data).hexdigest()))
    while (request := fetcher.request(0)) is not None:
        piece = data[request.offset : request.offset + CHUNK_BYTES]
        fetcher.chunk(ModelChunk(request.channel, request.version, request.offset, piece))


def test_only_what_a_trusted_key_signed_enters_the_registry(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    fetcher = Fetcher(registry, CONTRACT.hash, 9, Log(io.StringIO()), [signing.public_of(KEY)])
    deliver(fetcher, signing.sign(onnx_models.policy(CONTRACT, 1), KEY))
    deliver(fetcher, onnx_models.policy(CONTRACT, 999))
    deliver(fetcher, signing.sign(onnx_models.policy(CONTRACT, 1000), bytes(32)))
    assert registry.versions(Channel.POLICY) == [1]
    assert fetcher.published == 1 and fetcher.refused > 0
    deliver(fetcher, signing.sign(onnx_models.policy(CONTRACT, 2), KEY))
    assert registry.versions(Channel.POLICY) == [1, 2]


def test_what_is_in_use_or_pinned_is_not_cleared_away(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    fetcher = Fetcher(registry, CONTRACT.hash, 2, Log(io.StringIO()))
    for version in (1, 2, 3, 4):
        deliver(fetcher, onnx_models.policy(CONTRACT, version))
        if version == 2:
            Standings(tmp_path).write({Channel.POLICY: Standing(2, "", previous=1)})
    assert registry.versions(Channel.POLICY) == [1, 2, 3, 4]
    Standings(tmp_path).write({Channel.POLICY: Standing(6, "", previous=5)})
    Pins(tmp_path).put(Channel.POLICY, 3)
    deliver(fetcher, onnx_models.policy(CONTRACT, 7))
    assert registry.versions(Channel.POLICY) == [3, 4, 7]
