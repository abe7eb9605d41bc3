import pytest
import torch

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.config.training import LearnerSection
from brain_align.common.errors import UserError
from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import attach_new_adapter
from brain_align.learner.steps.memory_plan import TOKENS_ON_CPU, Footprint, footprint, token_budget, tokens_within
from tests.allocations import peak_bytes
from tests.unit.tiny_models import gptj, llama

GIB = 2**30
SETTINGS = LearnerSection()


def policy(make=llama, dtype=torch.float32):
    model = make().to(dtype)
    return SequenceLogprobs(attach_new_adapter(model, AdapterSection(r=4, alpha=8, targets=["q_proj", "v_proj"]), 0))


def measured(policy, tokens):
    """Bytes a token of a forward and backward pass over one group of 8 outputs."""
    length = tokens // 8
    request = request_of(list(range(16)), [[5] * (length + 1)] * 8)
    run = lambda: policy([request]).sum().backward()  # noqa: E731
    run()  # gradients are there
    return peak_bytes(run) / (16 + 8 * length)


@pytest.mark.parametrize("make", [llama, gptj])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_near_what_a_pass_takes_and_not_below(make, dtype):
    subject = policy(make, dtype)
    actual = measured(subject, 320)
    assert actual <= footprint(subject, SETTINGS).token <= 2.5 * actual


def test_weights_gradients_and_optimiser_are_counted_as_they_are_shared():
    subject = policy()
    trained = sum(value.numel() for value in subject.trainable().values())
    weights = sum(value.nbytes for value in subject.parameters())
    shared = [footprint(subject, LearnerSection(zero_stage=stage), ranks=2).fixed for stage in range(4)]
    assert footprint(subject, SETTINGS).fixed == shared[0] == weights + 12 * trained
    assert shared[1] == weights + (4 + 4) * trained
    assert shared[2] == weights + (2 + 4) * trained
    assert shared[3] == weights // 2 + (2 + 4) * trained
    recomputed = footprint(subject, LearnerSection(activation_checkpointing=True))
    assert recomputed.token < 0.7 * footprint(subject, SETTINGS).token
    offloaded = footprint(subject, LearnerSection(offload_optimizer=True, zero_stage=1))
    assert offloaded.fixed == weights + 4 * trained


def test_the_budget_is_what_the_memory_leaves():
    assert tokens_within(80 * GIB, Footprint(fixed=30 * GIB, token=GIB // 1024)) == (80 * 85 // 100 - 30) * 1024
    assert tokens_within(80 * GIB, Footprint(fixed=0, token=1)) == 131_072
    assert token_budget(policy(), SETTINGS, ranks=1) == TOKENS_ON_CPU


def test_a_policy_that_does_not_fit_is_refused_with_figures():
    with pytest.raises(UserError, match=r"take 70.0 GiB and 256 tokens take 0.2 GiB, but the GPU has 80 GiB; use"):
        tokens_within(80 * GIB, Footprint(fixed=70 * GIB, token=GIB // 1024))
