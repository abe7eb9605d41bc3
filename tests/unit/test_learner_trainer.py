import math
import shutil

import pytest
import torch

from common.config.recipe import Recipe
from common.errors import PipelineError, UserError
from common.nn.adapters import load_adapter
from common.nn.causal_lm import load_causal_lm
from common.policies import PolicyRegistry
from learner.trainer import Trainer
from learner.training_state import SavedParameters
from tests.unit import tiny_models
from tests.unit.factories import recipe_settings
from tests.unit.logprob_calls import group_logprobs
from tests.unit.plain_engine import PlainEngine
from tests.unit.train_batches import gappy_batch, train_batch, train_row


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More are slower on a model this small, by far where others use the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("policy")
    tiny_models.save(tiny_models.llama(), directory)
    return directory


@pytest.fixture
def trainer(model_dir, tmp_path):
    return started(model_dir, tmp_path)


def recipe(model_dir, **learner):
    policy = {"model": str(model_dir), "dtype": "float32", "adapter": {"r": 2, "alpha": 4}}
    settings = {"learning_rate": 1e-2, "micro_batch_tokens": 40, **learner}
    return Recipe.model_validate(recipe_settings(policy=policy, learner=settings))


def started(model_dir, run_dir, **learner):
    trainer = Trainer(recipe(model_dir, **learner), run_dir, PlainEngine)
    trainer.start()
    return trainer


def test_a_new_policy_is_the_prior(trainer, model_dir, tmp_path):
    digest = trainer.publish(0, 0)
    version = PolicyRegistry(tmp_path / "policies").verify(0)
    assert (version.digest, version.step) == (digest, 0)
    prior = load_causal_lm(str(model_dir), "float32")
    policy = load_adapter(load_causal_lm(str(model_dir), "float32"), version.path)
    outputs = [[1, 2], [3, 4, 5]]
    assert torch.equal(group_logprobs(policy, [7], outputs), group_logprobs(prior, [7], outputs))


def test_training_raises_the_probability_of_what_is_rewarded(trainer, model_dir, tmp_path):
    row = train_row("a", prompt=[7, 8], outputs=[[1, 2], [3, 4]], rewards=[4.0, 0.0])
    prior = load_causal_lm(str(model_dir), "float32")
    before = group_logprobs(prior, [7, 8], [[1, 2], [3, 4]]).detach()
    row |= {"proposal_logprobs": before.tolist(), "prior_logprobs": before.tolist()}
    losses = [trainer.train_step(step, train_batch(row))["loss"] for step in range(1, 31)]
    trainer.publish(1, 30)
    policy = load_adapter(prior, PolicyRegistry(tmp_path / "policies").get(1).path)
    change = group_logprobs(policy, [7, 8], [[1, 2], [3, 4]]).detach() - before
    # With these two outputs alone, the posterior is β = α: the log-ratio grows by r_1 − r_2.
    assert (change[0] - change[1]).item() == pytest.approx(4, abs=0.3)
    assert losses[0] == pytest.approx(0.6, abs=0.05)
    assert losses[-1] < 0.01


def test_the_metrics_of_a_step(trainer):
    metrics = trainer.train_step(1, gappy_batch(0))
    assert metrics["trained_prompts"] == 3
    assert metrics["missing_outputs"] == 2
    assert metrics["learning_rate"] == 1e-2
    assert metrics["tokens"] > 0
    assert metrics.keys() >= {
        "loss",
        "grad_norm",
        "seconds",
        "ess_alpha",
        "groups_collapsed",
        "skipped_prompts",
    }
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())


