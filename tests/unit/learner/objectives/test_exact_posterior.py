"""Algorithm 1 by sampling, in a world that can be enumerated: 64 sequences of three tokens out of four."""

import itertools

import torch

from brain_align.common.config.objective_sections import BrainSection
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.objectives.values import GroupValues

VOCABULARY, LENGTH = 4, 3
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # [64, 3]
FIRST_CONTEXT = [0, 1, 1 + VOCABULARY]  # of each position, in the table of contexts
CONTEXTS = 1 + VOCABULARY + VOCABULARY**2


def log_probs(table):
    """log q(y) of all sequences under a softmax for each context (prefix).  # [21, 4] -> [64]"""
    steps = table.log_softmax(-1)
    total = torch.zeros(len(SEQUENCES))
    prefix = torch.zeros(len(SEQUENCES), dtype=torch.int64)
    for position in range(LENGTH):
        total = total + steps[FIRST_CONTEXT[position] + prefix, SEQUENCES[:, position]]
        prefix = prefix * VOCABULARY + SEQUENCES[:, position]
    return total


def algorithm_1(prior_table, rewards, *, rounds, updates, groups, n, seed):
    generator = torch.Generator().manual_seed(seed)
    policy = prior_table.clone().requires_grad_()
    optimizer = torch.optim.Adam([policy], lr=0.03)
    prior = log_probs(prior_table)
    brain = make_objective(BrainSection())
    for _ in range(rounds):
        proposal = log_probs(policy).detach()  # line 21: q' <- q_θ
        drawn = torch.multinomial(proposal.exp().expand(updates * groups, -1), n, replacement=True, generator=generator)
        for y in drawn.split(groups):  # [groups, n]
            values = GroupValues(
                log_probs(policy)[y],
                prior[y],
                proposal[y],
                rewards[y],
                complete=torch.ones_like(y).bool(),
                valid=torch.ones_like(y).bool(),
                lengths=torch.full_like(y, LENGTH),
                gold_logprobs=torch.full((groups,), torch.nan),
                gold_lengths=torch.ones(groups, dtype=torch.int64),
                seeds=torch.zeros(groups, dtype=torch.int64),
                log_normaliser=0.0,
            )
            optimizer.zero_grad()
            brain(values).loss.backward()
            optimizer.step()
    return log_probs(policy).detach()


def test_algorithm_1_converges_to_the_exact_posterior():
    generator = torch.Generator().manual_seed(0)
    prior_table = torch.randn(CONTEXTS, VOCABULARY, generator=generator)
    rewards = 1.5 * torch.randn(len(SEQUENCES), generator=generator)
    prior = log_probs(prior_table)
    posterior = (prior + rewards).log_softmax(-1)
    assert abs(prior.exp().sum().item() - 1) < 1e-5

    def kl_to_posterior(log_q):
        return (posterior.exp() * (posterior - log_q)).sum().item()

    policy = algorithm_1(prior_table, rewards, rounds=20, updates=10, groups=16, n=8, seed=1)
    assert kl_to_posterior(prior) > 0.5
    assert kl_to_posterior(policy) < 0.01
