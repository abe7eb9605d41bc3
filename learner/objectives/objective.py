"""An objective with its settings: what the learner's step asks."""

from dataclasses import dataclass, replace

import torch

from brain_align.common.config.objective_sections import ObjectiveBase, PolicyGradientSection
from brain_align.learner.objectives.diagnostics import diagnostics
from brain_align.learner.objectives.policy_gradients import RunningMean, log_importance
from brain_align.learner.objectives.spo import win_rates
from brain_align.learner.objectives.values import GroupValues, Losses, Metrics, ObjectiveResult, Used


@dataclass(frozen=True)
class Definition:
    """An entry of the catalogue.

    Attributes:
        losses: the loss itself.
        used: which outputs it reads.
        metrics: what it reports besides `diagnostics`.
    """

    losses: Losses
    used: Used
    metrics: Metrics | None = None


class Objective:
    """A definition with its settings, and what it has seen.

    Attributes:
        settings: its section of the recipe.
        normaliser: the running mean of P/q' of dpg and gdc++; a checkpoint must hold it.
    """

    def __init__(self, definition: Definition, settings: ObjectiveBase) -> None:
        self.settings = settings
        self.normaliser = RunningMean()
        self._definition = definition

    def used(self, values: GroupValues) -> torch.Tensor:
        """Which outputs a step computes and trains on; a prompt without any is not trained.

        Args:
            values: the policy's log-probabilities are not read.

        Returns:
            [b, n] bool
        """
        used = self._definition.used(self._transformed(values.without_gaps()), self.settings)
        if self.settings.needs_gold:
            used = used & values.gold_logprobs.isfinite()[:, None]
        return used

    def observe(self, values: GroupValues) -> None:
        """Take a step's values into account, before its losses are asked for; the policy's are not read."""
        if isinstance(self.settings, PolicyGradientSection):
            clean = self._transformed(values.without_gaps())
            self.normaliser = self.normaliser.including(log_importance(clean, self.settings)[clean.valid])

    def losses(self, values: GroupValues) -> torch.Tensor:
        """A loss a prompt, 0 where it has no valid output.

        Args:
            values: `valid` are the outputs that `used` chose.

        Returns:
            [b]
        """
        clean = replace(values.without_gaps(), log_normaliser=self.normaliser.log_mean)
        losses = self._definition.losses(self._transformed(clean), self.settings)
        return torch.where(values.valid.any(dim=-1), losses, 0.0)

    def __call__(self, values: GroupValues) -> ObjectiveResult:
        """`losses`, with what is reported of them."""
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
