import math
import re
import shutil
from typing import cast
from unittest.mock import patch

import pytest
import torch
import transformers

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import LearnerOutOfMemoryError, PipelineError, UserError
from brain_align.common.nn.models.adapters import load_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.policies import PolicyRegistry
from brain_align.learner.checkpoints.training_state import SavedParameters
from brain_align.learner.publishing.server_process import WeightServerProcess
from brain_align.learner.steps.metrics import gap_warning
from brain_align.learner.trainer import Trainer
from tests.unit import tiny_models
from tests.unit.common.nn.logprob_calls import group_logprobs
from tests.unit.factories import recipe_settings
from tests.unit.learner.plain_engine import PlainEngine
from tests.unit.learner.train_batches import gappy_batch, train_batch, train_row


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


def recipe(model_dir, objective="brain", **learner):
    policy = {"model": str(model_dir), "dtype": "float32", "adapter": {"r": 2, "alpha": 4}}
    settings = {"learning_rate": 1e-2, "micro_batch_tokens": 40, **learner}
    return Recipe.model_validate(recipe_settings(policy=policy, learner=settings, objective={"name": objective}))


def started(model_dir, run_dir, objective="brain", **learner):
    trainer = Trainer(recipe(model_dir, objective, **learner), run_dir, PlainEngine)
    trainer.start()
    return trainer


def published(trainer, version, step):
    """Publishes a version; returns the digest of its files."""
    trainer.publish(version, step)
    return trainer._registry.get(version).digest


def test_a_new_policy_is_the_prior(trainer, model_dir, tmp_path):
    trainer.publish(0, 0)
    version = PolicyRegistry(tmp_path / "policies").verify(0)
    assert version.step == 0
    prior = load_causal_lm(str(model_dir), "float32")
    policy = load_adapter(load_causal_lm(str(model_dir), "float32"), version.path)
    outputs = [[1, 2], [3, 4, 5]]
    assert torch.equal(group_logprobs(policy, [7], outputs), group_logprobs(prior, [7], outputs))


def test_a_version_says_where_rank_0_serves_it(model_dir, tmp_path):
    class Server:
        def address(self):
            return "10.0.0.1:7000"

    trainer = Trainer(recipe(model_dir), tmp_path, PlainEngine, cast(WeightServerProcess, Server()))
    trainer.start()
    trainer.publish(0, 0)
    assert PolicyRegistry(tmp_path / "policies").get(0).server == "10.0.0.1:7000"


def test_training_raises_the_probability_of_what_is_rewarded(trainer, model_dir, tmp_path):
    row = train_row("a", prompt=[7, 8], outputs=[[1, 2], [3, 4]], rewards=[4.0, 0.0])
    prior = load_causal_lm(str(model_dir), "float32")
    before = group_logprobs(prior, [7, 8], [[1, 2], [3, 4]]).detach()
    row |= {"proposal_logprobs": before.tolist(), "prior_logprobs": before.tolist()}
    losses = [trainer.train_step(step, train_batch(row)).metrics["loss"] for step in range(1, 31)]
    trainer.publish(1, 30)
    policy = load_adapter(prior, PolicyRegistry(tmp_path / "policies").get(1).path)
    change = group_logprobs(policy, [7, 8], [[1, 2], [3, 4]]).detach() - before
    # With these two outputs alone, the posterior is β = α: the log-ratio grows by r_1 − r_2.
    assert (change[0] - change[1]).item() == pytest.approx(4, abs=0.3)
    assert losses[0] == pytest.approx(0.6, abs=0.05)
    assert losses[-1] < 0.01


def test_the_metrics_of_a_step(trainer):
    metrics = trainer.train_step(1, gappy_batch(0)).metrics
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
    metrics = trainer.train_step(1, train_batch(row, other)).metrics
    assert metrics["sampler_gap_max"] == pytest.approx(0.01, abs=1e-5)
    assert metrics["sampler_gap_mean"] == pytest.approx(0.005, abs=1e-5)
    assert metrics["sampler_gap_sd"] == pytest.approx(0.02 / 2**0.5, abs=1e-5)
    assert metrics["sampler_gap_tv"] == pytest.approx(1 / (1 + math.exp(-0.02)) - 0.5, abs=1e-5)
    assert "sampler_gap_max" not in trainer.train_step(2, train_batch(row)).metrics
    trainer.publish(1, 2)
    assert "sampler_gap_max" not in trainer.train_step(3, train_batch(row)).metrics


