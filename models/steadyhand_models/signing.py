"""Signatures of artifacts: Ed25519 over the manifest and the hashes of everything that a robot will load."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steadyhand_models import wire
from steadyhand_models.artifact import Artifact, ArtifactError, Manifest, manifest_from_json
from steadyhand_models.cli import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "ed25519"
KEY_BYTES = 32  # RFC 8032, section 5.1.5
SIGNATURE_BYTES = 64
_PREAMBLE = b"steadyhand artifact\n"


def new_private() -> bytes:
    """A fresh private key (32 bytes) from the system's random source."""
    return _ed25519().Ed25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> str:
    """The public key of a private one, as settings write it: `ed25519:BASE64`."""
    return _text(_private(private).public_key().public_bytes_raw())


def canonical(artifact: Artifact) -> bytes:
    """What is signed: the manifest without its signature and fields left at their defaults, then both contents' hashes.

    Fields at their defaults are left out so that a signature outlives a manifest that has grown a field.
    """
    manifest = manifest_from_json(artifact.manifest.to_json())
    fields = {f.name: getattr(manifest, f.name) for f in dataclasses.fields(Manifest) if f.name != "signature"}
    said = {name: value for name, value in fields.items() if value != _default(name)}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    hashes = (hashlib.sha256(part).hexdigest() for part in (artifact.model, wire.encode(artifact.golden)))
    return _PREAMBLE + "\n".join([text, *hashes]).encode()


def sign(artifact: Artifact, private: bytes) -> Artifact:
    """The same artifact with its signature in the manifest: `ed25519:PUBLIC:SIGNATURE`, both base64."""
    unsigned = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, signature=""))
    made = _private(private).sign(canonical(unsigned))
    signature = f"{public_of(private)}:{base64.b64encode(made).decode()}"
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, signature=signature))


def check(artifact: Artifact, trusted: Sequence[str]) -> None:
    """Refuse an artifact that none of the trusted public keys has signed; an empty list trusts everyone.

    Raises ArtifactError naming what does not fit.
    """
    if not trusted:
        return
    name = f"{artifact.manifest.channel.value} v{artifact.manifest.version}"
    signer = verify(artifact)
    if not signer:
        raise ArtifactError(f"{name}: not signed, and this robot trusts only signed artifacts (link.trusted_keys)")
    if signer not in [_text(public_bytes(key)) for key in trusted]:
        raise ArtifactError(f"{name}: signed by {signer}, which is not among this robot's link.trusted_keys")


def verify(artifact: Artifact) -> str:
    """The public key that signed this artifact; empty when unsigned. Raises ArtifactError when it is forged."""
    manifest = artifact.manifest
    if not manifest.signature:
        return ""
    name = f"{manifest.channel.value} v{manifest.version}"
    signer, made = _parse_signature(manifest.signature, name)
    from cryptography.exceptions import InvalidSignature

    try:
        _public(signer).verify(made, canonical(artifact))
    except InvalidSignature:
        raise ArtifactError(f"{name}: its signature does not fit its content; fetch it again") from None
    return signer


def public_bytes(text: str) -> bytes:
    """The bytes of a public key `ed25519:BASE64`. Raises UserError naming the right form."""
    algorithm, _, body = text.strip().partition(":")
    raw = _decode(body)
    if algorithm != ALGORITHM or raw is None or len(raw) != KEY_BYTES:
        raise UserError(f"{text!r:.80} is no public key: write what `steadyhand keys show` prints, {ALGORITHM}:BASE64")
    return raw


def _parse_signature(text: str, name: str) -> tuple[str, bytes]:
    algorithm, _, rest = text.partition(":")
    key, _, body = rest.partition(":")
    raw, made = _decode(key), _decode(body)
    if algorithm != ALGORITHM or raw is None or len(raw) != KEY_BYTES or made is None or len(made) != SIGNATURE_BYTES:
        raise ArtifactError(f"{name}: {text!r:.60} is no signature; sign it again")
    return _text(raw), made


def _default(name: str) -> Any:
    field = next(f for f in dataclasses.fields(Manifest) if f.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _text(raw: bytes) -> str:
    return f"{ALGORITHM}:{base64.b64encode(raw).decode()}"


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _private(raw: bytes) -> Ed25519PrivateKey:
    key: Ed25519PrivateKey = _ed25519().Ed25519PrivateKey.from_private_bytes(raw)
    return key


def _public(text: str) -> Ed25519PublicKey:
    key: Ed25519PublicKey = _ed25519().Ed25519PublicKey.from_public_bytes(public_bytes(text))
    return key


def _ed25519() -> Any:
    # Here, because whoever neither signs nor trusts keys need not load it.
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519
