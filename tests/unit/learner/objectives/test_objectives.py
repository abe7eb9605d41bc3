"""What holds for every objective: gradients, absent slots, orders, shifts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_align.common.config.objective_sections import GoodnessSection, PairSection, PolicyGradientSection
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.objectives.pairs import win_rates
from tests.unit.learner.objectives.objective_values import (
    ALL_SETTINGS,
    apply,
    changed,
    columns_of,
    gradient,
    random_values,
    settings_of,
)


def is_absolute(section):
    """Whether a shift of the rewards means something."""
    return isinstance(section, GoodnessSection) and section.goodness == "logistic"


EACH_PROMPT_ALONE = [section for section in ALL_SETTINGS if not isinstance(section, PolicyGradientSection)]
"""All but those whose Z is not of one prompt."""

every_objective = pytest.mark.parametrize("section", ALL_SETTINGS, ids=lambda section: section.name)


@every_objective
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_gradients_are_those_of_finite_differences(section, data):
    n = data.draw(st.integers(2, 6))
    valid = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=3)))
    values = random_values(b=len(valid), n=n, seed=data.draw(st.integers(0, 99)), dtype=torch.float64)
    values = replace(values, complete=valid, valid=valid)
    result = apply(values, section)
    leaves = values.policy_logprobs, values.gold_logprobs
    grads = torch.autograd.grad(result.loss, leaves, allow_unused=True, materialize_grads=True)
    direction = [torch.randn(leaf.shape, dtype=torch.float64) for leaf in leaves]
    step = 1e-6
    ends = [
        apply(
            replace(
                values,
                policy_logprobs=leaves[0].detach() + sign * step * direction[0],
                gold_logprobs=leaves[1].detach() + sign * step * direction[1],
            ),
            section,
        ).loss.item()
        for sign in (1, -1)
    ]
    numeric = (ends[0] - ends[1]) / (2 * step)
    exact = sum((grad * along).sum().item() for grad, along in zip(grads, direction, strict=True))
    assert exact == pytest.approx(numeric, rel=1e-4, abs=1e-5)


@every_objective
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_slots_that_are_not_valid_are_as_if_they_were_absent(section, junk):
    whole = random_values(n=7)
    columns = [0, 2, 3, 6]
    valid = torch.zeros(3, 7).bool()
    valid[:, columns] = True
    gaps = changed(
        whole,
        policy_logprobs=torch.where(valid, whole.policy_logprobs.detach(), 0.0).requires_grad_(),
        prior_logprobs=torch.where(valid, whole.prior_logprobs, junk),
        proposal_logprobs=torch.where(valid, whole.proposal_logprobs, junk),
        rewards=torch.where(valid, whole.rewards, junk),
        lengths=torch.where(valid, whole.lengths, 0),
        complete=valid,
        valid=valid,
    )
    without = columns_of(whole, columns)
    result, expected = apply(gaps, section), apply(without, section)
    torch.testing.assert_close(result.losses, expected.losses)
    assert result.metrics == pytest.approx(expected.metrics)
    grad = gradient(gaps, section)
    torch.testing.assert_close(grad[:, columns], gradient(without, section))
    assert grad[~valid].abs().max() == 0


@every_objective
@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_not_used_has_no_gradient_and_what_is_used_stays_used(section, n, tied):
    values = random_values(b=40, n=n, seed=5)
    if tied:
        values = changed(values, rewards=values.rewards.round())
    objective = make_objective(section)
    used = objective.used(values)
    narrowed = replace(values, valid=used)
    assert torch.equal(objective.used(narrowed), used)
    objective.observe(narrowed)
    (grad,) = torch.autograd.grad(objective(narrowed).loss, values.policy_logprobs)
    assert grad[~used].abs().sum() == 0
    assert used.any()


@every_objective
@pytest.mark.parametrize("n", [8, 9])
def test_a_loss_is_the_same_whether_what_it_does_not_read_is_computed_or_not(section, n):
    values = random_values(b=40, n=n, seed=5)
    values = changed(values, rewards=values.rewards.round())
    unknown = torch.where(make_objective(section).used(values), values.policy_logprobs, torch.nan)
    losses = apply(changed(values, policy_logprobs=unknown), section).losses
    everything = apply(values, section).losses
    if section.name != "rso":  # what is accepted is drawn, and then known by what is used
        objective = make_objective(section)
        objective.observe(values)
        everything = torch.where(objective.used(values).any(dim=-1), objective.losses(values), 0.0)
    torch.testing.assert_close(losses, everything)


@every_objective
def test_prompts_with_nothing_to_compare_are_not_trained(section):
    values = random_values(b=3)
    valid = torch.tensor([[1] * 5, [0, 0, 1, 0, 0], [0] * 5]).bool()
    result = apply(changed(values, complete=valid, valid=valid), section)
    alone = isinstance(section, PolicyGradientSection)  # nothing is compared within a group
    assert result.trained.tolist() == [True, alone, False]
    assert result.losses[2] == 0
    assert gradient(changed(values, complete=valid, valid=valid), section).isfinite().all()


@every_objective
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_outputs_changes_nothing(section, seed):
    if isinstance(section, PairSection):
        section = section.model_copy(update={"pairs": "all"})
    if section.name == "rso":
        section = section.model_copy(update={"accepted": 9})  # all of them: which are accepted hangs on the order
    values = random_values(seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
    permuted = columns_of(values, order)
    torch.testing.assert_close(apply(permuted, section).losses, apply(values, section).losses)
    torch.testing.assert_close(gradient(permuted, section), gradient(values, section)[:, order])


@pytest.mark.parametrize("section", [s for s in EACH_PROMPT_ALONE if not is_absolute(s)], ids=lambda s: s.name)
def test_a_constant_added_to_the_rewards_of_a_prompt_changes_nothing(section):
    values = random_values()
    shifted = changed(values, rewards=values.rewards + torch.tensor([[3.0], [0.0], [-5.0]]))
    torch.testing.assert_close(apply(shifted, section).losses, apply(values, section).losses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient(shifted, section), gradient(values, section), atol=1e-4, rtol=1e-4)


@every_objective
def test_gamma_divides_the_rewards_and_nothing_else(section):
    # After the win-rate transform, whose rates are of the rewards themselves. Without exception: margins, β, τ and λ
    # are of log-probabilities, and rso's β divides r/γ once more.
    values, gamma = random_values(b=6, n=8, seed=3), 0.3
    rewards = values.rewards
    if section.reward_transform == "win-rate":
        rewards = win_rates(rewards, values.complete)
    divided = changed(values, rewards=rewards / gamma)
    by_gamma = section.model_copy(update={"temperature": gamma})
    by_hand = section.model_copy(update={"temperature": 1.0, "reward_transform": "none"})
    torch.testing.assert_close(apply(values, by_gamma).losses, apply(divided, by_hand).losses)
    torch.testing.assert_close(gradient(values, by_gamma), gradient(divided, by_hand))


@pytest.mark.parametrize("section", EACH_PROMPT_ALONE, ids=lambda section: section.name)
def test_a_prompt_s_loss_depends_on_that_prompt_alone(section):
    values = random_values(b=3)
    others = torch.tensor([[1.0], [0.0], [1.0]])
    moved = changed(values, rewards=values.rewards * (1 - others), policy_logprobs=values.policy_logprobs - others)
    assert apply(moved, section).losses[1] == apply(values, section).losses[1]


@every_objective
def test_extreme_log_probabilities_stay_finite(section):
    values = random_values(n=4)
    policy = torch.tensor([[-900.0, -1.0, -700.0, -3.0]] * 3)
    moved = changed(values, policy_logprobs=policy.requires_grad_(), prior_logprobs=policy.detach() - 1)
    moved = changed(moved, proposal_logprobs=policy.detach() + 1)
    assert apply(moved, section).loss.isfinite()
    assert gradient(moved, section).isfinite().all()


@pytest.mark.parametrize("name", ["dpo-sft", "ipo", "simpo", "cdpo", "slic", "dpo+nll", "plackett-luce", "rrhf", "pro"])
def test_ties_order_nothing(name):
    values = random_values(b=2, n=4)
    tied = changed(values, rewards=torch.ones(2, 4))
    result = apply(tied, settings_of(name))
    assert not result.trained.any()
    assert gradient(tied, settings_of(name)).abs().max() == 0