def test_with_recomputed_proposals_the_gap_is_known_at_every_step_and_a_wide_one_is_named(model_dir, tmp_path):
    settings = recipe(model_dir).model_dump() | {"logprobs": {"proposal": "recomputed", "gap_warning": 0.05}}
    trainer = Trainer(Recipe.model_validate(settings), tmp_path, PlainEngine)
    trainer.start()
    near = train_row("a", outputs=[[1, 2], [3]], proposal_logprobs=[-3.0, -3.0], sampler_logprobs=[-3.04, -3.0])
    report = trainer.train_step(1, train_batch(near))
    assert report.metrics["sampler_gap_max"] == pytest.approx(0.02, abs=1e-5)
    assert report.notes == []
    (note,) = trainer.train_step(2, train_batch(near | {"sampler_logprobs": [-3.4, -3.0]})).notes
    assert note.startswith(
        "WARNING: step 2: sampler and learner differ by 0.1 nats per token (logprobs.gap_warning is 0.05)"
    )


def test_rounding_that_moves_the_weights_is_named_for_the_first_versions(model_dir):
    settings = recipe(model_dir)
    last = settings.algorithm.updates_per_round + 1
    metrics = {"sampler_gap_mean": 0.005, "sampler_gap_sd": 0.51, "sampler_gap_tv": 0.13}
    cases = ((1, "sampler", True), (last, "sampler", True), (last + 1, "sampler", False), (1, "recomputed", False))
    for step, proposal, named in cases:
        logprobs = settings.logprobs.model_copy(update={"proposal": proposal})
        warning = gap_warning(settings.model_copy(update={"logprobs": logprobs}), step, metrics)
        assert (warning is not None) == named
        assert warning is None or ("0.51 nats per output" in warning and "outputs by 13 %" in warning)
    assert gap_warning(settings, 1, metrics | {"sampler_gap_tv": 0.04}) is None


def test_steps_out_of_turn_are_refused(trainer):
    trainer.train_step(1, gappy_batch(0))
    for step in (1, 3):
        with pytest.raises(PipelineError, match=f"at step 1 and was asked for step {step}"):
            trainer.train_step(step, gappy_batch(0))
    with pytest.raises(PipelineError, match="at step 1 and was asked to save step 2"):
        trainer.save(2)
    with pytest.raises(PipelineError, match="at step 1 and was asked to publish step 0"):
        trainer.publish(0, 0)


def test_a_batch_that_trains_nothing_is_no_step(trainer):
    trainer.train_step(1, gappy_batch(0))
    before = published(trainer, 1, 1)
    metrics = trainer.train_step(2, train_batch(train_row("a", rewards=[1.0, None]))).metrics
    assert (metrics["trained_prompts"], metrics["skipped_prompts"]) == (0, 1)
    assert not {"loss", "grad_norm", "ess_alpha"} & metrics.keys()
    assert trainer.step == 1
    with pytest.raises(PipelineError, match="at step 1 and was asked to save step 2"):
        trainer.save(2)
    assert trainer.train_step(2, gappy_batch(0)).metrics["trained_prompts"]  # with other groups it is one
    assert trainer.step == 2
    trainer.skip(3)  # on record, as steps of an earlier version may be
    assert trainer.step == 3
    assert published(trainer, 2, 3) != before


BAD = {"rewards": [3e38, -3e38]}


def test_a_step_whose_loss_is_not_finite_is_skipped_counted_and_named(trainer):
    before = {name: value.detach().clone() for name, value in trainer._policy.trainable().items()}
    report = trainer.train_step(1, train_batch(train_row("good"), train_row("bad", **BAD)))
    assert report.metrics["skipped_step"] == 1
    assert not {"loss", "grad_norm"} & report.metrics.keys()
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert report.notes == ["step 1: the loss is not finite for group bad; the step is skipped (1 in a row)."]
    assert trainer.step == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer._policy.trainable().items())
    assert "skipped_step" not in trainer.train_step(2, gappy_batch(0)).metrics
    assert not all(torch.equal(value, before[name]) for name, value in trainer._policy.trainable().items())


def test_a_ratio_to_the_proposal_beyond_float32_is_named_as_the_cause(model_dir, tmp_path):
    trainer = started(model_dir, tmp_path, "gdc++")
    far = train_row("far", prior_logprobs=[-300.0, -300.0], proposal_logprobs=[-300.0, -300.0])
    (note,) = trainer.train_step(1, train_batch(train_row("good"), far)).notes
    assert re.search(r"not finite for group far \(log q - log q' is up to 29\d nats, and float32 .* of 89\);", note)


