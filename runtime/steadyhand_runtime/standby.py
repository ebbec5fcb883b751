"""Standby: what the robot should run next, verified, built, warmed and tried beside the model in force."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from steadyhand_models import signing
from steadyhand_models.artifact import ANSWERING, Artifact, ArtifactError, verify
from steadyhand_models.cli import UserError
from steadyhand_models.contract import Contract
from steadyhand_models.messages import Channel
from steadyhand_models.registry import EncoderMissing, Registry
from steadyhand_models.standing import Pins, Quarantine, Standing, Standings, fallbacks
from steadyhand_runtime import inference, shadow
from steadyhand_runtime.encoders import BuildEncoder, Encoders
from steadyhand_runtime.hold import HoldMeter
from steadyhand_runtime.inference import Model, ModelFailure
from steadyhand_runtime.loaded import Build, Loaded, Settle
from steadyhand_runtime.priority import fifo
from steadyhand_runtime.shadow import Recent

WARM_RUNS = 10
LOOK_PERIOD_S = 0.2
BUDGET_SHARE = 0.5  # of the control period, for one call of one model
LIMIT_SHARE = 1.0  # of the control period, after which a call is cut off
SLACK_WAIT_S = 0.5
# Calls from one that is kept for shadow runs to the next: a classifier must be shown more than the end of an episode.
SHADOW_EVERY = {Channel.CLASSIFIER: 5}
# Below every loop and above everything else: who is put aside while holding the interpreter's lock holds up control.
PRIORITY = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """What artifacts must pass on this robot. Nothing asked for is nothing checked."""

    shadow_calls: int = 10
    shadow_far: float = 1.5
    probation_calls: int = 30
    trusted_keys: tuple[str, ...] = ()
    max_tries: int = 0  # processes that may end while they try an artifact before it is quarantined; 0: any number


@dataclass(frozen=True, slots=True)
class Staged:
    """A model that waits for its boundary; `missed_before` were missed when its build began. `instead_of` is the reason
    when it replaces a newer version that a person has rolled back; a `proven` one needs no probation. It was whole on
    this robot at `found_ns`, and staged at `staged_ns`."""

    model: Loaded
    build_s: float
    missed_before: int
    instead_of: str = ""
    proven: bool = False
    found_ns: int = 0
    staged_ns: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An artifact that will not be used."""

    channel: Channel
    version: int
    reason: str
    build_s: float


@dataclass(frozen=True, slots=True)
class InForce:
    """What control uses now (version 0: nothing), the version before it, and whether it has passed its probation."""

    version: int = 0
    sha256: str = ""
    previous: int = 0
    proven: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """One version to prepare, and how."""

    version: int
    shadow: bool = True
    instead_of: str = ""
    proven: bool = False


@dataclass
class _Shelf:
    """What standby remembers of one channel."""

    known: Standing  # as the last process left it
    started: bool = False
    seen: int = 0
    pin: int | None = None
    replacing: bool = False  # what was in force is gone or in quarantine, and that has been seen to
    trial: str = ""
    tries: int = 0
    tried: bool = False  # by this process
    busy: bool = False
    lacking: int | None = None  # the oldest version that was refused because its encoder had not arrived


