"""What came out on held-back prompts, prompt by prompt, from the store of a run's evaluations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import CombinationSection
from brain_align.common.inference import PairedDifference, paired_bootstrap
from brain_align.common.schemas import PRIOR
from brain_align.common.store.overlay import Store
from brain_align.common.store.rewards import stored_rewards

_COLUMNS = ["group_id", "prompt_id", "prompt_text", "gold_text", "lease_id", "outputs"]

Values = list[float | None]


@dataclass(frozen=True)
class Outcome:
    """One version's output for one prompt; a value that could not be computed is None."""

    prompt: str
    reference: str | None
    text: str
    tokens: int
    finished: bool
    log_ratio: float | None  # log q(y|x) − log p(y|x), nats
    reward: float | None
    reference_reward: float | None
    scores: dict[str, float | None]  # of each scorer that is not the reward
    reference_scores: dict[str, float | None]


Outcomes = dict[str, Outcome]
"""By prompt id, in the order in which the outputs were stored."""


def read_outcomes(store: Store, recipe: Recipe, split: str, version: int) -> Outcomes:
    """Return what a version of the policy came to on the prompts of a split; empty if it was not evaluated on it."""
    rows = [row for batch in store.batches(version=version, columns=_COLUMNS) for row in batch.to_pylist()]
    rows = [row for row in rows if row["lease_id"].startswith(f"{split}-")]  # see `RequestPlan.purpose_of`
    groups = [row["group_id"] for row in rows]
    names = sorted({facts.name for facts in store.scorers()} - {PRIOR, recipe.objective.reward})
    rewards, of_references = _values(store, groups, recipe.reward)
    prior, _ = _values(store, groups, PRIOR)
    scores = {name: _values(store, groups, name) for name in names}
    found = {}
    for place, row in enumerate(rows):
        output, log_prior = row["outputs"][0], prior[place]
        found[row["prompt_id"]] = Outcome(
            prompt=row["prompt_text"],
            reference=row["gold_text"],
            text=output["text"],
            tokens=len(output["token_ids"]),
            finished=output["finish_reason"] == "stop",
            log_ratio=None if log_prior is None else sum(output["token_logprobs"]) - log_prior,
            reward=rewards[place],
            reference_reward=of_references[place],
            scores={name: values[place] for name, (values, _) in scores.items()},
            reference_scores={name: values[place] for name, (_, values) in scores.items()},
        )
    return found


def _values(store: Store, groups: list[str], reward: str | CombinationSection) -> tuple[Values, Values]:
    """Return the values of the outputs and of the references, None where there is none (yet)."""
    needed = [reward] if isinstance(reward, str) else list(reward.weights)
    there = np.logical_and.reduce([store.has_scores(groups, name) for name in needed])
    known = [group for group, is_there in zip(groups, there, strict=True) if is_there]
    rows = stored_rewards(store, known, reward).to_pylist() if known else []
    found = {group: (row["values"][0], row["gold_value"]) for group, row in zip(known, rows, strict=True)}
    pairs = [found.get(group, (None, None)) for group in groups]
    return [value for value, _ in pairs], [value for _, value in pairs]


def figures_of(truth: str | None) -> dict[str, Callable[[Outcome], float | None]]:
    """Return for each mean of an evaluation's `Result` the value of one prompt; `truth` names the scorer of its own."""
    return {
        "train_rm_win_rate": _win,
        "mean_reward": lambda one: one.reward,
        "truth_quality": lambda one: one.scores.get(truth) if truth else None,
        "kl_to_prior": lambda one: one.log_ratio,
        "mean_tokens": lambda one: float(one.tokens),
        "ended": lambda one: 100.0 * one.finished,
    }


def _win(one: Outcome) -> float | None:
    if one.reward is None or one.reference_reward is None or one.log_ratio is None:
        return None
    return 100.0 * (one.reward > one.reference_reward)


def differences(before: Outcomes, after: Outcomes, truth: str | None) -> dict[str, PairedDifference]:
    """Return, by figure, the mean of after − before over the prompts of which both are known, with its interval."""
    common = [prompt for prompt in before if prompt in after]
    found = {}
    for name, value in figures_of(truth).items():
        pairs = [(value(before[prompt]), value(after[prompt])) for prompt in common]
        changes = [b - a for a, b in pairs if a is not None and b is not None]
        if changes:
            found[name] = paired_bootstrap(np.array([changes]))
    return found


def histogram(series: Mapping[str, Sequence[float | None]], *, whole: bool = False, bins: int = 24) -> dict[str, Any]:
    """Return the numbers of values between common edges; `whole`: of whole numbers, whose bins have whole widths.

    Returns:
        `edges` (one more than bins), and `counts` of each series. None without any value.
    """
    known = {name: np.array([value for value in values if value is not None]) for name, values in series.items()}
    known = {name: values for name, values in known.items() if len(values)}
    everything = np.concatenate(list(known.values())) if known else np.zeros(0)
    if not len(everything):
        return {}
    if whole:
        first, last = int(everything.min()), int(everything.max())
        width = max(1, -(-(last - first + 1) // bins))
        edges = np.arange(first, last + width + 1, width) - 0.5
    else:
        edges = np.histogram_bin_edges(everything, bins)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in known.items()}
    return {"edges": edges.tolist(), "counts": counts}
