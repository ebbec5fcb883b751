"""The trainer's eye for what a person should look at: questions about stored frames, and drift, per ended episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from steadyhand_models import reward
from steadyhand_models.messages import EndReason, Label, LabelKind, Source
from steadyhand_models.nets.classifier import Classifier
from steadyhand_training import asking, strata
from steadyhand_training.asking import AskingSettings, Glances
from steadyhand_training.drift import Drift, DriftSettings, Fitted, Seen, Vetoes, light_levels, threshold_lift
from steadyhand_training.evidence import Evidence
from steadyhand_training.journal import is_import
from steadyhand_training.labels import FLAGS, REVIEWS
from steadyhand_training.memory import STREAM_STRIDE, Memory, News
from steadyhand_training.questions import Question, Questions
from steadyhand_training.replay import SOURCES
from steadyhand_training.run_folder import RunFolder

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

KNOWN_FRAMES = 256  # labelled frames that stand for all of them
SHORTLIST = 64  # frames beside those of the newest episode whose novelty is worked out
FAR_PERCENTILE = 25  # an episode always shows something new; drift shows in what should be familiar, too
BATCH = 128
ALIKE_LEVELS = 1.0  # lights that differ by less are kept as one
MOST_USUAL = 12  # held-out episodes, the newest ones, that say what is usual
LEAST_USUAL = 2  # held-out episodes that say how far is usual; one says nothing of how they differ
VETO_WINDOWS = 4  # the last one, and three of the time before
REFUTING = (LabelKind.FALSE_POSITIVE, LabelKind.VERDICT_FAILURE)
DEMONSTRATION = SOURCES.index(Source.DEMONSTRATION)


class Scored(Protocol):
    """Probabilities of replay rows under one network."""

    net: Classifier

    def of(self, rows: I64) -> F32:
        """(N, heads) of rows (N,)."""

    def missing(self) -> I64:
        """Rows that were never asked for."""


@dataclass(frozen=True)
class Champion:
    """The classifier in force, as far as it is needed here."""

    version: int
    since: int  # the version with which its weights came into force
    scores: Scored
    rule: reward.Rule


@dataclass(frozen=True)
class _Known:
    """What a champion learned from: some of its frames, their features (M, F), and what is usual."""

    since: int
    rows: I64
    features: F32
    fitted: Fitted


class Attention:
    """Looks at every episode that ended, once. Equal journals and champions make equal questions and warnings."""

    def __init__(
        self,
        memory: Memory,
        evidence: Evidence,
        folder: RunFolder,
        settings: AskingSettings,
        drift: DriftSettings,
        discount: float,
    ) -> None:
        """discount is the learner's: what an answer changes is measured in the return."""
        self.settings = settings
        self.drift = Drift(drift)
        self.questions = Questions(folder)
        self._memory, self._evidence, self._discount = memory, evidence, discount
        self._known: _Known | None = None
        self._signatures: dict[int, F32] = {}

    @property
    def lift(self) -> float:
        """What the champion's threshold is to be raised by."""
        return threshold_lift(self.drift)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(f"{w.sentence} {w.remedy}" for w in self.drift.warnings())

    @property
    def metrics(self) -> dict[str, float]:
        found = {f"drift_{code.value}": 1.0 for code in self.drift.active}
        return {"questions": float(len(self.questions.open)), "threshold_lift": self.lift, **found}

    def notice(self, news: News, champion: Champion | None) -> None:
        """One entry of the journal was taken in, and its outcome settled."""
        if news.label is not None:
            self._heard(news.label)
            return
        replay = self._memory.replay
        for episode in news.settled:
            if champion is not None and replay.ended(episode) is not None:
                self._ended(episode, champion)

    def state(self) -> dict[str, Any]:
        """What another process cannot work out from the journal, as plain data."""
        known = self._known
        fitted = None if known is None else known.fitted
        return {
            "drift": self.drift.state(),
            "known": None
            if known is None or fitted is None
            else {
                "since": known.since,
                "rows": known.rows.tolist(),
                "lights": [light.tolist() for light in fitted.lights],
                "far": fitted.far,
                "disagreement": fitted.disagreement,
            },
        }

    def restore(self, state: dict[str, Any], champion: Champion | None) -> None:
        """Take up what `state` gave; replay and ledger are filled and the champion is the one of then."""
        self.drift.restore(state["drift"])
        known = state["known"]
        if known is not None and champion is not None:
            lights = tuple(np.array(light, np.float32) for light in known["lights"])
            rows = np.array(known["rows"], np.int64)
            fitted = Fitted(lights, float(known["far"]), float(known["disagreement"]))
            self._known = _Known(int(known["since"]), rows, self._features(champion, rows), fitted)
        for label in self._memory.ledger.after(0):
            self._heard(label)

    # -- words -----------------------------------------------------------------------------------------------------

    def _heard(self, label: Label) -> None:
        if label.kind in REVIEWS and any(v.event_id == label.event_id for v in self._standing(label.episode)):
            edge, _, number = self._memory.origin(label.episode)
            self.questions.answered(label, edge, number)
        elif label.kind is LabelKind.UNDO:
            named = self._memory.ledger.target(label)
            if named is not None:
                self.questions.taken_back(named.event_id)

    def _standing(self, episode: int) -> list[Label]:
        return self._memory.ledger.labels(episode)

    # -- ended episodes --------------------------------------------------------------------------------------------

    def _ended(self, episode: int, champion: Champion) -> None:
        known = self._known_to(champion)
        if known is None or is_import(self._memory.origin(episode)[0]):
            return
        rows = self._memory.replay.rows(episode)
        self.drift.look(self._seen(rows, champion, known), known.fitted, self._vetoes(episode))
        if self.settings.enabled:
            self._ask(episode, champion, known)

    def _known_to(self, champion: Champion) -> _Known | None:
        """What this champion was fitted on, worked out when it comes into force."""
        if self._known is None or self._known.since != champion.since:
            rows, labels = self._evidence.rows(self._evidence.taught())
            rows = strata.evenly(rows[labels != 0], KNOWN_FRAMES)
            if len(rows) < 2:
                return None
            self._known = _Known(champion.since, rows, self._features(champion, rows), Fitted((), 0.0, 0.0))
            self._known = _Known(champion.since, rows, self._known.features, self._fitted(champion, self._known))
            self.drift.begin()
        return self._known

    def _fitted(self, champion: Champion, known: _Known) -> Fitted:
        replay = self._memory.replay
        usual = [self._seen(replay.rows(e), champion, known) for e in self._evidence.held_out()[-MOST_USUAL:]]
        return Fitted(
            lights=self._lights(),
            far=max(s.far for s in usual) if len(usual) >= LEAST_USUAL else float("inf"),
            disagreement=max((s.disagreement for s in usual), default=0.0),
        )

    def _lights(self) -> tuple[F32, ...]:
        """The lights of labelled episodes, without those that are like another."""
        replay = self._memory.replay
        found: list[F32] = []
        for episode in self._evidence.labelled():
            if episode not in self._signatures:
                self._signatures[episode] = strata.signature(replay.frames[replay.rows(episode)])
            if not found or light_levels(self._signatures[episode], found) > ALIKE_LEVELS:
                found.append(self._signatures[episode])
        return tuple(found)

    def _seen(self, rows: I64, champion: Champion, known: _Known) -> Seen:
        far = asking.nearest(self._features(champion, strata.evenly(rows, SHORTLIST)), known.features)
        return Seen(
            light=strata.signature(self._memory.replay.frames[rows]),
            far=float(np.percentile(far, FAR_PERCENTILE)),
            disagreement=float(asking.disagreement(champion.scores.of(rows)).mean()),
        )

    def _vetoes(self, newest: int) -> Vetoes:
        """The last successes that the classifier called; on the newest episode nobody may have had time to speak."""
        window = self.drift.settings.veto_window
        called: list[bool] = []
        for episode in reversed(self._memory.replay.ended_episodes()):
            labels = self._standing(episode)
            refuted = any(v.kind in REFUTING for v in labels)
            if refuted or (episode != newest and self._called(episode, labels)):
                called.append(refuted)
            if len(called) == VETO_WINDOWS * window:
                break
        lately, before = called[:window], called[window:]
        return Vetoes(len(lately), sum(lately), len(before), sum(before))

    def _called(self, episode: int, labels: Sequence[Label]) -> bool:
        """Whether the classifier ended an episode: as a success, and no person did."""
        replay = self._memory.replay
        shown = bool((replay.source[replay.rows(episode)] == DEMONSTRATION).any())
        ended = replay.ended(episode) is EndReason.SUCCESS
        return ended and not shown and not any(v.kind is LabelKind.SUCCESS for v in labels)

    def _features(self, champion: Champion, rows: I64) -> F32:
        """Features (N, F) of rows (N,) as the champion's heads see them."""
        net, frames = champion.scores.net, self._memory.replay.frames[rows]
        net.eval()
        with torch.inference_mode():
            parts = [net.features(torch.from_numpy(frames[i : i + BATCH])).numpy() for i in range(0, len(rows), BATCH)]
        return np.concatenate(parts)

    # -- questions -------------------------------------------------------------------------------------------------

    def _ask(self, newest: int, champion: Champion, known: _Known) -> None:
        drifting, skipped = bool(self.drift.active), self.questions.skipped
        self.questions.withdraw(skipped | self._settled())
        asked = self._suspects(champion)[: self.settings.per_episode]
        asked = [(q, frames) for q, frames in asked if q.id not in skipped]
        glances, rows = self._glances(newest, champion, known)
        places = asking.rank(glances, self._taken(skipped), self.settings, drift=drifting)
        scores = glances.scores(self.settings)
        for i in places[: self.settings.per_episode - len(asked)]:
            question = self._question(int(rows[i]), champion, float(scores[i]), glances, i)
            asked.append((question, self._memory.replay.frames[rows[i]]))
        self.questions.ask(asked, self.settings.most_open_in_drift if drifting else self.settings.most_open)

    def _glances(self, newest: int, champion: Champion, known: _Known) -> tuple[Glances, I64]:
        """Everything that might be asked about, and its rows (N,)."""
        replay, ledger = self._memory.replay, self._memory.ledger
        # Those that a promotion has not scored again yet would cost a second in one go; they come later.
        waiting = set(np.unique(replay.episode[champion.scores.missing()]).tolist()) - {newest}
        episodes = [e for e in replay.ended_episodes()[-self.settings.look_back_episodes :] if e not in waiting]
        rows = [replay.rows(e) for e in episodes]
        labels = [ledger.frame_labels(e, replay) for e in episodes]
        probabilities = [champion.scores.of(r) for r in rows]
        effect = [asking.effects(p, w, champion.rule, self._discount) for p, w in zip(probabilities, labels)]
        flat = np.concatenate(rows)
        glances = Glances(
            episode=replay.episode[flat],
            seq=replay.seq[flat],
            disagreement=asking.disagreement(np.concatenate(probabilities)),
            novelty=np.zeros(len(flat), np.float32),
            effect=np.concatenate(effect),
            silent=np.concatenate(labels) == 0,
        )
        self._look_closer(glances, flat, newest, champion, known)
        return glances, flat

    def _look_closer(self, glances: Glances, rows: I64, newest: int, champion: Champion, known: _Known) -> None:
        """Fill in the novelty of the newest episode's frames and of the best of the others."""
        stride = max(1, self.settings.spacing_steps // 2)
        fresh = np.flatnonzero((glances.episode == newest) & glances.silent)[::stride]
        others = np.flatnonzero(glances.silent)
        best = others[np.argsort(-glances.scores(self.settings)[others], kind="stable")[:SHORTLIST]]
        places = np.union1d(fresh, best)
        if len(places):
            glances.novelty[places] = asking.novelty(self._features(champion, rows[places]), known.features)

    def _question(self, row: int, champion: Champion, score: float, glances: Glances, place: int) -> Question:
        replay = self._memory.replay
        episode, seq = int(replay.episode[row]), int(replay.seq[row])
        edge, run, number = self._memory.origin(episode)
        return Question(
            id=_name(episode, seq),
            edge=edge,
            run=run,
            episode=number,
            steps=(seq,),
            shown=seq,
            stamp_ns=int(replay.stamp_ns[row]),
            version=champion.version,
            heads=tuple(round(float(p), 4) for p in champion.scores.of(np.array([row]))[0]),
            score=score,
            disagreement=float(glances.disagreement[place]),
            novelty=float(glances.novelty[place]),
            effect=float(glances.effect[place]),
        )

    def _suspects(self, champion: Champion) -> list[tuple[Question, U8]]:
        """Words that are doubted, and that nobody has looked at again."""
        found = []
        for episode in self._evidence.review:
            labels = self._standing(episode)
            looked_at = {step for v in labels if v.kind in REVIEWS for step in v.steps}
            for word in (v for v in labels if v.kind not in REVIEWS):
                rows = self._at_issue(word, champion)
                steps = tuple(int(s) for s in self._memory.replay.seq[rows])
                if steps and not looked_at & set(steps):
                    found.append(self._doubt(word, episode, rows, steps, champion))
        return found

    def _doubt(
        self, said: Label, episode: int, rows: I64, steps: tuple[int, ...], champion: Champion
    ) -> tuple[Question, U8]:
        """A question about frames of which something was said; shown is the one in their middle."""
        edge, run, number = self._memory.origin(episode)
        middle = int(rows[len(rows) // 2])
        heads = champion.scores.of(np.array([middle]))[0]
        seq = int(self._memory.replay.seq[middle])
        question = Question(
            id=_name(episode, seq),
            edge=edge,
            run=run,
            episode=number,
            steps=steps,
            shown=seq,
            stamp_ns=int(self._memory.replay.stamp_ns[middle]),
            version=champion.version,
            heads=tuple(round(float(p), 4) for p in heads),
            score=1.0,
            word=f"{said.kind.value.replace('_', ' ')} ({said.who})",
        )
        return question, self._memory.replay.frames[middle]

    def _at_issue(self, word: Label, champion: Champion) -> I64:
        """Rows that a flag speaks of; of a word on the whole episode those of which the champion says the contrary."""
        replay = self._memory.replay
        rows, spoken = replay.rows(word.episode), self._memory.ledger.provenance(word, replay)
        positive = np.isin(replay.seq[rows], spoken.positive)
        if word.kind in FLAGS:
            return rows[positive | np.isin(replay.seq[rows], spoken.negative)]
        above = champion.scores.of(rows).mean(axis=1) > champion.rule.threshold
        return rows[(positive & ~above) | (np.isin(replay.seq[rows], spoken.negative) & above)]

    def _settled(self) -> set[str]:
        """Open questions that other words have answered meanwhile, or whose doubt is over."""
        replay, ledger = self._memory.replay, self._memory.ledger
        found = set()
        for question in self.questions.open:
            episode = self._memory.episode(question.edge, question.run, question.episode)
            if question.word:
                if episode not in self._evidence.review:
                    found.add(question.id)
                continue
            rows = replay.rows(episode)
            said = ledger.frame_labels(episode, replay)[np.isin(replay.seq[rows], question.steps)]
            if not len(said) or said.any():
                found.add(question.id)
        return found

    def _taken(self, skipped: set[str]) -> list[tuple[int, int]]:
        """(episode, seq) of what was asked, answered or passed over."""
        asked = [(self._memory.episode(q.edge, q.run, q.episode), q.shown) for q in self.questions.known]
        return asked + [place for place in map(_place, skipped) if place is not None]


def _name(episode: int, seq: int) -> str:
    """A question's id; episodes are numbered over all robots here."""
    stream, number = divmod(episode, STREAM_STRIDE)
    return f"e{number}-s{seq}" if stream == 0 else f"e{number}-s{seq}-r{stream}"


def _place(name: str) -> tuple[int, int] | None:
    """(episode, seq) of a question's id; None for what is none."""
    parts = name.split("-")
    try:
        stream = int(parts[2][1:]) if len(parts) > 2 else 0
        return stream * STREAM_STRIDE + int(parts[0][1:]), int(parts[1][1:])
    except (ValueError, IndexError):
        return None
