import pytest

from common.errors import UserError
from learner.objectives.catalogue import make_objective
from tests.unit.objective_values import apply, random_values, settings_of
from tests.unit.train_batches import gappy_batch, trained_batch

HERE = "tests.unit.own_losses"


def test_a_function_of_one_s_own_is_an_objective_like_any_other():
    section = settings_of(f"{HERE}:scaled", options={"scale": 2.0})
    values = random_values()
    result = apply(values, section)
    ratios = (values.policy_logprobs - values.prior_logprobs).detach()
    centred = ratios - ratios.mean(-1, keepdim=True)
    assert result.loss.item() == pytest.approx(-(2 * values.rewards * centred).mean().item(), rel=1e-5)
    assert result.metrics.keys() >= {"ranking_accuracy", "kl_policy_prior"}
    assert trained_batch(gappy_batch(0), section).trained.all()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_module:loss", "objective.name: 'no_such_module' cannot be imported"),
        (f"{HERE}:nothing", f"{HERE} has no function 'nothing'"),
        (f"{HERE}:scaled", "fails on a trial batch: KeyError: 'scale'"),
        (f"{HERE}:per_output", r"a tensor of shape \(2,\), and gave \(2, 3\)"),
        (f"{HERE}:a_number", r"a tensor of shape \(2,\), and gave float"),
        (f"{HERE}:without_policy", "do not depend on policy_logprobs"),
        (f"{HERE}:divides_by_zero", "not finite on a trial batch"),
        (f"{HERE}:fails", "fails on a trial batch: RuntimeError: out of ideas"),
    ],
)
def test_a_function_that_cannot_train_is_refused_at_the_start(name, sentence):
    with pytest.raises(UserError, match=sentence):
        make_objective(settings_of(name))