def test_the_gap_to_the_sampler_is_known_right_after_a_publication_only(trainer, model_dir):
    trainer.publish(0, 0)
    exact = group_logprobs(load_causal_lm(str(model_dir), "float32"), [7, 8], [[1, 2], [3]]).detach()
    sampled = [exact[0].item() + 0.02, exact[1].item()]
    row = train_row("a", prompt=[7, 8], outputs=[[1, 2], [3]], proposal_logprobs=sampled)
    other = train_row("b", proposal_version=7)
    metrics = trainer.train_step(1, train_batch(row, other))
    assert metrics["sampler_gap_max"] == pytest.approx(0.01, abs=1e-5)
    assert metrics["sampler_gap_mean"] == pytest.approx(0.005, abs=1e-5)
    assert "sampler_gap_max" not in trainer.train_step(2, train_batch(row))
    trainer.publish(1, 2)
    assert "sampler_gap_max" not in trainer.train_step(3, train_batch(row))


def test_steps_out_of_turn_are_refused(trainer):
    trainer.train_step(1, gappy_batch(0))
    for step in (1, 3):
        with pytest.raises(PipelineError, match=f"at step 1 and was asked for step {step}"):
            trainer.train_step(step, gappy_batch(0))
    with pytest.raises(PipelineError, match="at step 1 and was asked to save step 2"):
        trainer.save(2)
    with pytest.raises(PipelineError, match="at step 1 and was asked to publish step 0"):
        trainer.publish(0, 0)


def test_a_batch_that_trains_nothing_is_a_step_that_changes_nothing(trainer):
    trainer.train_step(1, gappy_batch(0))
    before = trainer.publish(1, 1)
    metrics = trainer.train_step(2, train_batch(train_row("a", rewards=[1.0, None])))
    assert (metrics["trained_prompts"], metrics["skipped_prompts"]) == (0, 1)
    assert not {"loss", "grad_norm", "ess_alpha"} & metrics.keys()
    assert trainer.step == 2
    assert trainer.publish(2, 2) == before


def test_a_loss_that_is_not_finite_names_the_groups_and_changes_nothing(trainer):
    before = trainer.publish(0, 0)
    bad = train_row("bad", rewards=[3e38, -3e38])
    with pytest.raises(PipelineError, match="step 1: the loss is not finite for group bad"):
        trainer.train_step(1, train_batch(train_row("good"), bad))
    assert trainer.step == 0
    assert trainer.publish(1, 0) == before


def test_a_resumed_run_ends_with_the_same_bytes(model_dir, tmp_path):
    def run(trainer, steps):
        for step in steps:
            trainer.train_step(step, gappy_batch(step))

    whole = started(model_dir, tmp_path / "whole")
    run(whole, range(1, 7))
    first = started(model_dir, tmp_path / "cut")
    run(first, range(1, 4))
    first.save(3)
    run(first, range(4, 6))  # lost
    second = started(model_dir, tmp_path / "cut")
    assert second.step == 3
    run(second, range(4, 7))
    assert second.publish(1, 6) == whole.publish(1, 6)


def test_a_checkpoint_has_no_base_weights(trainer, tmp_path):
    trainer.train_step(1, gappy_batch(0))
    trainer.save(1)
    names = SavedParameters(tmp_path / "checkpoints/step-000001").names()
    assert names
    assert all(".lora_" in name for name in names)
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*"))
    assert size < 80_000  # adapter, two moments, random states; the base alone has 100 kB


def test_a_checkpoint_made_with_other_settings_is_refused(trainer, model_dir, tmp_path):
    trainer.train_step(1, gappy_batch(0))
    trainer.save(1)
    with pytest.raises(UserError, match="made with other settings"):
        started(model_dir, tmp_path, learning_rate=2e-2)


def test_a_checkpoint_resumes_where_the_models_lie_elsewhere_and_the_work_is_shared_differently(
    trainer, model_dir, tmp_path
):
    trainer.train_step(1, gappy_batch(0))
    trainer.save(1)
    moved = shutil.copytree(model_dir, tmp_path / "moved")
    assert started(moved, tmp_path, ranks=2, zero_stage=2, micro_batch_tokens=99, threads=2).step == 1


def test_a_published_version_is_never_rewritten(trainer):
    before = trainer.publish(0, 0)
    trainer.train_step(1, gappy_batch(0))
    assert trainer.publish(0, 1) == before
