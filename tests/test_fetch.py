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


def offer(fetcher: Fetcher, made: Artifact) -> bytes:
    """Announce one artifact; its bundle."""
    data, manifest = artifact.pack(made), made.manifest
    fetcher.notice(ModelNotice(manifest.channel, manifest.version, len(data), hashlib.sha256(data).hexdigest()))
    return data


def test_encoders_are_fetched_before_what_names_them_whatever_was_announced_first(tmp_path: Path) -> None:
    fetcher = Fetcher(Registry(tmp_path), CONTRACT.hash, 9, Log(io.StringIO()))
    old, new = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2)
    made = [onnx_models.policy_behind(new, CONTRACT), onnx_models.classifier_behind(old, CONTRACT), new, old]
    bundles = {(one.manifest.channel, one.manifest.version): offer(fetcher, one) for one in made}
    asked = []
    while (request := fetcher.request(0)) is not None:
        asked.append((request.channel, request.version))
        fetcher.chunk(ModelChunk(request.channel, request.version, request.offset, bundles[asked[-1]]))
    assert [channel for channel, _ in asked] == [Channel.ENCODER, Channel.ENCODER, Channel.CLASSIFIER, Channel.POLICY]
    assert {version for channel, version in asked if channel is Channel.ENCODER} == {1, 2}


def test_an_encoder_older_than_the_newest_is_fetched_when_it_is_offered(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    fetcher = Fetcher(registry, CONTRACT.hash, 9, Log(io.StringIO()))
    for version in (2, 1, 1):
        deliver(fetcher, onnx_models.encoder(CONTRACT, version))
    assert registry.versions(Channel.ENCODER) == [1, 2]
    assert (fetcher.published, fetcher.refused) == (2, 0)


def test_an_encoder_goes_with_the_last_version_that_names_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    fetcher = Fetcher(registry, CONTRACT.hash, 2, Log(io.StringIO()))
    first, second = onnx_models.encoder(CONTRACT, 1), onnx_models.encoder(CONTRACT, 2, scale=0.5)
    deliver(fetcher, first)
    deliver(fetcher, onnx_models.policy_behind(first, CONTRACT, 1))
    deliver(fetcher, second)
    deliver(fetcher, onnx_models.policy_behind(second, CONTRACT, 2))
    assert registry.versions(Channel.ENCODER) == [1, 2]
    deliver(fetcher, onnx_models.policy_behind(second, CONTRACT, 3))
    assert (registry.versions(Channel.POLICY), registry.versions(Channel.ENCODER)) == ([2, 3], [2])


def test_a_manifest_that_cannot_be_read_keeps_every_encoder(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    fetcher = Fetcher(registry, CONTRACT.hash, 9, Log(io.StringIO()))
    for version in (1, 2):
        deliver(fetcher, onnx_models.encoder(CONTRACT, version))
    registry.publish(onnx_models.classifier(CONTRACT, 1))
    (tmp_path / "classifier" / "v000001" / "manifest.json").write_text("{")
    deliver(fetcher, onnx_models.policy(CONTRACT, 1))
    assert registry.versions(Channel.ENCODER) == [1, 2]
