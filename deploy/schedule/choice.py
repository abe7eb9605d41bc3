"""Which evaluated version is the best, within a KL budget, and when further training is not worth it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brain_align.common.config.run import EvaluationSection

_SURE = 1.96  # standard errors: 95 %


@dataclass(frozen=True)
class Candidate:
    """A version's results on validation prompts."""

    version: int
    merit: tuple[float, float]  # win rate, 0 without reference outputs, then mean reward
    kl: float  # to the prior, nats
    gains: np.ndarray  # per prompt: 1 for a win and 0 otherwise, or the reward; NaN where unknown  # [prompts]


def best_of(candidates: Sequence[Candidate], settings: EvaluationSection) -> int:
    """Return the best version by `evaluation.choose`, among those within `evaluation.max_kl`.

    * `win-rate`: the highest win rate; of equal ones, or without reference outputs, the highest mean reward.
    * `pareto`: the least KL of those on the Pareto front whose win rate is not clearly below the highest (95 %, on the
      same prompts).

    Where no version is within the budget, it is the one with the least KL.
    """
    left = within(candidates, settings.max_kl) or [min(candidates, key=lambda one: one.kl)]
    highest = max(left, key=lambda one: one.merit)
    if settings.choose == "win-rate":
        return highest.version
    as_good = [one for one in pareto_front(left) if not clearly_below(one, highest)]
    return min(as_good, key=lambda one: one.kl).version


def may_be_best(candidates: Sequence[Candidate], settings: EvaluationSection) -> list[int]:
    """Return the versions that may be the best once further ones are evaluated."""
    if settings.choose == "win-rate":
        return [best_of(candidates, settings)]
    left = within(candidates, settings.max_kl) or [min(candidates, key=lambda one: one.kl)]
    return [one.version for one in pareto_front(left)]


def within(candidates: Sequence[Candidate], max_kl: float | None) -> list[Candidate]:
    """Return the versions within a KL budget; None: all."""
    return [one for one in candidates if max_kl is None or one.kl <= max_kl]


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the versions that no other one equals or surpasses in merit at less KL, or surpasses at the same."""
    return [
        one
        for one in candidates
        if not any(
            (other.merit >= one.merit and other.kl < one.kl) or (other.merit > one.merit and other.kl <= one.kl)
            for other in candidates
        )
    ]


def clearly_below(one: Candidate, highest: Candidate) -> bool:
    """Return whether the 95 % interval of the mean difference on the same prompts excludes 0."""
    lead = highest.gains - one.gains
    lead = lead[np.isfinite(lead)]
    if len(lead) < 2:
        return one.merit < highest.merit
    return float(lead.mean()) > _SURE * float(lead.std(ddof=1)) / math.sqrt(len(lead))


def reason_to_stop(candidates: Sequence[Candidate], settings: EvaluationSection) -> str | None:
    """Return why training should end: the last `evaluation.patience` evaluations, in order, had no better version."""
    if settings.patience is None or not candidates:
        return None
    in_order = sorted(candidates, key=lambda one: one.version)
    left = within(in_order, settings.max_kl) or [min(in_order, key=lambda one: one.kl)]
    highest = max(left, key=lambda one: one.merit).version
    since = [one.version for one in in_order if one.version > highest]
    if len(since) < settings.patience:
        return None
    budget = "" if settings.max_kl is None else f" within evaluation.max_kl={settings.max_kl:g}"
    return (
        f"training ends early with version {in_order[-1].version}: {_none_of(since)} "
        f"better on validation prompts than version {highest}{budget} (evaluation.patience={settings.patience})"
    )


def note_on_budget(candidates: Sequence[Candidate], settings: EvaluationSection) -> str | None:
    """Return what `evaluation.max_kl` has excluded, where that left no trained version; None otherwise."""
    if settings.max_kl is None or any(one.version for one in within(candidates, settings.max_kl)):
        return None
    nearest = min((one for one in candidates if one.version), key=lambda one: one.kl, default=None)
    if nearest is None:
        return None
    return (
        f"WARNING: no trained version is within evaluation.max_kl={settings.max_kl:g} (the nearest is version "
        f"{nearest.version} with {nearest.kl:.2f} nats), so that the result is the SFT model itself; raise max_kl or "
        f"objective.temperature, lower learner.learning_rate, or evaluate more often (evaluation.every_rounds)."
    )


def _none_of(versions: Sequence[int]) -> str:
    numbers = ", ".join(map(str, versions))
    return f"version {numbers} is not" if len(versions) == 1 else f"none of versions {numbers} is"
