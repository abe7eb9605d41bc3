"""BRAIn: the self-normalised KL from the posterior to the policy (arXiv 2402.02479, equations 5-14).

For one prompt with outputs y_1..y_n ~ q', all in log space and float32:

    a_i = log p(G=1|x,y_i) + log p(y_i) − log q'(y_i)     α = softmax(a), without gradient     (5, 6)
    s_i = log q_θ(y_i) − log q'(y_i)                      β = softmax(s)                       (10, 11)
    loss_x = Σ_i α_i (log α_i − log β_i)                                                       (13, 14)

Its gradient is −Σ_i (α_i − β_i) ∇ log q_θ(y_i) (12; Theorem 4.2): toward the posterior, with the policy's own
importance-weighted samples as the baseline. With one output α = β = 1: no gradient.
"""

import math
from dataclasses import replace

import torch
from torch.nn.functional import logsigmoid

from brain_align.common.config.objective_sections import GoodnessSection
from brain_align.learner.objectives.masked import at_least, masked_log_softmax
from brain_align.learner.objectives.values import Definition, GroupValues

_GAMMAS = (1e-5, 1e5)  # between which `half_ess_temperature` looks
_HALVINGS = 24  # of a range of 23 nats: to 1e-6


def two_or_more(values: GroupValues, settings: GoodnessSection) -> torch.Tensor:
    """Use all outputs of prompts that have at least two.  # [b, n]."""
    return at_least(2, values.valid)


def brain(values: GroupValues, settings: GoodnessSection) -> torch.Tensor:
    """Return the BRAIn loss of each prompt, ≥ 0.

    A slot that is not valid is −inf in both softmaxes, as if it had never been sampled.

    Example:
        n = 2, r = (1, 0), q_θ = q' = p: α = (0.7311, 0.2689), β = (0.5, 0.5), so
        loss = 0.7311·log(0.7311/0.5) + 0.2689·log(0.2689/0.5) = 0.1109, and
        its gradient for log q_θ is β − α = (−0.2311, +0.2311).
    """
    return self_normalised_kl(posterior_log_weights(values, settings), _log_beta(values), values.valid)


def brain_no_baseline(values: GroupValues, settings: GoodnessSection) -> torch.Tensor:
    """−Σ_i α_i log q_θ(y_i): BRAIn with β = 0 (paper, §9.3).

    Example:
        n = 2, r = (1, 0), log q_θ = log q' = log p = (−3, −3): α = (0.7311, 0.2689), loss = 3, and its
        gradient for log q_θ is −α.
    """
    log_alpha = posterior_log_weights(values, settings)
    return -torch.where(values.valid, log_alpha.exp() * values.policy_logprobs, 0.0).sum(dim=-1)


def dpo_sft_iw_n(values: GroupValues, settings: GoodnessSection) -> torch.Tensor:
    """KL(softmax(r) ‖ softmax(log q_θ − log p)): BRAIn with q' taken to be p, whatever was recorded (paper, §9.2).

    Example:
        n = 2, r = (1, 0), log q_θ − log p = (0.5, 0): softmax(r) = (0.7311, 0.2689) and softmax(s) =
        (0.6225, 0.3775), so loss = 0.0263.
    """
    return brain(_as_of_prior(values), settings)


def log_goodness(rewards: torch.Tensor, settings: GoodnessSection) -> torch.Tensor:
    """Return log p(G=1|x,y) from the reward r(x, y), up to a constant per prompt.  # [b, n] -> [b, n].

    γ (`objective.temperature`, 1 in the paper) divides the reward in both models: r/γ takes the place of r.
    With `bradley-terry` the posterior is then p·exp(r/γ)/Z, the optimum of RLHF at KL coefficient γ (eq. 23).

    * `bradley-terry`: r/γ; only ratios of goodness are known, and only they are needed (eq. 19).
    * `logistic`: log σ(r/γ), for an absolute reward model (eq. 15).

    Example:
        r = 2, γ = 1: bradley-terry gives 2, logistic log σ(2) = −0.1269.
    """
    scaled = rewards / settings.temperature
    return scaled if settings.goodness == "bradley-terry" else logsigmoid(scaled)


