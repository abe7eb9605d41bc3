import pytest
import torch
from torch import nn

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.config.training import LearnerSection
from brain_align.common.nn.prefix.packing import TokenBudget
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.steps.gradients import accumulate_gradient
from tests.unit.learner.objectives.objective_values import ALL_SETTINGS
from tests.unit.learner.plain_engine import PlainEngine
from tests.unit.learner.train_batches import gappy_batch, random_rows, train_batch, train_row, trained_batch
from tests.unit.tiny_models import VOCABULARY

BRAIN = BrainSection()


class BigramPolicy(nn.Module):
    """log q(y_t|y_t-1) from a table: any differentiable policy will do."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64))

    def forward(self, requests):
        steps = self.table.log_softmax(-1)
        return torch.stack([_path(steps, prompt, output) for prompt, outputs in requests for output in outputs]).float()


def _path(steps, prompt, output):
    row = torch.cat([prompt[-1:], output])
    return steps[row[:-1], row[1:]].sum()


def gradient(record_batch, max_tokens, settings=BRAIN):
    engine = PlainEngine(BigramPolicy(), LearnerSection())
    batch, loss = trained_batch(record_batch, settings), objective(record_batch, settings)
    result = accumulate_gradient(engine, batch, loss, TokenBudget(max_tokens, packed=True))
    return engine.module.table.grad, result, engine


def objective(record_batch, settings):
    loss = make_objective(settings)
    loss.observe(trained_batch(record_batch, settings).stored_values())
    return loss


def reference(record_batch, settings):
    """The loss in one piece, by autograd through everything."""
    batch, policy = trained_batch(record_batch, settings), BigramPolicy()
    logprobs = torch.zeros(batch.computed.shape)
    for row, (prompt, outputs) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        logprobs[row, : len(outputs)] = policy([(prompt, outputs)])
        logprobs[row, -1] = policy([(prompt, [batch.golds[row]])])
    result = objective(record_batch, settings)(batch.values(logprobs))
    result.loss.backward()
    return policy.table.grad, result.loss.item()


@pytest.mark.parametrize("max_tokens", [10_000, 30, 1])
@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda settings: settings.name)
def test_any_partition_has_the_gradient_of_the_whole(max_tokens, settings):
    expected, expected_loss = reference(gappy_batch(0), settings)
    actual, result, _ = gradient(gappy_batch(0), max_tokens, settings)
    assert result.objective.loss.item() == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_what_fits_into_one_pass_takes_one():
    *_, engine = gradient(train_batch(*random_rows(0)), max_tokens=10_000)
    assert engine.forward_passes == 1
    assert engine.complete


def test_only_a_group_that_is_split_is_computed_twice():
    same = {"prompt": [1] * 4, "outputs": [[2] * 6, [3] * 6]}
    large = {"prompt": [1] * 4, "outputs": [[index] * 6 for index in range(6)]}
    *_, engine = gradient(train_batch(train_row("a", **same), train_row("b", **large)), max_tokens=20)
    assert engine.forward_passes == 1 + 2 * 2


def test_the_log_probabilities_are_those_before_the_step_and_nan_where_not_computed():
    batch = gappy_batch(0)
    _, result, _ = gradient(batch, 30)
    valid = trained_batch(batch).valid
    assert result.policy_logprobs[valid].isfinite().all()
    assert result.policy_logprobs[~valid].isnan().all()


def test_a_batch_that_trains_nothing_makes_no_pass():
    table_gradient, result, engine = gradient(train_batch(train_row("a", rewards=[1.0, None])), 100)
    assert table_gradient is None
    assert engine.forward_passes == 0
    assert not result.objective.trained.any()


def test_groups_that_are_not_trained_do_not_dilute_the_mean():
    rows = random_rows(3)
    skipped = train_row("skipped", rewards=[None, 1.0])
    expected, *_ = gradient(train_batch(*rows), 10_000)
    actual, *_ = gradient(train_batch(*rows, skipped), 10_000)
    torch.testing.assert_close(actual, expected)