def test_too_many_skipped_steps_in_a_row_end_the_run_with_all_their_groups(model_dir, tmp_path):
    trainer = started(model_dir, tmp_path, max_skipped_in_a_row=1)
    bad = [train_batch(train_row(name, **BAD)) for name in ("first", "second", "third")]
    trainer.train_step(1, bad[0])
    trainer.train_step(2, gappy_batch(0))  # a step in between: counted anew
    trainer.train_step(3, bad[1])
    expected = r"2 steps in a row .* step 3: .* group second; step 4: .* group third"
    with pytest.raises(PipelineError, match=expected) as end:
        trainer.train_step(4, bad[2])
    assert "learner.max_skipped_in_a_row is 1" in str(end.value)
    assert trainer.step == 3


def test_skipped_steps_are_counted_across_a_resume(model_dir, tmp_path):
    first = started(model_dir, tmp_path, max_skipped_in_a_row=1)
    first.train_step(1, train_batch(train_row("first", **BAD)))
    first.save(1)
    second = started(model_dir, tmp_path, max_skipped_in_a_row=1)
    with pytest.raises(PipelineError, match=r"group first.* group second"):
        second.train_step(2, train_batch(train_row("second", **BAD)))


def test_packed_rows_are_compared_once_and_at_the_first_group_that_is_trained(model_dir, tmp_path):
    def comparisons(trainer, step, batch):
        with patch.object(trainer._policy, "check_packed", wraps=trainer._policy.check_packed) as compared:
            trainer.train_step(step, batch)
        return compared.call_count

    untrained = train_batch(train_row("a", rewards=[None, None]))
    first = started(model_dir, tmp_path)
    assert comparisons(first, 1, untrained) == 0
    first.skip(1)
    first.save(1)
    second = started(model_dir, tmp_path)
    assert second.step == 1
    assert comparisons(second, 2, gappy_batch(0)) == 1
    assert comparisons(second, 3, gappy_batch(1)) == 0
    second.save(3)
    assert comparisons(started(model_dir, tmp_path), 4, gappy_batch(2)) == 0


class ForgetfulEngine(PlainEngine):
    """Runs out of memory above a number of tokens, with part of the gradient done."""

    room = 30

    def logprobs(self, requests):
        tokens = sum(self.module.decoder.budget(1).tokens(len(prompt), list(map(len, ids))) for prompt, ids in requests)
        values = super().logprobs(requests)
        if tokens > self.room and torch.is_grad_enabled():
            values.sum().backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. And so on.")
        return values


def test_out_of_memory_halves_the_budget_and_repeats_the_step_exactly(model_dir, tmp_path):
    small = started(model_dir, tmp_path / "small", micro_batch_tokens=25)
    large = Trainer(recipe(model_dir, micro_batch_tokens=100), tmp_path / "large", ForgetfulEngine)
    large.start()
    for step in (1, 2):
        expected, actual = small.train_step(step, gappy_batch(step)), large.train_step(step, gappy_batch(step))
        assert {**actual.metrics, "seconds": 0} == {**expected.metrics, "seconds": 0}
        if step == 1:
            assert [note.split(" (")[0] for note in actual.notes] == [
                "step 1: out of memory with 100 tokens per forward pass; the step is repeated with 50",
                "step 1: out of memory with 50 tokens per forward pass; the step is repeated with 25",
            ]
    assert published(large, 1, 2) == published(small, 1, 2)


def test_memory_that_never_suffices_ends_the_run_with_advice(model_dir, tmp_path):
    class FullEngine(ForgetfulEngine):
        room = 0

    trainer = Trainer(recipe(model_dir, micro_batch_tokens=30), tmp_path, FullEngine)
    trainer.start()
    with pytest.raises(
        PipelineError, match=r"out of memory with 30 tokens .*set learner.activation_checkpointing=true, or"
    ):
        trainer.train_step(1, gappy_batch(0))


def test_where_half_a_gradient_cannot_be_forgotten_the_services_have_to_start_again(model_dir, tmp_path):
    class OneOfMany(ForgetfulEngine):
        can_discard = False

    trainer = Trainer(recipe(model_dir, micro_batch_tokens=100), tmp_path, OneOfMany)
    trainer.start()
    with pytest.raises(
        LearnerOutOfMemoryError, match="step 1: out of memory with 100 tokens per forward pass"
    ) as error:
        trainer.train_step(1, gappy_batch(0))
    assert error.value.smaller == 50
    assert trainer.step == 0


