"""The worked numbers of the docstrings, derived here with plain arithmetic, and the identities between objectives."""

import json
import math

import numpy as np
import pytest
import torch

from brain_align.common.config.objective_sections import BrainSection
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.objectives.pairs import win_rates
from brain_align.learner.objectives.policy_gradients import RunningMean
from brain_align.learner.objectives.rso import rejection_sample
from tests.unit.learner.objectives.objective_values import (
    apply,
    changed,
    gradient,
    random_values,
    settings_of,
    small_values,
)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def pair(delta, **changes):
    """One pair whose log-ratios to the prior differ by delta; the first output wins."""
    return small_values([delta - 4.0, -4.0], [1.0, 0.0], prior=[-4.0, -4.0], **changes)


@pytest.mark.parametrize(
    ("name", "values", "settings", "expected", "rounded"),
    [
        ("brain-no-baseline", small_values([-3.0, -3.0], [1.0, 0.0]), {}, 3.0, 3.0),
        ("dpo-sft", pair(3.0), {}, -log_sigmoid(0.3), 0.5544),
        (
            "dpo-sft+iw",
            pair(0.5),
            {},
            -math.exp(log_sigmoid(1)) * log_sigmoid(0.5) - math.exp(log_sigmoid(-1)) * log_sigmoid(-0.5),
            0.6085,
        ),
        ("cdpo", pair(3.0), {}, -0.9 * log_sigmoid(0.3) - 0.1 * log_sigmoid(-0.3), 0.5844),
        ("rdpo", pair(3.0), {}, (-0.9 * log_sigmoid(0.3) + 0.1 * log_sigmoid(-0.3)) / 0.8, 0.5169),
        ("ipo", pair(3.0), {}, 4.0, 4.0),
        ("simpo", small_values([-3.0, -4.0], [1.0, 0.0], lengths=[3, 2]), {}, -log_sigmoid(1.0), 0.3133),
        ("rso", pair(4.0), {}, -log_sigmoid(0.2), 0.5981),
        ("rso", pair(4.0), {"loss": "hinge-norm"}, 0.8, 0.8),
        ("slic", small_values([-10.0, -10.5], [1.0, 0.0], gold=-8.0), {}, 0.5 + 0.8, 1.3),
        (
            "dpo+nll",
            small_values([-10.0, -10.0], [1.0, 0.0], prior=[-13.0, -10.0]),
            {},
            -log_sigmoid(0.3) + 0.005 * 0.1 * 10,
            0.5594,
        ),
        (  # both winners, not the best of the group alone: on average 0.005 · 0.1 · (10 + 20) / 2
            "dpo+nll",
            small_values([-10.0, -10.0, -20.0, -20.0], [2.0, 1.0, 1.0, 0.0]),
            {},
            math.log(2) + 0.0075,
            0.7006,
        ),
        (
            "dpo+nll",
            small_values([-10.0, -10.0], [1.0, 0.0], gold=-8.0),
            {"sft_on": "gold"},
            math.log(2) + 0.004,
            0.6971,
        ),
        (  # the pair is (2, 3), whose margin is 3; the first best output, 0, is in no pair
            "slic",
            small_values([-8.0, -9.0, -10.0, -13.0], [3.0, 3.0, 2.0, 1.0]),
            {"sft_on": "best", "margin": 4.0},
            1 + 0.8,
            1.8,
        ),
        (
            "plackett-luce",
            small_values([-3.0, -4.0, -4.0], [2.0, 1.0, 0.0], prior=[-4.0] * 3),
            {"beta": 1.0},
            math.log(math.e + 2) - 1 + math.log(2),
            1.2446,
        ),
        ("rrhf", small_values([-4.0, -2.0], [1.0, 0.0], lengths=[2, 2]), {}, 1 + 4, 5.0),
        ("pro", small_values([-1.0, -2.0], [2.0, 0.0]), {"sft_weight": 0}, math.log(1 + math.exp(-2)), 0.1269),
        ("pro", small_values([-1.0, -2.0], [2.0, 0.0]), {}, math.log(1 + math.exp(-2)) + 0.05, 0.1769),
        (
            "pro",
            small_values([-1.0, -2.0], [2.0, 0.0], gold=-12.0, gold_length=4),
            {"sft_on": "gold"},
            math.log(1 + math.exp(-2)) + 0.05 * 3,
            0.2769,
        ),
        (  # in the order of rewards, l = (−1, −2, −3): 1/T = 1, 2 from the first, whose own is 2, and 1 from the second
            "pro",
            small_values([-4.0, -6.0, -3.0], [1.0, 0.0, 2.0], lengths=[2, 2, 3]),
            {"sft_weight": 0},
            math.log(math.exp(-2) + math.exp(-2) + math.exp(-6)) + 2 + math.log(math.exp(-2) + math.exp(-3)) + 2,
            1.0155,
        ),
        (  # γ = 2 halves the gaps; the best output's l is −1, and (n − 1)² is 4
            "pro",
            small_values([-4.0, -6.0, -3.0], [1.0, 0.0, 2.0], lengths=[2, 2, 3]),
            {"temperature": 2.0},
            math.log(math.exp(-1) + math.exp(-1) + math.exp(-3))
            + 1
            + math.log(math.exp(-1) + math.exp(-1.5))
            + 1
            + 0.05 * 4,
            1.4327,
        ),
    ],
)
def test_worked_numbers(name, values, settings, expected, rounded):
    assert apply(values, settings_of(name, **settings)).loss.item() == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(rounded, abs=6e-5)


