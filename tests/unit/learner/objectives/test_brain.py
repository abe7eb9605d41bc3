import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.learner.objectives.brain import log_goodness
from brain_align.learner.objectives.catalogue import OBJECTIVES
from brain_align.learner.objectives.pairs import win_rates
from tests.unit.learner.objectives.objective_values import (
    apply,
    changed,
    columns_of,
    gradient,
    random_values,
    settings_of,
    small_values,
)

SETTINGS = BrainSection()


def test_the_worked_number():
    values = small_values([-3.0, -3.0], [1.0, 0.0])
    alpha = math.e / (1 + math.e)
    expected = alpha * math.log(2 * alpha) + (1 - alpha) * math.log(2 * (1 - alpha))
    result = apply(values, SETTINGS)
    assert expected == pytest.approx(0.1109, abs=1e-4)
    assert result.loss.item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(
        gradient(values, SETTINGS), torch.tensor([[0.5 - alpha, alpha - 0.5]], dtype=torch.float64)
    )


def test_gradient_is_that_of_finite_differences():
    # The loss is computed in float32, so steps are large; central differences err in second order.
    values = random_values()
    step = 0.02
    for row in range(3):
        for column in range(5):
            moved = []
            for sign in (1, -1):
                policy = values.policy_logprobs.detach().clone()
                policy[row, column] += sign * step
                moved.append(apply(changed(values, policy_logprobs=policy), SETTINGS).loss.item())
            numeric = (moved[0] - moved[1]) / (2 * step)
            assert gradient(values, SETTINGS)[row, column].item() == pytest.approx(numeric, abs=2e-4)


def test_gradient_is_minus_alpha_minus_beta_times_the_scores():
    # Through a model: θ -> log q_θ is anything differentiable (eq. 12, Theorem 4.2).
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(7, generator=generator, requires_grad=True)
    features = torch.randn(3, 5, 7, generator=generator)
    values = random_values()

    def policy():
        return (features * weights).sum(dim=-1).tanh() - 20

    loss = apply(changed(values, policy_logprobs=policy()), SETTINGS).loss
    alpha = (values.rewards + values.prior_logprobs - values.proposal_logprobs).softmax(-1)
    beta = (policy().detach() - values.proposal_logprobs).softmax(-1)
    surrogate = -((alpha - beta) * policy()).sum(-1).mean()
    torch.testing.assert_close(torch.autograd.grad(loss, weights), torch.autograd.grad(surrogate, weights))


def test_dpo_is_the_case_of_two_outputs_an_argmax_and_the_prior_as_proposal():
    # Theorem 6.1. The softmax at temperature -> 0 is the argmax.
    values = random_values(b=6, n=2)
    values = changed(values, proposal_logprobs=values.prior_logprobs)
    log_ratio = values.policy_logprobs - values.prior_logprobs
    wins = values.rewards.argmax(-1, keepdim=True)
    margin = log_ratio.gather(1, wins) - log_ratio.gather(1, 1 - wins)
    dpo = -logsigmoid(1.0 * margin).mean()
    settings = BrainSection(temperature=1e-6)
    torch.testing.assert_close(apply(values, settings).loss, dpo)
    expected = torch.autograd.grad(dpo, values.policy_logprobs)[0]
    torch.testing.assert_close(gradient(values, settings), expected, atol=1e-6, rtol=1e-5)