def posterior_log_weights(values: GroupValues, settings: GoodnessSection) -> torch.Tensor:
    """Log α, without gradient; −inf where not valid.  # [b, n]."""
    with torch.no_grad():
        goodness = log_goodness(values.rewards, settings)
        # Sums of hundreds of nats are subtracted first: with q' = p they cancel without a rounding error.
        return masked_log_softmax(goodness + (values.prior_logprobs - values.proposal_logprobs), values.valid)


def self_normalised_kl(log_alpha: torch.Tensor, log_beta: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Σ_i α_i (log α_i − log β_i) over the valid slots.  # [b, n] -> [b]."""
    alpha = torch.where(valid, log_alpha.exp(), 0.0)
    # Elsewhere −inf − −inf, times α = 0, is NaN, and so would its gradient be.
    return (alpha * torch.where(valid, log_alpha - log_beta, 0.0)).sum(dim=-1)


def posterior_metrics(values: GroupValues, settings: GoodnessSection, rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the paper recommends watching: the spread of the posterior's weights, and the policy's distance.

    The weights are the loss's own; `reward_posterior` is the mean of the rewards under α, as stored but for a penalty
    of cut outputs, and `gamma_half_ess` is one number of the whole batch.  # [b] each.
    """
    log_alpha = posterior_log_weights(values, settings)
    alpha = torch.where(values.valid, log_alpha.exp(), 0.0)
    return {
        "ess_alpha": 1 / alpha.square().sum(dim=-1),
        "alpha_max": alpha.amax(dim=-1),
        "kl_alpha_beta": self_normalised_kl(log_alpha, _log_beta(values), values.valid),
        "reward_posterior": (alpha * rewards).sum(dim=-1),
        "gamma_half_ess": torch.full(alpha.shape[:1], half_ess_temperature(values, settings)),
    }


def half_ess_temperature(values: GroupValues, settings: GoodnessSection) -> float:
    """Return the γ at which half of a prompt's outputs share α's weight: the mean over prompts of ESS/n is 1/2.

    For rewards that are normally distributed with standard deviation σ, and q' = p, it is near 1.2 σ. NaN where there
    is none: all rewards are (nearly) equal, or p/q' alone spreads the weights further.
    """
    rows = values.valid.sum(dim=-1) >= 2
    counts = values.valid.sum(dim=-1)[rows]

    def share(log_temperature: float) -> float:
        at = settings.model_copy(update={"temperature": math.exp(log_temperature)})
        alpha = torch.where(values.valid, posterior_log_weights(values, at).exp(), 0.0)[rows]
        return float((1 / alpha.square().sum(dim=-1) / counts).mean())

    low, high = math.log(_GAMMAS[0]), math.log(_GAMMAS[1])
    if not rows.any() or not share(low) < 0.5 < share(high):
        return math.nan
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < 0.5 else (low, middle)
    return math.exp((low + high) / 2)


def metrics_as_of_prior(
    values: GroupValues, settings: GoodnessSection, rewards: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return `posterior_metrics` for `dpo_sft_iw_n`."""
    return posterior_metrics(_as_of_prior(values), settings, rewards)


def _as_of_prior(values: GroupValues) -> GroupValues:
    return replace(values, proposal_logprobs=values.prior_logprobs)


def _log_beta(values: GroupValues) -> torch.Tensor:
    return masked_log_softmax(values.policy_logprobs - values.proposal_logprobs, values.valid)


OBJECTIVES = {
    "brain": Definition(brain, two_or_more, posterior_metrics),
    "brain-no-baseline": Definition(brain_no_baseline, two_or_more, posterior_metrics),
    "brain-fixed-proposal": Definition(brain, two_or_more, posterior_metrics),
    "spo": Definition(brain, two_or_more, posterior_metrics),
    "dpo-sft+iw+n": Definition(dpo_sft_iw_n, two_or_more, metrics_as_of_prior),
}