def test_the_list_of_weights_against_its_number():
    values = small_values([-3.5, -4.0], [1.0, 0.0], prior=[-4.0, -4.0])
    alpha = [math.e / (1 + math.e), 1 / (1 + math.e)]
    beta = [math.exp(0.5) / (1 + math.exp(0.5)), 1 / (1 + math.exp(0.5))]
    expected = sum(a * math.log(a / b) for a, b in zip(alpha, beta, strict=True))
    assert expected == pytest.approx(0.0263, abs=6e-5)
    assert apply(values, settings_of("dpo-sft+iw+n")).loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "loss", "grad"), [("dpg", 1.3591, [-1.3591, -0.5]), ("gdc++", 0.5, [-0.8591, 0.0])])
def test_policy_gradients_at_a_known_z(name, loss, grad):
    values = small_values([-3.0, -3.0], [1.0, 0.0])
    objective = make_objective(settings_of(name))
    objective.normaliser = RunningMean(0.0, 1)
    result = objective(values)
    (actual,) = torch.autograd.grad(result.loss, values.policy_logprobs)
    assert result.loss.item() == pytest.approx(loss, abs=1e-4)
    assert actual.tolist()[0] == pytest.approx(grad, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "lengths", "grad"), [("rloo", [1, 1], [-0.5, 0.5]), ("gspo", [2, 4], [-0.17675, 0.08838])]
)
def test_advantages_of_outputs_of_the_policy_itself(name, lengths, grad):
    values = small_values([-3.0, -3.0], [1.0, 0.0], lengths=lengths)
    result = apply(values, settings_of(name))
    (actual,) = torch.autograd.grad(result.loss, values.policy_logprobs)
    assert result.loss.item() == pytest.approx(0.0, abs=1e-9)
    assert actual.tolist()[0] == pytest.approx(grad, abs=1e-5)
    assert result.metrics["clipped"] == 0


def test_rloo_weighs_the_kl_by_gamma_and_stops_at_the_clipping_range():
    # R = r/0.5 - log q'/p = (2 - 1, 0, 4 + 1), so A = (1 - 2.5, 0 - 3, 5 - 0.5); u = (1, e^-0.5, e^0.3)
    values = small_values([-3.0, -4.5, -2.7], [1.0, 0.0, 2.0], prior=[-4.0, -4.0, -2.0], proposal=[-3.0, -4.0, -3.0])
    result = apply(values, settings_of("rloo", temperature=0.5))
    assert result.loss.item() == pytest.approx(-(-1.5 + 0.8 * -3.0 + 1.2 * 4.5) / 3)
    (grad,) = torch.autograd.grad(result.loss, values.policy_logprobs)
    assert grad.tolist()[0] == pytest.approx([0.5, 0.0, 0.0])
    assert result.metrics["clipped"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["rloo", "gspo"])
