"""BRAIn: the self-normalised KL from the posterior to the policy (arXiv 2402.02479, equations 5-14).

For one prompt with outputs y_1..y_n ~ q', all in log space and float32:

    a_i = log p(G=1|x,y_i) + log p(y_i) − log q'(y_i)     α = softmax(a), without gradient     (5, 6)
    s_i = log q_θ(y_i) − log q'(y_i)                      β = softmax(s)                       (10, 11)
    loss_x = Σ_i α_i (log α_i − log β_i)                                                       (13, 14)

Its gradient is −Σ_i (α_i − β_i) ∇ log q_θ(y_i) (12; Theorem 4.2): toward the posterior, with the policy's own
importance-weighted samples as the baseline.
"""

import torch

from common.config.recipe import ObjectiveSection
from learner.objectives.goodness import log_goodness
from learner.objectives.values import GroupValues, ObjectiveResult

MIN_OUTPUTS = 2
"""With one output α = β = 1: no gradient."""


def brain(values: GroupValues, settings: ObjectiveSection) -> ObjectiveResult:
    """The BRAIn loss of each prompt, with the quantities that the paper asks to watch.

    A slot that is not valid is −inf in both softmaxes, so that it is as if it had never been sampled. A
    prompt with fewer than two valid outputs is not trained.

    Args:
        values: [b, n] log-probabilities and rewards.
        settings: goodness model and temperature.

    Returns:
        Losses [b], all ≥ 0.

    Example:
        n = 2, r = (1, 0), q_θ = q' = p: α = (0.7311, 0.2689), β = (0.5, 0.5), so
        loss = 0.7311·log(0.7311/0.5) + 0.2689·log(0.2689/0.5) = 0.1109, and
        its gradient for log q_θ is β − α = (−0.2311, +0.2311).
    """
    trained = values.valid.sum(dim=-1) >= MIN_OUTPUTS  # [b]
    used = values.valid & trained[:, None]  # [b, n]
    proposal = values.proposal_logprobs.float()
    with torch.no_grad():
        posterior = log_goodness(values.rewards.float(), settings) + values.prior_logprobs.float() - proposal
        log_alpha = masked_log_softmax(posterior, used)
    log_beta = masked_log_softmax(values.policy_logprobs.float() - proposal, used)
    alpha = log_alpha.exp().masked_fill(~used, 0.0)
    # Elsewhere −inf − −inf, times α = 0, is NaN, and so would its gradient be.
    log_ratio = torch.where(used, log_alpha - log_beta, 0.0)
    losses = (alpha * log_ratio).sum(dim=-1)
    beta = log_beta.detach().exp().masked_fill(~used, 0.0)
    return ObjectiveResult(losses, trained, _metrics(values, alpha, beta, losses.detach(), used))


def masked_log_softmax(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the used slots of each row; −inf in the others.

    A row without any used slot would be NaN throughout, and its gradient too; it is taken over zeros instead,
    and its values mean nothing.

    Args:
        scores: read only where used.  # [b, n]
        used: [b, n] bool

    Returns:
        [b, n]
    """
    has_any = used.any(dim=-1, keepdim=True)
    fill = torch.where(has_any, -torch.inf, 0.0)  # [b, 1]
    return torch.where(used, scores, fill).log_softmax(dim=-1)


@torch.no_grad()
def _metrics(
    values: GroupValues, alpha: torch.Tensor, beta: torch.Tensor, losses: torch.Tensor, used: torch.Tensor
) -> dict[str, float]:
    trained = used.any(dim=-1)
    if not trained.any():
        return {}
    rewards = torch.where(used, values.rewards.float(), 0.0)
    drift = torch.where(used, values.policy_logprobs.float() - values.prior_logprobs.float(), 0.0)
    by_prompt = {
        "ess_alpha": 1 / alpha.square().sum(dim=-1),
        "ess_beta": 1 / beta.square().sum(dim=-1),
        "alpha_max": alpha.amax(dim=-1),
        "kl_alpha_beta": losses,
        "reward_mean": rewards.sum(dim=-1) / used.sum(dim=-1),
        "reward_posterior": (alpha * rewards).sum(dim=-1),
        # KL(q_θ‖p), the outputs of q' weighted to stand for q_θ's.
        "kl_policy_prior": (beta * drift).sum(dim=-1),
    }
    return {name: float(column[trained].mean()) for name, column in by_prompt.items()}