def test_rows_are_padded_where_the_first_group_shows_that_packed_ones_are_wrong(model_dir, tmp_path):
    right, wrong = started(model_dir, tmp_path / "right"), started(model_dir, tmp_path / "wrong")
    rotary = wrong._policy.model.get_base_model().model.rotary_emb
    stock = rotary.forward
    rotary.forward = lambda hidden, position_ids: stock(hidden, torch.arange(position_ids.shape[1])[None])
    expected, actual = right.train_step(1, gappy_batch(0)), wrong.train_step(1, gappy_batch(0))
    assert actual.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-4)
    (note,) = actual.notes
    assert note.startswith("WARNING: this model's packed rows are not used")
    assert wrong.train_step(2, gappy_batch(1)).notes == []


@pytest.mark.parametrize("objective", ["brain", "gdc++", "rso"])
def test_a_resumed_run_ends_with_the_same_bytes(objective, model_dir, tmp_path):
    def run(trainer, steps):
        for step in steps:
            trainer.train_step(step, gappy_batch(step))

    whole = started(model_dir, tmp_path / "whole", objective)
    run(whole, range(1, 7))
    first = started(model_dir, tmp_path / "cut", objective)
    run(first, range(1, 4))
    first.save(3)
    run(first, range(4, 6))  # lost
    second = started(model_dir, tmp_path / "cut", objective)
    assert second.step == 3
    assert second._objective.normaliser.count == (0 if objective != "gdc++" else 3 * 9)
    run(second, range(4, 7))
    assert published(second, 1, 6) == published(whole, 1, 6)


def test_an_sft_term_raises_the_likelihood_of_gold(model_dir, tmp_path):
    gold = [9, 8, 7]
    row = train_row("a", prompt=[7, 8], outputs=[[1, 2], [3, 4]], gold_token_ids=gold)
    trainer = started(model_dir, tmp_path, "slic")
    prior = load_causal_lm(str(model_dir), "float32")
    before = group_logprobs(prior, [7, 8], [gold]).item()
    for step in range(1, 31):
        assert trainer.train_step(step, train_batch(row)).metrics["trained_prompts"] == 1
    trainer.publish(1, 30)
    policy = load_adapter(prior, PolicyRegistry(tmp_path / "policies").get(1).path)
    assert group_logprobs(policy, [7, 8], [gold]).item() > before + 1


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
    before = published(trainer, 0, 0)
    trainer.train_step(1, gappy_batch(0))
    assert published(trainer, 0, 1) == before


def test_recomputed_activations_give_the_same_gradient(model_dir, tmp_path):
    kept = started(model_dir, tmp_path / "kept")
    recomputed = started(model_dir, tmp_path / "recomputed", activation_checkpointing=True)
    passes: dict[Trainer, list[int]] = {kept: [], recomputed: []}
    for trainer, seen in passes.items():
        layer = trainer._policy.get_submodule("model.base_model.model.model.layers.0.mlp")
        layer.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
    ours, theirs = (trainer.train_step(1, gappy_batch(0)).metrics for trainer in (recomputed, kept))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert published(recomputed, 1, 1) == published(kept, 1, 1)
    assert len(passes[recomputed]) > len(passes[kept])  # once more in each backward pass


def test_a_model_that_cannot_recompute_is_refused(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="activation_checkpointing=true: a llama model does not support it; set false"):
        started(model_dir, tmp_path, activation_checkpointing=True)


def test_full_weights_are_trained_saved_and_published(model_dir, tmp_path):
    def full(name):
        settings = {"policy": {"model": str(model_dir), "dtype": "float32", "method": "full"}}
        learner = {"learning_rate": 1e-2, "micro_batch_tokens": 40}
        trainer = Trainer(Recipe.model_validate(recipe_settings(**settings, learner=learner)), name, PlainEngine)
        trainer.start()
        return trainer

    whole, cut = full(tmp_path / "whole"), full(tmp_path / "cut")
    for step in (1, 2):
        whole.train_step(step, gappy_batch(step))
    cut.train_step(1, gappy_batch(1))
    cut.save(1)
    resumed = full(tmp_path / "cut")
    resumed.train_step(2, gappy_batch(2))
    assert published(resumed, 1, 2) == published(whole, 1, 2)
    reread = load_causal_lm(str(PolicyRegistry(tmp_path / "whole/policies").verify(1).path), "float32")
    trained = dict(whole._policy.model.named_parameters())
    prior = load_causal_lm(str(model_dir), "float32")
    for name, value in reread.named_parameters():
        assert torch.equal(value, trained[name])
        assert not torch.equal(value, prior.get_parameter(name))
