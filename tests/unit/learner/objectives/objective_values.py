"""Random GroupValues, and an objective applied to them as the learner's step does it."""

from dataclasses import replace

import torch
from pydantic import TypeAdapter

from brain_align.common.config.objectives import OBJECTIVE_NAMES, ObjectiveSection
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.objectives.values import GroupValues, ObjectiveResult


def settings_of(name: str, **settings):
    """The section of an objective with its defaults."""
    return TypeAdapter(ObjectiveSection).validate_python({"name": name, **settings})


ALL_SETTINGS = [
    *map(settings_of, OBJECTIVE_NAMES),
    *(settings_of("dpo-sft", pairs=pairs) for pairs in ("all", "best-worst")),
    settings_of("rso", loss="hinge-norm", accepted=3),
    settings_of("pro", sft_on="gold"),
    settings_of("rrhf", sft_on="gold"),
    settings_of("slic", sft_on="best"),
    settings_of("dpo-sft+iw", reward_transform="win-rate"),
    settings_of("dpo+nll", sft_on="gold"),
    settings_of("brain", goodness="logistic", temperature=0.5),
    settings_of("rso", reward_transform="win-rate", temperature=0.2),
]
"""Every objective with its defaults, and those variants that take other paths."""


def random_values(b=3, n=5, *, seed=0, dtype=torch.float32) -> GroupValues:
    generator = torch.Generator().manual_seed(seed)

    def draw(scale, shift):
        return shift + scale * torch.randn(b, n, generator=generator, dtype=dtype)

    return GroupValues(
        policy_logprobs=draw(2, -20).requires_grad_(),
        prior_logprobs=draw(2, -20),
        proposal_logprobs=draw(2, -20),
        rewards=draw(1, 0),
        complete=torch.ones(b, n).bool(),
        valid=torch.ones(b, n).bool(),
        lengths=torch.randint(1, 9, (b, n), generator=generator),
        gold_logprobs=(torch.randn(b, generator=generator, dtype=dtype) - 20).requires_grad_(),
        gold_lengths=torch.randint(1, 9, (b,), generator=generator),
        seeds=torch.arange(b),
        log_normaliser=0.0,
    )


def small_values(policy, rewards, *, prior=None, proposal=None, lengths=None, gold=-1.0, gold_length=1) -> GroupValues:
    """One group, with a policy that is prior and proposal unless the test says else."""
    row = torch.tensor([policy], dtype=torch.float64)
    prior_row = row.clone() if prior is None else torch.tensor([prior], dtype=torch.float64)
    return GroupValues(
        policy_logprobs=row.requires_grad_(),
        prior_logprobs=prior_row,
        proposal_logprobs=prior_row if proposal is None else torch.tensor([proposal], dtype=torch.float64),
        rewards=torch.tensor([rewards], dtype=torch.float64),
        complete=torch.ones(row.shape).bool(),
        valid=torch.ones(row.shape).bool(),
        lengths=torch.tensor([lengths or [1] * len(policy)]),
        gold_logprobs=torch.tensor([gold], dtype=torch.float64).requires_grad_(),
        gold_lengths=torch.tensor([gold_length]),
        seeds=torch.zeros(1, dtype=torch.int64),
        log_normaliser=0.0,
    )


def changed(values: GroupValues, **changes) -> GroupValues:
    return replace(values, **changes)


def columns_of(values: GroupValues, columns: list[int]) -> GroupValues:
    """Only some slots, in the given order."""
    kept = {
        name: getattr(values, name).detach()[:, columns]
        for name in (
            "policy_logprobs",
            "prior_logprobs",
            "proposal_logprobs",
            "rewards",
            "complete",
            "valid",
            "lengths",
        )
    }
    kept["policy_logprobs"].requires_grad_()
    return replace(values, **kept)


def apply(values: GroupValues, settings) -> ObjectiveResult:
    """What a first step makes of these values."""
    objective = make_objective(settings)
    narrowed = replace(values, valid=values.valid & objective.used(values))
    objective.observe(narrowed)
    return objective(narrowed)


def gradient(values: GroupValues, settings) -> torch.Tensor:
    return torch.autograd.grad(apply(values, settings).loss, values.policy_logprobs)[0]
