from functools import partial

import pytest
import torch

from brain_align.common.config.inputs import AdapterSection, PolicySection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import attach_new_adapter, save_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.policies import PolicyRegistry
from brain_align.common.schemas import PROPOSAL
from brain_align.scorer.kinds.proposal import ProposalScorer
from tests.unit.common.nn.logprob_calls import group_logprobs
from tests.unit.factories import PROBE
from tests.unit.scorer.test_scorers import group, score
from tests.unit.tiny_models import llama, save

ADAPTER = AdapterSection(r=2, alpha=4, targets=["q_proj", "v_proj"])
IDS = [[7, 8, 3], [9]]


def adapted(version):
    """The policy of a version: each has an adapter of its own."""
    policy = attach_new_adapter(llama(), ADAPTER, seed=version)
    torch.manual_seed(version)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.copy_(0.3 * torch.randn_like(value))
    return policy


def sampled(version):
    return group(token_ids=IDS) | {"proposal_version": version}


@pytest.fixture
def published(tmp_path):
    """A model, and the versions 0 to 2 of its adapter."""
    save(llama(), tmp_path / "model")
    registry = PolicyRegistry(tmp_path / "policies")
    for version in range(3):
        registry.publish(version, version, partial(save_adapter, adapted(version)), PROBE)
    return tmp_path


def scorer(directory, **policy):
    section = PolicySection(model=str(directory / "model"), dtype="float32", **policy)
    return ProposalScorer(section, directory / "policies", "cpu", max_tokens=1000)


def test_each_group_is_scored_under_its_own_version(published):
    versions = [1, 0, 1, 2]
    rows = score(scorer(published), *(sampled(version) for version in versions))
    for row, version in zip(rows, versions, strict=True):
        expected = group_logprobs(adapted(version), [1, 2], IDS)
        assert row["values"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert row["scorer"] == PROPOSAL
    assert rows[0]["values"] == rows[2]["values"]
    assert rows[0]["values"] != rows[1]["values"]


def test_full_weights_are_loaded_whole(tmp_path):
    save(llama(), tmp_path / "model")
    registry = PolicyRegistry(tmp_path / "policies")
    registry.publish(4, 0, lambda directory: save(llama(seed=5), directory), PROBE)
    (row,) = score(scorer(tmp_path, method="full"), sampled(4))
    expected = group_logprobs(load_causal_lm(str(registry.path(4)), "float32"), [1, 2], IDS)
    assert row["values"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_version_that_is_not_there_is_named(published):
    with pytest.raises(UserError, match=r"Proposal version 9 .* is not complete in .*v000009"):
        score(scorer(published), sampled(9))
