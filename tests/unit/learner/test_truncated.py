"""Outputs that were cut at max_tokens: kept, masked or penalised (docs/objectives.md)."""

import math

import pytest
import torch

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.common.config.recipe import Recipe
from brain_align.learner.objectives.brain import half_ess_temperature, posterior_log_weights
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.steps.batches import group_batch
from brain_align.learner.steps.metrics import masked_metrics
from brain_align.learner.steps.sample_metrics import sample_metrics
from brain_align.learner.trainer import Trainer
from tests.unit import tiny_models
from tests.unit.factories import recipe_settings
from tests.unit.learner.plain_engine import PlainEngine
from tests.unit.learner.train_batches import PER_OUTPUT, random_rows, train_batch, train_row

MASK = {"truncated": "mask"}
PENALTY = {"truncated": "penalty", "truncated_penalty": -1.5}


def cut_rows(n=6):
    """Groups with one, two and n - 1 cut outputs; the last has a single one that finished."""
    rows = random_rows(3, n=n)
    for row, cut in zip(rows, ({1}, {0, 3}, set(range(1, n))), strict=True):
        row["finished"] = [place not in cut for place in range(n)]
    return rows


def without_cut(row):
    kept = [place for place, finished in enumerate(row["finished"]) if finished]
    return {**row, **{name: [row[name][place] for place in kept] for name in PER_OUTPUT}}


def losses(rows, name="brain", **truncated):
    """The loss of each group under a made-up policy, and the gradient per output."""
    section = Recipe.model_validate(
        recipe_settings(objective={"name": name, "reward": "reward", **truncated})
    ).objective
    objective = make_objective(section)
    treated = group_batch(train_batch(*rows)).treated(section)
    groups = treated.narrowed(objective.used(treated.stored_values()))
    policy = torch.where(groups.lengths > 0, groups.sampler_logprobs + groups.lengths * 0.1, torch.nan)
    leaf = torch.cat([policy, torch.full((len(rows), 1), -3.0)], dim=1).requires_grad_()
    values = groups.values(leaf)
    objective.observe(values)
    found = objective.losses(values)
    (gradient,) = torch.autograd.grad(found.sum(), leaf, allow_unused=True)
    return found.detach(), gradient.nan_to_num(0.0)[:, :-1], groups


@pytest.mark.parametrize("name", [name for name in OBJECTIVE_NAMES if name != "rso"])  # it draws by the place
def test_masked_outputs_are_as_if_they_had_never_been_sampled(name):
    rows = cut_rows()
    masked, gradient, groups = losses(rows, name, **MASK)
    alone, expected, _ = losses([without_cut(row) for row in rows[:2]], name)
    torch.testing.assert_close(masked[:2], alone)
    for index, row in enumerate(rows[:2]):
        finished = torch.tensor(row["finished"])
        torch.testing.assert_close(gradient[index][finished], expected[index][: int(finished.sum())])
        assert not gradient[index][~finished].any()
    assert masked[2] == 0 and not groups.trained[2]  # one output is left: it trains nothing


def test_the_weights_are_renormalised_over_the_outputs_that_finished():
    row = train_row("a", outputs=[[1], [2], [3]], rewards=[1.0, 0.0, 9.0], finished=[True, True, False])
    section = BrainSection(truncated="mask")
    values = group_batch(train_batch(row)).treated(section).stored_values().without_gaps()
    alpha = posterior_log_weights(values, section).exp()[0]
    assert alpha.tolist() == pytest.approx([0.7311, 0.2689, 0.0], abs=1e-4)


def test_a_penalty_is_added_before_gamma():
    """Log-odds of α against an output that finished fall by the penalty over γ."""
    row = train_row("a", outputs=[[1], [2]], rewards=[1.0, 1.0], finished=[True, False])
    section = BrainSection(temperature=0.5, **PENALTY)
    values = group_batch(train_batch(row)).treated(section).stored_values()
    log_alpha = posterior_log_weights(values, section)[0]
    assert float(log_alpha[1] - log_alpha[0]) == pytest.approx(-1.5 / 0.5)