@settings(deadline=None)  # a machine that is busy with other things is no error
@given(st.floats(-100, 100), st.integers(0, 1000))
def test_a_constant_added_to_the_rewards_of_a_prompt_changes_nothing(constant, seed):
    values = random_values(seed=seed)
    shift = torch.tensor([[constant], [0.0], [-constant]])
    shifted = changed(values, rewards=values.rewards + shift)
    torch.testing.assert_close(apply(shifted, SETTINGS).losses, apply(values, SETTINGS).losses, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(gradient(shifted, SETTINGS), gradient(values, SETTINGS), atol=1e-4, rtol=1e-3)


@settings(deadline=None)  # a machine that is busy with other things is no error
@given(st.permutations(range(5)), st.integers(0, 1000))
def test_the_order_of_outputs_changes_nothing(order, seed):
    values = random_values(seed=seed)
    columns = list(order)
    permuted = columns_of(values, columns)
    torch.testing.assert_close(apply(permuted, SETTINGS).losses, apply(values, SETTINGS).losses)
    torch.testing.assert_close(gradient(permuted, SETTINGS), gradient(values, SETTINGS)[:, columns])


@pytest.mark.parametrize("goodness", ["bradley-terry", "logistic"])
@pytest.mark.parametrize("junk", [0.0, math.nan, math.inf, -math.inf])
def test_slots_that_are_not_valid_are_as_if_they_were_absent(goodness, junk):
    settings = BrainSection(goodness=goodness)
    whole = random_values(n=5)
    valid = torch.tensor([[1, 0, 1, 1, 0]] * 3).bool()
    columns = [0, 2, 3]
    with_gaps = changed(
        whole,
        policy_logprobs=torch.where(valid, whole.policy_logprobs.detach(), 0.0).requires_grad_(),
        prior_logprobs=torch.where(valid, whole.prior_logprobs, junk),
        proposal_logprobs=torch.where(valid, whole.proposal_logprobs, junk),
        rewards=torch.where(valid, whole.rewards, junk),
        complete=valid,
        valid=valid,
    )
    without = columns_of(whole, columns)
    result, expected = apply(with_gaps, settings), apply(without, settings)
    torch.testing.assert_close(result.losses, expected.losses)
    assert result.metrics == pytest.approx(expected.metrics)
    grad = gradient(with_gaps, settings)
    torch.testing.assert_close(grad[:, columns], gradient(without, settings))
    assert grad[:, [1, 4]].abs().max() == 0


def test_prompts_with_fewer_than_two_valid_outputs_are_not_trained():
    values = random_values(b=4)
    valid = torch.tensor([[1] * 5, [0, 0, 1, 0, 0], [0] * 5, [1, 1, 0, 0, 0]]).bool()
    masked = changed(values, complete=valid, valid=valid, rewards=torch.where(valid, values.rewards, torch.nan))
    result = apply(masked, SETTINGS)
    kept = [0, 3]
    assert result.trained.tolist() == [True, False, False, True]
    assert result.losses[[1, 2]].tolist() == [0, 0]
    torch.testing.assert_close(result.loss, result.losses[kept].mean())
    assert gradient(masked, SETTINGS)[[1, 2]].abs().max() == 0
    assert gradient(masked, SETTINGS)[kept].isfinite().all()


def test_a_batch_without_a_trained_prompt_has_no_gradient_and_no_metrics():
    values = random_values()
    empty = changed(values, complete=torch.zeros(3, 5).bool(), valid=torch.zeros(3, 5).bool())
    result = apply(empty, SETTINGS)
    assert result.loss.item() == 0
    assert result.metrics == {}
    assert gradient(empty, SETTINGS).abs().max() == 0


def test_extreme_log_probabilities_stay_finite():
    values = random_values(n=3)
    policy = torch.tensor([[-2000.0, -1.0, -900.0]] * 3, requires_grad=True)
    extreme = changed(values, policy_logprobs=policy, rewards=torch.tensor([[500.0, 0.0, -500.0]] * 3))
    assert apply(extreme, SETTINGS).loss.isfinite()
    assert gradient(extreme, SETTINGS).isfinite().all()


def ranking_accuracy(values):
    shares = []
    for policy, rewards in zip(values.policy_logprobs.tolist(), values.rewards.tolist(), strict=True):
        pairs = [(i, j) for i in range(5) for j in range(5) if rewards[i] > rewards[j]]
        shares.append(sum(policy[i] > policy[j] for i, j in pairs) / len(pairs))
    return sum(shares) / len(shares)


def test_the_metrics():
    values = random_values()
    result = apply(values, SETTINGS)
    alpha = (values.rewards + values.prior_logprobs - values.proposal_logprobs).softmax(-1)
    beta = (values.policy_logprobs.detach() - values.proposal_logprobs).softmax(-1)
    drift = values.policy_logprobs.detach() - values.prior_logprobs
    best, worst = values.rewards.argmax(-1, keepdim=True), values.rewards.argmin(-1, keepdim=True)
    assert result.metrics == pytest.approx(
        {
            "ess_alpha": (1 / alpha.square().sum(-1)).mean().item(),
            "ess_beta": (1 / beta.square().sum(-1)).mean().item(),
            "alpha_max": alpha.amax(-1).mean().item(),
            "kl_alpha_beta": result.loss.item(),
            "reward_posterior": (alpha * values.rewards).sum(-1).mean().item(),
            "kl_policy_prior": (beta * drift).sum(-1).mean().item(),
            "ranking_accuracy": ranking_accuracy(values),
            "best_drift": drift.gather(1, best).mean().item(),
            "worst_drift": drift.gather(1, worst).mean().item(),
        },
        rel=1e-5,
    )


def test_the_metrics_of_the_ladder_s_last_step_are_those_of_its_own_loss():
    values = random_values()  # whose recorded q' is not p
    result = apply(values, settings_of("dpo-sft+iw+n"))
    alpha = values.rewards.softmax(-1)
    assert result.metrics["kl_alpha_beta"] == pytest.approx(result.loss.item(), rel=1e-6)
    assert result.metrics["ess_alpha"] == pytest.approx((1 / alpha.square().sum(-1)).mean().item(), rel=1e-5)
    assert result.metrics["reward_posterior"] == pytest.approx((alpha * values.rewards).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("section", [settings_of("spo"), BrainSection(reward_transform="win-rate", temperature=0.2)])
def test_the_posterior_s_reward_is_in_the_reward_s_own_unit_whatever_weights_it(section):
    values = random_values()
    values = changed(values, rewards=10 * values.rewards)
    goodness = win_rates(values.rewards, values.valid) / section.temperature
    alpha = (goodness + values.prior_logprobs - values.proposal_logprobs).softmax(-1)
    expected = (alpha * values.rewards).sum(-1).mean().item()
    assert apply(values, section).metrics["reward_posterior"] == pytest.approx(expected, abs=1e-4)


def test_goodness_models():
    rewards = torch.tensor([2.0, -1.0])
    torch.testing.assert_close(log_goodness(rewards, BrainSection(temperature=2)), rewards / 2)
    logistic = BrainSection(goodness="logistic", temperature=2)
    torch.testing.assert_close(log_goodness(rewards, logistic), torch.tensor([-0.3133, -0.9741]), atol=1e-4, rtol=0)


def test_the_recipe_can_name_exactly_the_objectives_there_are():
    assert set(OBJECTIVES) == set(OBJECTIVE_NAMES)
