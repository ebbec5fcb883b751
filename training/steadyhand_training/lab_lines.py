"""The lines that the experiments compare: their names, and how trainer and robot of each are started."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# HIL-SERL (arXiv 2410.21845) fits its classifier to about ten trajectories.
DRIFT_DEMONSTRATIONS = 10


class Line(str, enum.Enum):
    """One way to learn the task: what `steadyhand lab learn` compares."""

    RLPD_SAC = "rlpd_sac"
    DRQV2 = "drqv2"
    BEHAVIOUR_CLONING = "behaviour_cloning"
    NO_TAKEOVERS = "no_takeovers"


class DriftLine(str, enum.Enum):
    """One source of reward while the light changes: what `steadyhand lab drift` compares."""

    FIXED = "fixed"
    SILRI = "silri"
    CORRECTED = "corrected"
    TRUTH = "truth"
    FIXED_INVARIANT = "fixed_invariant"
    SILRI_INVARIANT = "silri_invariant"


# What an experiment compares unless it is told otherwise; the rest says how much of it is the network alone.
DRIFT_LINES = (DriftLine.FIXED, DriftLine.SILRI, DriftLine.CORRECTED, DriftLine.TRUTH)


@dataclass(frozen=True)
class Recipe:
    """How a line is made. Lines with the same course share its training runs."""

    title: str
    course: str  # name of the training run's folder
    trainer: tuple[str, ...] = ()  # words beyond the common ones
    robot: tuple[str, ...] = ()
    first_only: bool = False  # only the first version is of interest
    by_hand: bool = False  # no classifier ends episodes or pays
    demonstrations: int = 4  # as the demo


RECIPES = {
    Line.RLPD_SAC: Recipe("RLPD-SAC with takeovers", "rlpd_sac"),
    # The paper's agent learns every second step; at one update a step it gets twice that.
    Line.DRQV2: Recipe("DrQ-v2 with takeovers", "drqv2", ("--learner.algorithm", "drqv2", "--utd-ratio", "1")),
    # The first policy that is published was cloned from the demonstrations, and knows no reward.
    Line.BEHAVIOUR_CLONING: Recipe("behaviour cloning", "rlpd_sac", first_only=True),
    Line.NO_TAKEOVERS: Recipe("RLPD-SAC without takeovers", "no_takeovers", robot=("--operator.takeover-rate", "0")),
}

# A person who sees at once, never errs and always speaks: the reward that no classifier can better.
_PERFECT = (
    "--operator.reaction-lo-s", "0.1", "--operator.reaction-hi-s", "0.2", "--operator.wrong-key-rate", "0",
    "--operator.verdict-rate", "1",
)  # fmt: skip
# As HIL-SERL, LeRobot and SiLRI fit theirs: levels as they are, and random shifts alone.
_LEVELS = (
    "--correction.fit.light-invariant", "False", "--correction.fit.brightness", "0", "--correction.fit.colour", "0",
    "--correction.fit.shade", "0", "--correction.fit.hidden", "0",
)  # fmt: skip
_FIXED, _ALONE = ("--correction.rule", "fixed"), ("--control.reward-source", "classifier")
_SILRI = ("--correction.rule", "silri")
DRIFT_RECIPES = {
    DriftLine.FIXED: Recipe(
        "fixed classifier", "fixed", (*_FIXED, *_LEVELS), _ALONE, demonstrations=DRIFT_DEMONSTRATIONS
    ),
    DriftLine.SILRI: Recipe("SiLRI's rule", "silri", (*_SILRI, *_LEVELS), demonstrations=DRIFT_DEMONSTRATIONS),
    DriftLine.FIXED_INVARIANT: Recipe(
        "fixed, light-invariant", "fixed_invariant", _FIXED, _ALONE, demonstrations=DRIFT_DEMONSTRATIONS
    ),
    DriftLine.SILRI_INVARIANT: Recipe(
        "SiLRI's rule, light-invariant", "silri_invariant", _SILRI, demonstrations=DRIFT_DEMONSTRATIONS
    ),
    DriftLine.CORRECTED: Recipe("corrected classifier", "corrected", demonstrations=DRIFT_DEMONSTRATIONS),
    DriftLine.TRUTH: Recipe(
        "true reward",
        "truth",
        ("--reward.source", "manual"),
        ("--control.reward-source", "manual", *_PERFECT),
        by_hand=True,
        demonstrations=DRIFT_DEMONSTRATIONS,
    ),
}


def trainer_words(recipe: Recipe, run: str, seed: int, task: str) -> tuple[str, ...]:
    """`steadyhand train` of one run, on ports that are free."""
    return (
        "train", "--run", run, "--task", task, "--seed", str(seed), "--demonstrations", str(recipe.demonstrations),
        "--listen", "tcp://127.0.0.1:*", "--status", "tcp://127.0.0.1:*", "--lockstep.enabled", "True",
        *recipe.trainer,
    )  # fmt: skip


def robot_words(recipe: Recipe, run: str, seed: int, task: str, steps: int, link: str) -> tuple[str, ...]:
    """`steadyhand sim lockstep` of one run, for `steps` recorded steps."""
    return (
        "sim", "lockstep", "--run", run, "--task", task, "--seed", str(seed), "--steps", str(steps),
        "--link.address", link, "--operator.wander", "0", "--operator.demonstrations", str(recipe.demonstrations),
        *recipe.robot,
    )  # fmt: skip
