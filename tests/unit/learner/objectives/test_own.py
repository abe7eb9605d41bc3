import inspect
import textwrap

import pytest
import torch

from brain_align.common.errors import UserError
from brain_align.learner.objectives.catalogue import make_objective
from tests.locations import ROOT
from tests.unit.learner.objectives import own_losses
from tests.unit.learner.objectives.objective_values import (
    apply,
    changed,
    columns_of,
    gradient,
    random_values,
    settings_of,
)
from tests.unit.learner.train_batches import gappy_batch, trained_batch

HERE = "tests.unit.learner.objectives.own_losses"


def test_a_function_of_one_s_own_is_an_objective_like_any_other():
    section = settings_of(f"{HERE}:my_loss", options={"scale": 2.0})
    values = random_values()
    result = apply(values, section)
    ratios = (values.policy_logprobs - values.prior_logprobs).detach()
    centred = ratios - ratios.mean(-1, keepdim=True)
    assert result.loss.item() == pytest.approx(-(2 * values.rewards * centred).mean().item(), rel=1e-5)
    assert result.metrics.keys() >= {"ranking_accuracy", "kl_policy_prior"}
    assert trained_batch(gappy_batch(0), section).trained.all()


def test_the_documented_example_does_not_count_slots_that_are_not_valid():
    documented = (ROOT / "docs" / "objectives.md").read_text()
    assert textwrap.indent(inspect.getsource(own_losses.my_loss), "    ") in documented
    section, valid = settings_of(f"{HERE}:my_loss", options={"scale": 2.0}), torch.ones(3, 6).bool()
    valid[:, [1, 4]] = False
    values = random_values(n=6)
    gaps = changed(values, complete=valid, valid=valid)
    without = columns_of(values, [0, 2, 3, 5])
    torch.testing.assert_close(apply(gaps, section).losses, apply(without, section).losses)
    torch.testing.assert_close(gradient(gaps, section)[:, [0, 2, 3, 5]], gradient(without, section))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_module:loss", "objective.name: 'no_such_module' cannot be imported"),
        (f"{HERE}:nothing", f"{HERE} has no function 'nothing'"),
        (f"{HERE}:my_loss", "fails on a trial batch: KeyError: 'scale'"),
        (f"{HERE}:per_output", r"a tensor of shape \(2,\), but returned \(2, 3\)"),
        (f"{HERE}:a_number", r"a tensor of shape \(2,\), but returned float"),
        (f"{HERE}:without_policy", "do not depend on policy_logprobs"),
        (f"{HERE}:divides_by_zero", "not finite on a trial batch"),
        (
            f"{HERE}:mixes_prompts",
            r"the loss -?[\d.]+ beside another prompt and -?[\d.]+ alone, .* how its batch is cut",
        ),
        (
            f"{HERE}:counts_missing_slots",
            r"with a slot that is not valid and -?[\d.]+ without that slot, .* masked_mean",
        ),
        (f"{HERE}:normalises_over_missing_slots", r"with a slot that is not valid and .* without that slot"),
        (f"{HERE}:drops_out", r"returns different losses for the same batch .* draw random numbers from values\.seeds"),
        (f"{HERE}:fails", "fails on a trial batch: RuntimeError: out of ideas"),
    ],
)
def test_a_function_that_cannot_train_is_refused_at_the_start(name, sentence):
    with pytest.raises(UserError, match=sentence):
        make_objective(settings_of(name))
