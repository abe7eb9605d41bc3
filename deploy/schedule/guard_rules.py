"""What the guards look for: pure rules over means of metrics, each a sentence or None (docs/metrics.md has the limits).

A rule looks at the means of a window of steps, not at one step, so that one odd batch raises no alarm.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from brain_align.common.config.recipe import Recipe

LEAST_FINISHED = 80.0  # percent of outputs
LARGEST_KL = 10.0  # nats, where the recipe has no evaluation.max_kl
_LEAST_ESS = 2.0
_EVEN_SHARE = 0.95  # of n: an effective sample size at which all outputs weigh the same
_ENTROPY_LEFT = 1 / 4  # of that of the first steps
_COLLAPSED = 1 / 4  # of groups
_LENGTH_CHANGE, _LENGTH_CORRELATION, _EXPLAINED = 0.2, 0.3, 0.5
_CLEAR_GAIN = 1 / 4  # of the standard deviation of a prompt's rewards
_FEWEST_PROMPTS = 8
_SURE, _VERY_SURE = 1.96, 2.58  # standard errors: 95 and 99 %

Means = Mapping[str, float]


@dataclass(frozen=True)
class Window:
    """Means over the last steps; those of the first steps once the two do not overlap; and γ for round 0's groups."""

    recipe: Recipe
    now: Means
    first: Means | None
    suggested: float | None  # at which half of the outputs share α's weight; None where it is not known


def few_outputs_count(window: Window) -> str | None:
    """Tell when hardly more than one output per prompt has weight in α: 2, or n/2 for fewer than four outputs."""
    now, gamma = window.now, window.recipe.objective.temperature
    if not now.keys() >= {"ess_alpha", "outputs_per_prompt"}:
        return None
    ess, n = now["ess_alpha"], now["outputs_per_prompt"]
    if ess >= min(_LEAST_ESS, n / 2):
        return None
    what = (
        f"the effective sample size of α is {ess:.1f} of {n:.0f}: hardly more than one output per prompt is learnt from"
    )
    if window.suggested is not None and gamma < window.suggested / 2:
        return (
            f"{what}. objective.temperature={gamma:g} is small for these rewards; round 0's groups suggest "
            f"{window.suggested:.2g}, at which half of the outputs share the weight. Raise it, or sampling.n"
        )
    return (
        f"{what}. The policy has moved far between versions: raise objective.temperature or sampling.n, or lower "
        f"learner.learning_rate or algorithm.updates_per_round"
    )


def weights_are_even(window: Window) -> str | None:
    """Tell when γ is so large that all outputs weigh the same, and the posterior is the prior."""
    now, gamma = window.now, window.recipe.objective.temperature
    if window.suggested is None or not now.keys() >= {"ess_alpha", "outputs_per_prompt"}:
        return None
    ess, n = now["ess_alpha"], now["outputs_per_prompt"]
    if ess <= _EVEN_SHARE * n or gamma <= 2 * window.suggested:
        return None
    return (
        f"the effective sample size of α is {ess:.1f} of {n:.0f}: the weights of a prompt's outputs hardly differ, so "
        f"that little is learnt. objective.temperature={gamma:g} is large for these rewards; round 0's groups suggest "
        f"{window.suggested:.2g}, at which half of the outputs share the weight"
    )


def rewards_are_equal(window: Window) -> str | None:
    """Tell when all outputs of a prompt have one reward."""
    if window.now.get("reward_sd", 1.0) > 0:
        return None
    return (
        "all outputs of a prompt have the same reward, so that nothing is learnt: look at the reward with `brain score`"
    )


def outputs_are_cut(window: Window) -> str | None:
    """Tell when too few sampled outputs finish."""
    ended = window.now.get("ended", 100.0)
    return None if ended >= LEAST_FINISHED else unfinished(ended, "sampled", window.recipe)


def unfinished(ended: float, which: str, recipe: Recipe) -> str:
    """Return the sentence on outputs that do not finish."""
    return (
        f"only {ended:.0f} % of the {which} outputs finished (EOS) within sampling.max_tokens="
        f"{recipe.sampling.max_tokens}: raise it, or see objective.truncated"
    )


def policy_is_far(window: Window) -> str | None:
    """Tell when the policy's distance from the prior is above the budget."""
    distance, budget = window.now.get("kl_policy_prior", 0.0), kl_budget(window.recipe)
    return None if distance <= budget else far(distance, window.recipe)


def kl_budget(recipe: Recipe) -> float:
    """Return the KL to the prior above which there is a warning, in nats."""
    return LARGEST_KL if recipe.evaluation.max_kl is None else recipe.evaluation.max_kl


