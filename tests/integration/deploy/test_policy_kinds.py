"""The whole pipeline for what a recipe can train beside a LoRA adapter, with the real engines."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from brain_align.common.policies import PolicyRegistry
from tests.integration.deploy.pipeline_runs import FinishedRun, run

pytestmark = pytest.mark.timeout(600)

TINY = [
    "sampling.n=4",
    "algorithm.prompts_per_round=8",
    "algorithm.updates_per_round=2",
    "evaluation.validation_prompts=8",
    "evaluation.test_prompts=8",
]
FULL = ["policy.method=full", "policy.adapter=null", "learner.learning_rate=1e-3"]


def sampler_gaps(finished: FinishedRun) -> list[float]:
    """Nats a token between sampler and learner, of each version's first step."""
    return [row["sampler_gap_max"] for row in finished.metrics() if "sampler_gap_max" in row]


def test_full_weights(tmp_path: Path) -> None:
    finished = run(tmp_path / "run", *TINY, *FULL)
    gaps = sampler_gaps(finished)
    assert len(gaps) == 2  # the sampler went on from version 0 to version 1 …
    assert max(gaps) < 1e-4  # … and sampled from what the learner had published
    registry = PolicyRegistry(finished.directory / "policies")
    assert registry.versions() == [0, 1, 2]
    first, last = (AutoModelForCausalLM.from_pretrained(registry.verify(v).path) for v in (0, 2))
    moved = [name for name, value in first.named_parameters() if not torch.equal(value, last.get_parameter(name))]
    assert len(moved) == len(list(first.parameters()))
    assert finished.summary()["result"] == str(registry.path(finished.summary()["best_version"]))

    sent = run(tmp_path / "sent", *TINY, *FULL, "sampler.delivery=transfer")
    logs = "".join(log.read_text() for log in (sent.directory / "logs").glob("*"))
    assert set(re.findall(r"weight server: Version (\d): \d+ bytes over gloo to ", logs)) == {"0", "1", "2"}
    assert "from its files" not in logs
    again = PolicyRegistry(sent.directory / "policies")
    assert [again.get(version).digest for version in (0, 1, 2)] == [registry.get(v).digest for v in (0, 1, 2)]


def test_qlora(tmp_path: Path) -> None:
    finished = run(tmp_path / "run", *TINY, "policy.quantization=nf4")
    gaps = sampler_gaps(finished)
    assert len(gaps) == 2
    assert max(gaps) < 1e-4  # the sampler's model is the quantised one
    assert abs(finished.summary()["before"]["kl_to_prior"]) < 1e-4  # and so is the prior
    config = json.loads((finished.directory / "dequantized/config.json").read_text())
    assert "quantization_config" not in config