def test_a_ratio_that_overflows_stops_counting_where_it_is_clipped(name):
    """A text that the policy has come to like by far more than float32 can count, and rightly so."""
    values = small_values([0.0, -900.0], [1000.0, 0.0], prior=[-900.0, -900.0])
    values = changed(values, policy_logprobs=values.policy_logprobs.detach().float().requires_grad_())
    result = apply(values, settings_of(name))
    assert torch.isfinite(result.losses).all()
    assert gradient(values, settings_of(name))[0, 0] == 0.0 != gradient(values, settings_of(name))[0, 1]


def test_gspo_trains_no_prompt_whose_rewards_are_equal():
    values = small_values([-3.0, -4.0], [1.0, 1.0])
    objective = make_objective(settings_of("gspo"))
    assert not objective.used(values).any()
    # ratios per token of e^(1/2) and 1 with advantages of ±0.7070: the better one has left the clipping range
    values = small_values([-3.0, -4.0], [1.0, 0.0], proposal=[-4.0, -4.0], lengths=[2, 2])
    result = apply(values, settings_of("gspo"))
    advantage = 0.5 / (0.5**0.5 + 1e-4)
    assert result.loss.item() == pytest.approx(-(1.0004 * advantage - advantage) / 2)
    assert result.metrics["clipped"] == 0.5


def test_policy_gradients_where_z_is_not_1():
    w = [math.e / 2, 0.5]  # Z = 2
    kl = [weight * math.log(weight) for weight in w]
    expected = {"dpg": (sum(kl) / 2, [-w[0] / 2, -w[1] / 2])}
    expected["gdc++"] = (sum(kl) - sum(w) + 2) / 2, [-(w[0] - 1) / 2, -(w[1] - 1) / 2]
    for name, (loss, grad) in expected.items():
        values = small_values([-3.0, -3.0], [1.0, 0.0])
        objective = make_objective(settings_of(name))
        objective.normaliser = RunningMean(math.log(2), 4)
        result = objective(values)
        (actual,) = torch.autograd.grad(result.loss, values.policy_logprobs)
        assert result.loss.item() == pytest.approx(loss, rel=1e-9)
        assert actual.tolist()[0] == pytest.approx(grad, rel=1e-9)


@pytest.mark.parametrize("transform", ["none", "win-rate"])
@pytest.mark.parametrize("name", ["dpg", "gdc++"])
def test_z_is_the_mean_of_what_the_loss_weights_by_over_all_that_was_observed(name, transform):
    section, seen = settings_of(name, reward_transform=transform, temperature=0.4), []
    objective = make_objective(section)
    for seed in (1, 2):
        values = random_values(seed=seed)
        there = torch.rand(values.valid.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
        values = changed(values, complete=there, valid=there)
        rewards = win_rates(values.rewards, there) if transform == "win-rate" else values.rewards
        logs = rewards / 0.4 + values.prior_logprobs - values.proposal_logprobs
        objective.observe(values)
        seen += logs[there].tolist()
        expected = torch.logsumexp(torch.tensor(seen, dtype=torch.float64), 0).item() - math.log(len(seen))
        assert objective.normaliser.count == len(seen)
        assert objective.normaliser.log_mean == pytest.approx(expected, rel=1e-5)


def test_z_is_the_mean_over_all_steps_and_survives_a_checkpoint():
    logs = torch.randn(3, 4, 5) * 3 + 700  # beyond what exp can hold
    mean = RunningMean()
    for step in logs:
        mean = RunningMean(**json.loads(json.dumps(vars(mean.including(step.flatten())))))
    expected = torch.logsumexp(logs.double().flatten(), 0).item() - math.log(60)
    assert mean.count == 60
    assert mean.log_mean == pytest.approx(expected, rel=1e-12)
    assert mean.including(torch.zeros(0)) == mean


def test_win_rates():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 9.0]])
    rates = win_rates(rewards, torch.tensor([[True, True, True, False]]))
    low = (math.exp(log_sigmoid(-1)) + 0.5) / 2
    assert rates[0, :3].tolist() == pytest.approx([0.7311, low, low], abs=1e-4)
    values = random_values()
    transformed = changed(values, rewards=win_rates(values.rewards, values.valid))
    torch.testing.assert_close(apply(values, settings_of("spo")).losses, apply(transformed, BrainSection()).losses)


