"""Encoders: what policies and classifiers name, found in the registry, verified, and built once for all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steadyhand_models import signing
from steadyhand_models.artifact import Artifact, ArtifactError, Manifest, verify
from steadyhand_models.contract import Contract
from steadyhand_models.registry import Registry
from steadyhand_models.standing import Quarantine
from steadyhand_runtime import inference
from steadyhand_runtime.inference import Encoder, Model

KEPT = 3  # sessions: that of the pair in force, of the one before it, and of one that is being tried

BuildEncoder = Callable[[Artifact, Contract], Encoder]


@dataclass(frozen=True)
class _Built:
    trial: Encoder  # for the thread that tries models
    control: Encoder  # for the thread that drives


class Encoders:
    """One session per content, with buffers for the thread that tries models and others for the one that drives."""

    def __init__(
        self,
        registry: Registry,
        contract: Contract,
        quarantine: Quarantine | None = None,
        trusted_keys: Sequence[str] = (),
        build: BuildEncoder = inference.load_encoder,
    ) -> None:
        self._registry, self._contract = registry, contract
        self._quarantine = quarantine if quarantine is not None else Quarantine()
        self._trusted, self._build = tuple(trusted_keys), build
        self._built: OrderedDict[str, _Built] = OrderedDict()

    def artifact(self, manifest: Manifest) -> Artifact | None:
        """The encoder that a manifest names; None where it names none. Raises ArtifactError naming the encoder."""
        if not manifest.encoder_version:
            return None
        found = self._registry.encoder_of(manifest)
        needs = f"{manifest.name} needs {found.manifest.name}"
        if found.manifest.sha256 in self._quarantine:
            raise ArtifactError(f"{needs}, which is in quarantine since it failed on this robot")
        try:
            verify(found, self._contract.hash)
            signing.check(found, self._trusted)
        except ArtifactError as error:
            raise ArtifactError(f"{needs}: {error}") from None
        return found

    def trial(self, manifest: Manifest) -> Encoder | None:
        """The encoder to try a model with; None where it names none. Raises ArtifactError, naming the encoder, or
        UserError."""
        found = self.artifact(manifest)
        if found is None:
            return None
        sha256 = found.manifest.sha256
        if sha256 not in self._built:
            try:
                made = self._build(found, self._contract)
            except ArtifactError as error:
                raise ArtifactError(f"{manifest.name} needs {found.manifest.name}: {error}") from None
            self._built[sha256] = _Built(made, made.twin())
        self._built.move_to_end(sha256)
        while len(self._built) > KEPT:
            self._built.popitem(last=False)
        return self._built[sha256].trial

    def hand_over(self, model: Model) -> None:
        """Attach a model that was tried to the encoder that control runs, once a tick for all that name it."""
        if model.encoder is None:
            return
        model.attach(self._built[model.manifest.encoder_sha256].control)

    def forget(self) -> None:
        """Build anew from now on; what is in use stays in use."""
        self._built.clear()


def load(registry: Registry, artifact: Artifact, contract: Contract) -> Model:
    """One model with the encoder that it names, verified and built. Raises ArtifactError or UserError."""
    verify(artifact, contract.hash)
    return inference.load(artifact, contract, Encoders(registry, contract).trial(artifact.manifest))