def far(distance: float, recipe: Recipe) -> str:
    """Return the sentence on a policy that is too far from the prior."""
    budget = kl_budget(recipe)
    named = "" if recipe.evaluation.max_kl is None else " (evaluation.max_kl)"
    return (
        f"the policy is {distance:.1f} nats from the prior, more than {budget:g}{named}: read its outputs, raise "
        f"objective.temperature, or train less"
    )


def outputs_are_alike(window: Window) -> str | None:
    """Tell when the proposal's entropy has collapsed, or whole groups consist of one output."""
    now, first = window.now, window.first
    collapsed = now.get("groups_collapsed", 0.0)
    if collapsed >= _COLLAPSED:
        return (
            f"in {100 * collapsed:.0f} % of the groups all outputs are the same, so that nothing is learnt from them: "
            f"go back to an earlier version, raise objective.temperature, or lower learner.learning_rate"
        )
    if first is None or "entropy" not in now or "entropy" not in first:
        return None
    if now["entropy"] >= _ENTROPY_LEFT * first["entropy"]:
        return None
    return (
        f"the entropy of the sampled tokens has fallen from {first['entropy']:.2f} to {now['entropy']:.2f} nats per "
        f"token: outputs become alike. Raise objective.temperature, or lower learner.learning_rate"
    )


def length_explains_the_gain(window: Window) -> str | None:
    """Tell when at least half of the reward's gain is what the change of length alone would bring.

    What a token brings is the slope of reward over length within the first steps' groups.
    """
    now, first = window.now, window.first
    needed = {"reward_mean", "output_tokens", "reward_sd"}
    if first is None or not now.keys() >= needed or not first.keys() >= needed:
        return None
    if not first.keys() >= {"reward_per_token", "reward_length_correlation"}:
        return None
    gain, tokens = now["reward_mean"] - first["reward_mean"], now["output_tokens"] - first["output_tokens"]
    by_length = first["reward_per_token"] * tokens
    if gain < _CLEAR_GAIN * first["reward_sd"] or abs(tokens) < _LENGTH_CHANGE * first["output_tokens"]:
        return None
    correlation = first["reward_length_correlation"]
    if abs(correlation) < _LENGTH_CORRELATION or by_length < _EXPLAINED * gain:
        return None
    share = "all" if by_length >= gain else f"{100 * by_length / gain:.0f} %"
    return (
        f"outputs have become {'longer' if tokens > 0 else 'shorter'} ({first['output_tokens']:.0f} to "
        f"{now['output_tokens']:.0f} tokens), and length alone explains {share} of the reward's gain (their "
        f"correlation within a prompt was {correlation:.2f}): unless that is what the reward is for, the policy learns "
        f"to please it by length"
    )


STEP_RULES: dict[str, Callable[[Window], str | None]] = {
    "ess": few_outputs_count,
    "even": weights_are_even,
    "equal": rewards_are_equal,
    "finished": outputs_are_cut,
    "kl": policy_is_far,
    "entropy": outputs_are_alike,
    "length": length_explains_the_gain,
}


Judged = Mapping[str, np.ndarray]
"""Values per held-back prompt of one version: `reward`, and those of scorers that training never sees.  # [prompts]."""


def overoptimised(earlier: Mapping[int, Judged], version: int, now: Judged) -> str | None:
    """Tell when the reward has risen and what judges it has fallen since the version that a judge liked best.

    The same prompts are compared, and both changes must be clear: 95 % for the rise, 99 % for the fall, since the
    judge's best version was chosen in hindsight.
    """
    for judge in now.keys() - {"reward"}:
        means = {one: np.nanmean(values[judge]) for one, values in earlier.items() if one < version}
        if not means:
            continue
        peak = max(means, key=lambda one: means[one])
        rise = _standard_errors(earlier[peak]["reward"], now["reward"])
        fall = _standard_errors(earlier[peak][judge], now[judge])
        if rise > _SURE and fall < -_VERY_SURE:
            return (
                f"the reward has risen since version {peak}, but {judge}, which training never sees, has fallen from "
                f"{means[peak]:.3f} to {np.nanmean(now[judge]):.3f}: the policy exploits the reward. Consider an "
                f"earlier version (brain export --version), evaluation.max_kl, or a larger objective.temperature"
            )
    return None


def _standard_errors(before: np.ndarray, after: np.ndarray) -> float:
    """Return by how many standard errors the mean has changed on the same prompts; 0 where they are too few."""
    change = (after - before)[np.isfinite(after - before)]
    if len(change) < _FEWEST_PROMPTS:
        return 0.0
    error = float(change.std(ddof=1)) / math.sqrt(len(change))
    mean = float(change.mean())
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
