"""An objective with its settings, as the learner's step calls it."""

from dataclasses import replace

import torch

from brain_align.common.config.objective_sections import ObjectiveBase, PolicyGradientSection
from brain_align.learner.objectives.masked import masked_log_softmax, masked_mean
from brain_align.learner.objectives.pairs import margins, mean_over_pairs, win_rates, winners
from brain_align.learner.objectives.policy_gradients import RunningMean, log_importance
from brain_align.learner.objectives.values import Definition, GroupValues, ObjectiveResult


class Objective:
    """A definition with its settings, and its state."""

    def __init__(self, definition: Definition, settings: ObjectiveBase) -> None:
        self.settings = settings
        self.normaliser = RunningMean()  # of P/q', for dpg and gdc++; a checkpoint must hold it
        self._definition = definition

    def used(self, values: GroupValues) -> torch.Tensor:
        """Return the outputs that a step computes and trains on; a prompt without any is not trained.

        The policy's log-probabilities are not read.  # [b, n] bool.
        """
        used = self._definition.used(self._transformed(values.without_gaps()), self.settings)
        if self.settings.needs_gold:
            used = used & values.gold_logprobs.isfinite()[:, None]
        return used

    def observe(self, values: GroupValues) -> None:
        """Update the normaliser with a step's values, before its losses; the policy's values are not read."""
        if isinstance(self.settings, PolicyGradientSection):
            clean = self._transformed(values.without_gaps())
            self.normaliser = self.normaliser.including(log_importance(clean, self.settings)[clean.valid])

    def losses(self, values: GroupValues) -> torch.Tensor:
        """Return one loss per prompt, 0 where it has no valid output: `valid` marks those that `used` chose.  # [b]."""
        clean = replace(values.without_gaps(), log_normaliser=self.normaliser.log_mean)
        losses = self._definition.losses(self._transformed(clean), self.settings)
        return torch.where(values.valid.any(dim=-1), losses, 0.0)

    def __call__(self, values: GroupValues) -> ObjectiveResult:
        """Return `losses` with their metrics."""
        trained = values.valid.any(dim=-1)
        return ObjectiveResult(self.losses(values), trained, self._metrics(values.without_gaps(), trained))

    def _transformed(self, values: GroupValues) -> GroupValues:
        if self.settings.reward_transform == "none":
            return values
        return replace(values, rewards=win_rates(values.rewards, values.complete))

    @torch.no_grad()
    def _metrics(self, values: GroupValues, trained: torch.Tensor) -> dict[str, float]:
        by_prompt = diagnostics(values)
        if self._definition.metrics is not None:
            by_prompt |= self._definition.metrics(self._transformed(values), self.settings, values.rewards)
        known = {name: column[trained & ~column.isnan()] for name, column in by_prompt.items()}
        return {name: float(column.mean()) for name, column in known.items() if len(column)}


def diagnostics(values: GroupValues) -> dict[str, torch.Tensor]:
    """Return the metrics of every objective: how the policy's likelihoods move.  # [b] each.

    * `ess_beta`: effective number of outputs under the policy's weights β ∝ q_θ/q'.
    * `kl_policy_prior`: KL(q_θ‖p), estimated from outputs of q', weighted by β.
    * `ranking_accuracy`: share of pairs with unequal rewards in which q_θ gives the better output the higher
      likelihood (arXiv 2405.19534); NaN where all rewards are equal.
    * `best_drift`, `worst_drift`: log q_θ − log p of the outputs with the highest and lowest reward (arXiv 2406.07327).
    """
    log_beta = masked_log_softmax(values.policy_logprobs - values.proposal_logprobs, values.valid)
    beta = torch.where(values.valid, log_beta.exp(), 0.0)
    pairs = winners(values.valid_alone(), "all")
    ordered = mean_over_pairs((margins(values.policy_logprobs) > 0).float(), pairs)
    extremes = winners(values.valid_alone(), "best-worst")  # at most one pair
    drift = values.log_ratios
    return {
        "ess_beta": 1 / beta.square().sum(dim=-1),
        "kl_policy_prior": (beta * drift).sum(dim=-1),
        "ranking_accuracy": torch.where(pairs.any(dim=(1, 2)), ordered, torch.nan),
        "best_drift": _of_pair(extremes.any(dim=2), drift),
        "worst_drift": _of_pair(extremes.any(dim=1), drift),
    }


def _of_pair(member: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the value of the one marked output; NaN where none is marked.  # [b, n], [b, n] -> [b]."""
    return torch.where(member.any(dim=-1), masked_mean(values, member), torch.nan)