class Standby:
    """Prepares what each channel should run next: the pinned version, else the newest that is usable.

    `look` does one round at once, for a robot in lockstep; `start` does so in a thread of its own, at the pace of the
    control loop and in the pauses between its ticks.
    """

    def __init__(
        self,
        registry: Registry,
        contract: Contract,
        quarantine: Quarantine,
        build: Build = inference.load,
        missed: Callable[[], int] = lambda: 0,
        rules: Rules | None = None,
        settle: Settle | None = None,
        build_encoder: BuildEncoder = inference.load_encoder,
    ) -> None:
        """`settle` is called in the thread with the newest policy once nothing else is to do."""
        self.rules = rules or Rules()
        self._registry, self._contract, self._quarantine = registry, contract, quarantine
        self._build, self._missed, self._settle = build, missed, settle
        self._encoders = Encoders(registry, contract, quarantine, self.rules.trusted_keys, build_encoder)
        self._encoders_seen: list[int] = []
        self._standings, self._pins = Standings(registry.root), Pins(registry.root)
        self._period_s = 1.0 / contract.rate_hz
        self.budget_s, self.limit_s = BUDGET_SHARE * self._period_s, LIMIT_SHARE * self._period_s
        self.recent = {c: Recent(self.rules.shadow_calls, SHADOW_EVERY.get(c, 1)) for c in ANSWERING}
        self.in_force: dict[Channel, InForce] = {}  # written by the control thread
        self.build_hold_s: float | None = None  # how long the first build kept the interpreter's lock, once measured
        self._measures = False
        self._shelves: dict[Channel, _Shelf] = {}
        self._staged: dict[Channel, Staged] = {}
        self._refused: list[Refusal] = []
        self._written: dict[Channel, Standing] | None = None
        self._settled: Artifact | None = None
        self._stop, self._slack = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # -- for the control thread; nothing here blocks ---------------------------------------------------------------

    def take(self, channel: Channel, episode_free: bool = True) -> Staged | None:
        """What waits for this channel's boundary, if this is it."""
        staged = self._staged.get(channel)
        if staged is None or (staged.model.manifest.boundary == "episode" and not episode_free):
            return None
        return self._staged.pop(channel, None)

    def refusals(self) -> list[Refusal]:
        """What was refused since the last call."""
        found = []
        while self._refused:
            found.append(self._refused.pop(0))
        return found

    def slack(self) -> None:
        """A tick is over: what would disturb one may happen now."""
        self._slack.set()

    # -- the thread ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look now, so that the first tick has what was current, and from now on in a thread."""
        self._measures = True
        self.look()
        self._thread = threading.Thread(target=self._watch, name="standby", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends in order: what is on probation has not brought this process down."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for shelf in self._shelves.values():
            shelf.trial, shelf.tries = "", 0
        self._save()

    def look(self) -> None:
        """Stage what each channel should run next, if that is not what it runs."""
        self._quarantine.refresh()
        if not self._shelves:
            self._shelves = {c: _Shelf(known) for c, known in self._standings.read().items() if c in ANSWERING}
            for shelf in self._shelves.values():
                shelf.trial, shelf.tries = shelf.known.trial, shelf.known.tries
        self._look_for_encoders()
        for channel in ANSWERING:
            for order in self._orders(channel):
                if self._prepare(channel, order):
                    break
        self._save()

    def _watch(self) -> None:
        fifo(PRIORITY)
        while not self._stop.wait(LOOK_PERIOD_S):
            try:
                self.look()
            except OSError:
                continue  # a folder that cannot be read now is looked at again; the current models stay
            if self._settle is not None and self._settled is not None and not self._staged:
                self._measure(self._settle, self._settled)
                self._settled = None

    def _measure(self, settle: Settle, artifact: Artifact) -> None:
        try:
            encoder = self._encoders.artifact(artifact.manifest)
        except (ArtifactError, OSError):
            return  # gone since; the next policy will do
        if settle(artifact, self._pause, encoder):
            self._encoders.forget()

    @property
    def _threaded(self) -> bool:
        return self._thread is not None

    def _pause(self, seconds: float) -> bool:
        return not self._stop.wait(seconds)

    # -- choosing --------------------------------------------------------------------------------------------------

    def _orders(self, channel: Channel) -> list[Order]:
        """What to prepare, best first; the first that is usable is enough."""
        shelf, pin = self._shelves[channel], self._pins.read().get(channel)
        first, shelf.started = not shelf.started, True
        if pin != shelf.pin:
            # Unpinned, everything is news again; what was staged was meant for the time before.
            shelf.pin, shelf.seen = pin, 0
            self._staged.pop(channel, None)
            if pin is not None and pin != self._have(channel):
                return [Order(pin, shadow=False), *(self._first(channel) if first else [])]
        instead = self._replacements(channel)
        if instead or pin is not None:
            return instead
        return self._first(channel) if first else self._news(channel)

    def _have(self, channel: Channel) -> int:
        """The version that is staged, else the one in force."""
        staged = self._staged.get(channel)
        return staged.model.version if staged is not None else self.in_force.get(channel, InForce()).version

    def _first(self, channel: Channel) -> list[Order]:
        """At the start: what was current, else what came before it; newer ones are news afterwards."""
        shelf, versions = self._shelves[channel], self._registry.versions(channel)
        known = shelf.known
        if known.version not in versions or known.sha256 in self._quarantine:
            shelf.seen = max(versions, default=0)
            return [Order(v, shadow=False) for v in reversed(versions)]
        shelf.seen = known.version
        current = Order(known.version, shadow=False, proven=known.trial != known.sha256)
        return [current, *(Order(v, shadow=False) for v in reversed(versions) if v < known.version)]

    def _news(self, channel: Channel) -> list[Order]:
        """What is newer than the last version looked at, the newest first, down to what there is already."""
        shelf, have = self._shelves[channel], self._have(channel)
        news = [v for v in reversed(self._registry.versions(channel)) if v > shelf.seen]
        shelf.seen = max([shelf.seen, *news])
        return [Order(v) for v in (news[: news.index(have)] if have in news else news)]

    def _replacements(self, channel: Channel) -> list[Order]:
        """Versions to go back to, once, when the last one has failed or a person has put it in quarantine."""
        shelf, now = self._shelves[channel], self.in_force.get(channel)
        gone = now is not None and (now.version == 0 or now.sha256 in self._quarantine)
        if now is None or not gone or shelf.replacing:
            shelf.replacing = gone
            return []
        shelf.replacing = True
        self._staged.pop(channel, None)
        standing = Standing(now.version, now.sha256, now.previous)
        reason = f"v{now.version} was rolled back by hand" if now.version else ""
        earlier = fallbacks(self._registry, channel, standing, self._quarantine)
        return [Order(version, shadow=False, instead_of=reason) for version in earlier]

    def _look_for_encoders(self) -> None:
        """A version that lacked its encoder is news again once one arrives."""
        versions = self._registry.versions(Channel.ENCODER)
        if versions == self._encoders_seen:
            return
        self._encoders_seen = versions
        for shelf in self._shelves.values():
            if shelf.lacking is not None:
                # As if the pin were new, where there is one.
                shelf.seen, shelf.lacking, shelf.pin = min(shelf.seen, shelf.lacking - 1), None, None

    # -- preparing -------------------------------------------------------------------------------------------------

    def _prepare(self, channel: Channel, order: Order) -> bool:
        start_s, missed_before, found_ns = time.perf_counter(), self._missed(), time.monotonic_ns()
        shelf, version = self._shelves[channel], order.version
        shelf.busy = True
        try:
            artifact = self._registry.load(channel, version)
            self._check(artifact, channel, version)
            if not order.proven and self.rules.max_tries:
                self._try(channel, artifact.manifest.sha256)
            model = self._make(artifact)
            built_s = time.perf_counter() - start_s
            if order.shadow:
                self._shadow(channel, model)
            if isinstance(model, Model):
                self._encoders.hand_over(model)
        except Exception as error:  # whatever an artifact provokes, the models in force go on
            if isinstance(error, EncoderMissing):
                shelf.lacking = min(version, shelf.lacking or version)
            known = isinstance(error, (ArtifactError, UserError, ModelFailure, OSError))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            self._refused.append(Refusal(channel, version, reason, time.perf_counter() - start_s))
            shelf.busy = False
            return False
        now_ns = time.monotonic_ns()
        self._staged[channel] = Staged(model, built_s, missed_before, order.instead_of, order.proven, found_ns, now_ns)
        shelf.busy = False
        if channel is Channel.POLICY:
            self._settled = artifact
        return True

    def _check(self, artifact: Artifact, channel: Channel, version: int) -> None:
        manifest = artifact.manifest
        if (manifest.channel, manifest.version) != (channel, version):
            claim = f"{manifest.channel.value} v{manifest.version}"
            raise ArtifactError(f"{channel.value} v{version}: its manifest says {claim}")
        verify(artifact, self._contract.hash)
        signing.check(artifact, self.rules.trusted_keys)
        if manifest.sha256 in self._quarantine:
            raise ArtifactError(f"{channel.value} v{version}: in quarantine since it failed on this robot")

    def _make(self, artifact: Artifact) -> Loaded:
        """Build and warm, after a tick rather than in one: onnxruntime holds the interpreter's lock for part of it."""
        if self._threaded:
            self._slack.clear()
            self._slack.wait(SLACK_WAIT_S)
        if self._measures and self.build_hold_s is None:
            with HoldMeter() as meter:
                model = self._build_both(artifact)
            self.build_hold_s = meter.longest_s
        else:
            model = self._build_both(artifact)
        call_s = model.warm(WARM_RUNS)
        if call_s > self.budget_s:
            raise ArtifactError(f"a call takes {call_s * 1e3:.0f} ms, allowed {self.budget_s * 1e3:.0f} ms")
        model.limit_s = self.limit_s
        return model

    def _build_both(self, artifact: Artifact) -> Loaded:
        encoder = self._encoders.trial(artifact.manifest)
        if encoder is None:
            return self._build(artifact, self._contract)
        return self._build(artifact, self._contract, encoder)

    def _shadow(self, channel: Channel, model: Loaded) -> None:
        classifies = channel is Channel.CLASSIFIER
        limits = shadow.Limits(self.budget_s, None if classifies else self.rules.shadow_far, classifies)
        wait = (lambda: self._pause(self._period_s)) if self._threaded else None
        shadow.run(model, self.recent[channel], limits, wait)

    # -- what outlives this process --------------------------------------------------------------------------------

    def _try(self, channel: Channel, sha256: str) -> None:
        """Note on the disk what is about to be tried: one that brings the process down must not be tried for ever."""
        shelf = self._shelves[channel]
        shelf.tries = shelf.tries + 1 if shelf.trial == sha256 else 1
        shelf.trial, shelf.tried = sha256, True
        if shelf.tries > self.rules.max_tries:
            self._quarantine.add(sha256)
            raise ArtifactError(f"in quarantine: the process ended {self.rules.max_tries} times while it was tried")
        self._save()

    def _save(self) -> None:
        """Write what changed. What a disk refuses now is written at a later look: it must not stop the robot."""
        standings = {channel: self._standing(channel) for channel in self._shelves}
        try:
            self._quarantine.save()
            if standings and standings != self._written:
                self._standings.write(standings)
                self._written = standings
        except OSError:
            return

    def _standing(self, channel: Channel) -> Standing:
        shelf, now = self._shelves[channel], self.in_force.get(channel)
        if shelf.tried and not self._on_trial(channel, now):
            shelf.trial, shelf.tries, shelf.tried = "", 0, False
        if now is None:
            return replace(shelf.known, trial=shelf.trial, tries=shelf.tries)
        return Standing(now.version, now.sha256, now.previous, shelf.trial, shelf.tries)

    def _on_trial(self, channel: Channel, now: InForce | None) -> bool:
        """Whether the artifact that is tried is being prepared, waits for its boundary or is on probation."""
        shelf = self._shelves[channel]
        if shelf.busy or channel in self._staged:
            return True
        return now is not None and now.sha256 == shelf.trial and not now.proven
