"""RSO: statistical rejection sampling, then pairs of the accepted outputs (Liu et al. 2023, arXiv 2309.06657)."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from brain_align.common.config.objective_sections import RsoSection
from brain_align.learner.objectives.dpo import hinge
from brain_align.learner.objectives.pairs import in_a_pair, margins, mean_over_pairs, winners
from brain_align.learner.objectives.values import Definition, GroupValues


def rso_used(values: GroupValues, settings: RsoSection) -> torch.Tensor:
    """Use the accepted outputs that are in a pair; all are accepted if no more than wanted are valid.  # [b, n]."""
    accepted = torch.zeros_like(values.valid)
    wanted = [settings.accepted_of(count) for count in values.complete.sum(dim=-1).tolist()]
    for row in range(len(accepted)):
        places = values.valid[row].nonzero().flatten()
        rewards = (values.rewards[row, places] / settings.temperature).numpy().astype(np.float64)
        kept = rejection_sample(rewards, wanted[row], settings.beta, int(values.seeds[row]))
        accepted[row, places[kept]] = True
    return in_a_pair(winners(replace(values, complete=accepted), settings.pairs))


def rejection_sample(rewards: np.ndarray, wanted: int, beta: float, seed: int) -> list[int]:
    """Accept outputs of the prior so that those accepted are distributed like the posterior p·exp(r/β)/Z.

    Each pass goes through the remaining candidates and accepts i if u < exp((r_i − r_max)/β), with u uniform on [0, 1)
    and r_max over the candidates at the start of the pass. Passes end when enough are accepted, or none is left.
    A large β accepts nearly at random.

    Returns:
        Indices in the order of acceptance.  # rewards: [n]

    Example:
        r = (0, 10), wanted = 1, beta = 0.5: a pass accepts output 0 with probability e^−20, output 1 with 1.
    """
    generator = np.random.RandomState(seed % 2**32)  # a frozen algorithm
    left = list(range(len(rewards)))
    accepted: list[int] = []
    while left and len(accepted) < wanted:
        highest = max(rewards[index] for index in left)
        for index in list(left):
            if generator.random_sample() < np.exp((rewards[index] - highest) / beta):
                accepted.append(index)
                left.remove(index)
                if len(accepted) == wanted:
                    break
    return accepted


def rso(values: GroupValues, settings: RsoSection) -> torch.Tensor:
    """Return sigmoid-norm −log σ(γΔ) or hinge-norm max(0, 1 − γΔ), over pairs of accepted (`valid`) outputs.

    Example:
        γ = 0.05, Δ = 4: sigmoid-norm −log σ(0.2) = 0.5981, hinge-norm 1 − 0.2 = 0.8.
    """
    pairs = winners(values.valid_alone(), settings.pairs)
    if settings.loss == "hinge-norm":
        return hinge(values, pairs, settings.gamma)
    return mean_over_pairs(-logsigmoid(settings.gamma * margins(values.log_ratios)), pairs)


OBJECTIVES = {"rso": Definition(rso, rso_used)}