def test_win_rates_are_those_against_the_whole_group_for_pairs_too():
    # Output 4 is in no pair, and yet it has been compared with.
    values = small_values(
        [-3.0, -4.0, -5.0, -5.0, -5.0], [1.0, 0.0, 2.0, 2.0, 0.5], prior=[-4.0, -4.0, -5.0, -5.0, -5.0]
    )
    rates = win_rates(values.rewards, values.complete)[0].tolist()
    wins = math.exp(log_sigmoid(rates[0] - rates[1]))
    expected = -wins * log_sigmoid(1) - (1 - wins) * log_sigmoid(-1)
    result = apply(values, settings_of("dpo-sft+iw", reward_transform="win-rate"))
    assert result.loss.item() == pytest.approx(expected, rel=1e-9)


# -- identities ------------------------------------------------------------------------------------------------------


def same(first, second, values):
    torch.testing.assert_close(apply(values, first).losses, apply(values, second).losses)
    torch.testing.assert_close(gradient(values, first), gradient(values, second))


def test_the_ladder_s_last_step_is_brain_with_the_prior_as_proposal():
    values = random_values(n=8)
    same(
        settings_of("dpo-sft+iw+n", temperature=0.7),
        BrainSection(temperature=0.7),
        changed(values, proposal_logprobs=values.prior_logprobs),
    )


def test_the_ladder_s_last_step_does_not_read_what_was_recorded_of_the_proposal():
    values, section = random_values(n=8), settings_of("dpo-sft+iw+n", temperature=0.7)
    of_prior = changed(values, proposal_logprobs=values.prior_logprobs)
    torch.testing.assert_close(apply(values, section).losses, apply(of_prior, section).losses)
    torch.testing.assert_close(gradient(values, section), gradient(of_prior, section))
    # A transcription of the formula, which knows of no proposal.
    log_alpha = (values.rewards / 0.7).log_softmax(-1)
    expected = (log_alpha.exp() * (log_alpha - values.log_ratios.detach().log_softmax(-1))).sum(-1)
    torch.testing.assert_close(apply(values, section).losses.detach(), expected)


def test_with_two_outputs_soft_pairs_have_the_gradient_of_brain():
    values = random_values(n=2)
    values = changed(values, proposal_logprobs=values.prior_logprobs)
    torch.testing.assert_close(gradient(values, settings_of("dpo-sft+iw")), gradient(values, BrainSection()))


def test_smoothing_by_nothing_is_dpo():
    for name in ("cdpo", "rdpo"):
        same(settings_of(name, epsilon=0.0), settings_of("dpo-sft"), random_values(n=8))


def test_robust_dpo_is_dpo_on_average_over_flipped_labels():
    values, epsilon = random_values(n=2), 0.2
    flipped = changed(values, rewards=values.rewards.flip(1))
    robust = settings_of("rdpo", epsilon=epsilon)
    average = (1 - epsilon) * apply(values, robust).losses + epsilon * apply(flipped, robust).losses
    torch.testing.assert_close(average, apply(values, settings_of("dpo-sft")).losses)


def test_a_ranking_of_two_is_a_pair():
    same(settings_of("plackett-luce"), settings_of("dpo-sft"), random_values(n=2))


def test_a_regulariser_of_no_weight_is_dpo():
    same(settings_of("dpo+nll", sft_weight=0), settings_of("dpo-sft"), random_values(n=6))


def test_rso_that_accepts_all_is_dpo_at_its_gamma():
    same(settings_of("rso", accepted=6, gamma=0.1), settings_of("dpo-sft"), random_values(n=6))


def test_brain_less_its_baseline_lacks_exactly_beta():
    values = random_values(n=6)
    beta = (values.policy_logprobs.detach() - values.proposal_logprobs).softmax(-1)
    without = gradient(values, BrainSection(name="brain-no-baseline"))
    torch.testing.assert_close(gradient(values, BrainSection()), without + beta / len(beta))


# -- pairs -----------------------------------------------------------------------------------------------------------


def used(values, section):
    return make_objective(section).used(values)[0].tolist()


