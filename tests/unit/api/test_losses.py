import math

import pytest
import torch

from brain_align import brain_loss
from brain_align.learner.objectives.values import GroupValues
from tests.unit.learner.objectives.objective_values import apply, random_values, settings_of


def parts(values: GroupValues) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return values.policy_logprobs, values.prior_logprobs, values.proposal_logprobs, values.rewards


def gradient(loss, policy):
    return torch.autograd.grad(loss, policy)[0]


def test_a_hand_computed_example():
    """n = 2, r/γ = (1, 0), q_θ = q' = p: α = (0.7311, 0.2689), β = (0.5, 0.5); loss = Σ α log(α/β), gradient β − α."""
    policy = torch.tensor([[-3.0, -3.0]], requires_grad=True)
    flat = policy.detach()
    loss = brain_loss(policy, flat, flat, torch.tensor([[2.0, 0.0]]), temperature=2.0)
    assert loss.item() == pytest.approx(
        0.731059 * math.log(0.731059 / 0.5) + 0.268941 * math.log(0.268941 / 0.5), abs=1e-6
    )
    torch.testing.assert_close(gradient(loss, policy), torch.tensor([[-0.231059, 0.231059]]))


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_it_is_the_objective_that_runs_train_with(temperature):
    values = random_values(b=4, n=6)
    theirs = apply(values, settings_of("brain", temperature=temperature)).loss
    ours = brain_loss(*parts(values), temperature)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(
        gradient(ours, values.policy_logprobs), gradient(theirs, values.policy_logprobs), rtol=0, atol=0
    )


def test_its_gradient_is_the_papers():
    """Equation 12: −Σ (α − β) ∇ log q_θ, with α and β from the definition."""
    policy, prior, proposal, rewards = parts(random_values(b=2, n=5, dtype=torch.float64))
    alpha = (rewards / 0.7 + prior - proposal).softmax(-1)
    beta = (policy.detach() - proposal).softmax(-1)
    ours = gradient(brain_loss(policy, prior, proposal, rewards, 0.7), policy)
    torch.testing.assert_close(ours, -(alpha - beta) / 2)


def test_what_is_masked_or_unknown_is_as_if_it_had_never_been_sampled():
    policy, prior, proposal, rewards = parts(random_values(b=1, n=5))
    kept = [0, 2, 4]
    mask = torch.tensor([[True, True, True, False, True]])
    rewards[0, 1] = torch.nan
    prior[0, 3] = torch.nan
    loss = brain_loss(policy, prior, proposal, rewards, mask=mask)
    alone = brain_loss(policy[:, kept], prior[:, kept], proposal[:, kept], rewards[:, kept])
    torch.testing.assert_close(loss, alone)
    assert gradient(loss, policy)[0, [1, 3]].tolist() == [0, 0]


def test_prompts_with_fewer_than_two_outputs_do_not_dilute_the_mean():
    policy, prior, proposal, rewards = parts(random_values(b=3, n=4))
    mask = torch.ones(3, 4).bool()
    mask[1] = False
    mask[2, 1:] = False
    loss = brain_loss(policy, prior, proposal, rewards, mask=mask)
    torch.testing.assert_close(loss, brain_loss(policy[:1], prior[:1], proposal[:1], rewards[:1]))
    nothing = brain_loss(policy, prior, proposal, rewards, mask=mask & False)
    assert nothing.item() == 0 and not gradient(nothing, policy).any()


def test_a_policy_that_is_not_a_number_shows():
    policy, prior, proposal, rewards = parts(random_values())
    assert brain_loss(policy * torch.nan, prior, proposal, rewards).isnan()


def test_16_bits_are_computed_in_32():
    policy, prior, proposal, rewards = (tensor.detach().bfloat16() for tensor in parts(random_values()))
    loss = brain_loss(policy.requires_grad_(), prior, proposal, rewards)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, brain_loss(policy.float(), prior.float(), proposal.float(), rewards.float()))
    assert gradient(loss, policy).any()


def test_only_the_policy_gets_a_gradient():
    tensors = parts(random_values())
    for tensor in tensors:
        tensor.requires_grad_()
    brain_loss(*tensors).backward()
    assert [tensor.grad is not None for tensor in tensors] == [True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": torch.zeros(2, 3)}, r"one shape \[b, n\], and have \(1, 3\), .*\(2, 3\)"),
        ({"mask": torch.ones(3).bool()}, r"one shape \[b, n\]"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.nan}, "temperature must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(changes, sentence):
    flat = torch.zeros(1, 3)
    given = {"policy_logps": flat, "prior_logps": flat, "proposal_logps": flat, "rewards": flat, **changes}
    with pytest.raises(ValueError, match=sentence):
        brain_loss(**given)
