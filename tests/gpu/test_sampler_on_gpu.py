"""The sampler on a CUDA device, in bfloat16: promises that tests/integration/sampler/test_sampler.py checks on CPUs.

pytest tests/gpu
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from brain_align.common.errors import UserError
from brain_align.common.requests import SampleRequest
from brain_align.learner.publishing.server_process import WeightServerProcess
from brain_align.sampler.sampler import Sampler
from tests.integration.sampler.sampled_policies import Policies, base_model, make_policies, outputs, sampled, worst_gap

pytestmark = pytest.mark.timeout(900)

GPU = {"gpus": 1, "vllm": {"gpu_memory_utilization": 0.3}}
BFLOAT16_GAP = 0.3  # nats of the worst token


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    made = make_policies(tmp_path_factory.mktemp("sampler"))
    for version in range(3):
        made.publish(version, made.adapted(version))
    made.publish(3, made.adapted(3), probed=made.adapted(4))
    return made


@pytest.fixture(scope="module")
def sampler(policies: Policies) -> Iterator[Sampler]:
    policy = {"model": str(policies.model), "dtype": "bfloat16"}
    started = policies.sampler(policy=policy, sampler=GPU)
    yield started
    started.close()


def test_versions_side_by_side_have_their_own_log_probabilities(loop, policies: Policies, sampler: Sampler) -> None:
    async def side_by_side():
        return await asyncio.gather(*(sampled(sampler, policies.lease(one, alone=False)) for one in range(3)))

    for version, rows in enumerate(loop.run(side_by_side())):
        assert worst_gap(rows, policies.adapted(version)) < BFLOAT16_GAP


def test_a_lease_alone_yields_the_same_bytes_after_others(loop, policies: Policies, sampler: Sampler) -> None:
    lease = policies.lease(1, alone=True, seed=7)
    first = loop.run(sampled(sampler, lease))
    loop.run(sampled(sampler, policies.lease(2, alone=False)))
    assert outputs(loop.run(sampled(sampler, lease))) == outputs(first)


def test_a_probe_that_disagrees_is_refused(loop, policies: Policies, sampler: Sampler) -> None:
    with pytest.raises(UserError, match="in phase `probe`"):
        loop.run(sampled(sampler, policies.lease(3, alone=False)))


def test_tokens_a_second_with_and_without_an_adapter(
    loop, policies: Policies, sampler: Sampler, tmp_path: Path
) -> None:
    """Prints both; an adapter may cost time, but not several times what the model does."""
    whole = Policies(policies.model, make_policies(tmp_path).registry)
    whole.publish_whole(0, policies.adapted(0).unload())
    prompts = [[5 + place] * 16 for place in range(64)]
    with_adapter = rate(loop, sampler, policies.lease(0, alone=False, prompts=prompts))
    plain = whole.sampler(
        full=True, policy={"model": str(whole.model), "dtype": "bfloat16", "method": "full"}, sampler=GPU
    )
    try:
        without = rate(loop, plain, whole.lease(0, alone=False, prompts=prompts))
    finally:
        plain.close()
    print(f"tokens/s: {with_adapter:.0f} with an adapter, {without:.0f} without")
    assert with_adapter > without / 4


@pytest.mark.parametrize("transport", ["gloo", "nccl"])
def test_whole_models_are_sent(
    loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], transport: str
) -> None:
    """Over NCCL from another GPU, over gloo where server and sampler share one; neither reads files."""
    if transport == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a second GPU: it does not join two processes on one")
    whole = make_policies(tmp_path)
    with monkeypatch.context() as environment:
        environment.setenv("CUDA_VISIBLE_DEVICES", "1" if transport == "nccl" else "0")
        server = WeightServerProcess(whole.registry.root, "127.0.0.1", 300)
    models = [base_model(seed) for seed in (1, 5)]
    for version, model in enumerate(models):
        whole.publish_whole(version, model, server.address())
    policy = {"model": str(whole.model), "dtype": "bfloat16", "method": "full", "adapter": None}
    receiver = whole.sampler(full=True, policy=policy, sampler={**GPU, "delivery": "transfer"})
    try:
        for version in (0, 1, 0):
            rows = loop.run(sampled(receiver, whole.lease(version, alone=False)))
            assert worst_gap(rows, models[version]) < BFLOAT16_GAP
    finally:
        receiver.close()
        if server.process is not None:
            with server.process as process:
                process.kill()
    assert capfd.readouterr().err.count(f"bytes over {transport} to") == 3


def rate(loop: asyncio.Runner, sampler: Sampler, lease: SampleRequest) -> float:
    """Tokens a second, the second time."""
    loop.run(sampled(sampler, lease))
    began = time.perf_counter()
    rows = loop.run(sampled(sampler, lease))
    return sum(len(one["token_ids"]) for row in rows for one in row["outputs"]) / (time.perf_counter() - began)