@pytest.mark.parametrize("name", ["brain", "dpo-sft", "rloo", "spo"])
def test_a_penalty_is_a_lower_reward(name):
    rows = cut_rows()
    lower = [
        {**row, "rewards": [r if f else r - 1.5 for r, f in zip(row["rewards"], row["finished"], strict=True)]}
        for row in rows
    ]
    torch.testing.assert_close(losses(rows, name, **PENALTY)[0], losses(lower, name)[0])
    assert not torch.equal(losses(rows, name, **PENALTY)[0], losses(rows, name)[0])


def test_what_is_masked_is_counted():
    stored = group_batch(train_batch(*cut_rows()))
    treated = stored.treated(BrainSection(truncated="mask"))
    assert masked_metrics(stored, treated) == {"masked_outputs": 8.0, "masked_groups": 1.0}
    assert stored.treated(BrainSection()) is stored


def test_a_step_trains_the_groups_that_are_left_and_reports_rewards_as_they_were_scored(tmp_path):
    directory = tmp_path / "policy"
    tiny_models.save(tiny_models.llama(), directory)
    policy = {"model": str(directory), "dtype": "float32", "adapter": {"r": 2, "alpha": 4}}

    def step(where, rows, **truncated):
        settings = recipe_settings(policy=policy, learner={"micro_batch_tokens": 200}, objective=truncated)
        trainer = Trainer(Recipe.model_validate(settings), tmp_path / where, PlainEngine)
        trainer.start()
        return trainer.train_step(1, train_batch(*rows)).metrics

    rows = cut_rows()
    masked, kept = step("masked", rows, **MASK), step("kept", rows)
    alone = step("alone", [without_cut(row) for row in rows[:2]])
    assert (masked["trained_prompts"], masked["skipped_prompts"], masked["masked_groups"]) == (2, 1, 1)
    assert masked["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert masked["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert masked["outputs_per_prompt"] == 4.5 and kept["outputs_per_prompt"] == 6
    assert masked["reward_mean"] == kept["reward_mean"] == step("lower", rows, **PENALTY)["reward_mean"]
    assert masked["ended"] == pytest.approx(100 * 10 / 18)
    assert "masked_outputs" not in kept


def test_figures_of_the_samples():
    row = train_row(
        "a",
        outputs=[[1], [2] * 3, [3] * 5, [4] * 7],
        rewards=[0.0, 2.0, 4.0, 6.0],
        proposal_logprobs=[-2.0, -6.0, -10.0, -14.0],
        finished=[True, True, True, False],
    )
    other = train_row("b", outputs=[[1], [1]], rewards=[100.0, 100.0], proposal_logprobs=[-2.0, -2.0])
    metrics = sample_metrics(group_batch(train_batch(row, other)))
    assert metrics == pytest.approx(
        {
            "ended": 100 * 5 / 6,
            "output_tokens": 3.0,
            "entropy": 2.0,
            "reward_sd": math.sqrt(20 / 4),  # 3 + 1 degrees of freedom
            "reward_length_correlation": 1.0,
            "reward_per_token": 1.0,
        }
    )
    unknown = train_row("c", outputs=[[1], [2]], rewards=[None, 1.0])
    assert sample_metrics(group_batch(train_batch(unknown))).keys() == {"ended", "output_tokens", "entropy"}


def test_the_suggested_gamma_shares_the_weight_among_half_of_the_outputs():
    rows = random_rows(1, groups=8, n=16)
    rows = [{**row, "prior_logprobs": row["proposal_logprobs"]} for row in rows]
    values = group_batch(train_batch(*rows)).stored_values()
    gamma = half_ess_temperature(values, BrainSection(temperature=123.0))
    alpha = posterior_log_weights(values, BrainSection(temperature=gamma)).exp()
    assert float((1 / alpha.square().sum(dim=-1)).mean()) == pytest.approx(8, abs=1e-3)
    assert 0.8 < gamma < 1.6  # rewards are normal with σ = 1: near 1.2
    equal = [{**row, "rewards": [1.0] * 16} for row in rows]
    assert math.isnan(half_ess_temperature(group_batch(train_batch(*equal)).stored_values(), BrainSection()))