def test_pairings():
    values = small_values([-1.0] * 7, [0.0, 1.0, 2.0, 2.0, 5.0, 4.0, 9.0])
    assert used(values, settings_of("dpo-sft")) == [True, True, False, False, True, True, False]
    assert used(values, settings_of("dpo-sft", pairs="best-worst")) == [True, False, False, False, False, False, True]
    assert all(used(values, settings_of("dpo-sft", pairs="all")))
    there = torch.tensor([[True, False, True, True, True, True, True]])
    gap = changed(values, complete=there, valid=there)
    assert used(gap, settings_of("dpo-sft")) == [True, False, True, True, True, True, True]


def test_32_outputs_are_16_consecutive_pairs():
    values = random_values(b=1, n=32)
    winners = values.rewards.view(16, 2).argmax(-1)
    ratio = (values.policy_logprobs - values.prior_logprobs).detach().view(16, 2)
    margins = ratio.gather(1, winners[:, None]) - ratio.gather(1, 1 - winners[:, None])
    expected = -torch.nn.functional.logsigmoid(0.1 * margins).mean()
    torch.testing.assert_close(apply(values, settings_of("dpo-sft")).loss.detach(), expected)


# -- rejection sampling ----------------------------------------------------------------------------------------------


def test_rejection_sampling_is_a_function_of_rewards_and_seed():
    rewards = np.linspace(-1, 1, 16)
    first = rejection_sample(rewards, 8, 0.5, seed=7)
    assert first == rejection_sample(rewards + 100, 8, 0.5, seed=7)
    assert first != rejection_sample(rewards, 8, 0.5, seed=8)
    assert len(set(first)) == 8
    assert sorted(rejection_sample(rewards, 99, 0.5, seed=7)) == list(range(16))


def accepted_by_the_paper(rewards, wanted, beta, uniforms):
    """Algorithm 1 of Liu et al. 2023, in plain arithmetic: passes over whoever has not been accepted yet."""
    chosen: list[int] = []
    while len(chosen) < min(wanted, len(rewards)):
        waiting = [place for place in range(len(rewards)) if place not in chosen]
        best = max(float(rewards[place]) for place in waiting)
        for place in waiting:
            threshold = math.exp((float(rewards[place]) - best) / beta)
            if len(chosen) < wanted and next(uniforms) < threshold:
                chosen.append(place)
    return chosen


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_rejection_sampling_accepts_what_the_paper_s_algorithm_does(beta):
    for seed in range(200):
        rewards = np.random.default_rng(seed).normal(size=16)
        stream = np.random.RandomState(seed)
        expected = accepted_by_the_paper(rewards, 8, beta, iter(stream.random_sample, None))
        assert rejection_sample(rewards, 8, beta, seed) == expected


def test_one_pass_accepts_each_by_the_exponential_of_what_it_lacks_to_the_best():
    rewards, beta, draws = np.array([0.0, 1.0]), 0.5, 4000
    first = [rejection_sample(rewards, 1, beta, seed)[0] for seed in range(draws)]
    assert first.count(0) / draws == pytest.approx(math.exp(-1 / beta), abs=0.02)


def test_rso_accepts_by_rewards_over_gamma():
    values = random_values(b=20, n=16)
    section = settings_of("rso", accepted=8, pairs="all", temperature=0.3, beta=2.0)
    rewards = values.rewards.double().numpy() / 0.3
    for row, used_ones in enumerate(make_objective(section).used(values)):
        assert used_ones.nonzero().flatten().tolist() == sorted(rejection_sample(rewards[row], 8, 2.0, row))


@pytest.mark.parametrize(("n", "accepted"), [(64, 8), (32, 4), (16, 2), (8, 2), (3, 2)])
def test_rso_accepts_an_eighth_as_in_the_paper(n, accepted):
    used = make_objective(settings_of("rso", pairs="all")).used(random_values(b=3, n=n))
    assert used.sum(dim=1).tolist() == [accepted] * 3


def test_rso_trains_on_what_was_accepted_for_the_group_s_seed():
    values = random_values(b=2, n=32)
    section = settings_of("rso", accepted=8)
    first = make_objective(section).used(values)
    assert first.sum(dim=1).tolist() == [8, 8]
    assert torch.equal(first, make_objective(section).used(values))
    assert not torch.equal(first, make_objective(section).used(changed(values, seeds=values.seeds + 9)))
    mean_accepted = values.rewards[first].mean()
    assert mean_accepted > values.rewards.mean() + 0.3
