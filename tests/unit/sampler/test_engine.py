"""What of the sampler's work with vLLM needs no vLLM."""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from brain_align.common.errors import DeliveryError, PipelineError, UserError
from brain_align.common.policies import ProposalVersion
from brain_align.sampler.engine.data import Adapter
from brain_align.sampler.engine.failures import not_loaded
from brain_align.sampler.engine.requests import completion, completions
from brain_align.sampler.engine.settings import EngineSettings, engine_arguments
from brain_align.sampler.engine.worker import WorkerExtension
from brain_align.sampler.weights.delivery import AdapterSwap
from brain_align.sampler.weights.engine_weights import EngineWeights
from tests.unit.factories import PROBE


def test_every_generator_that_vllm_draws_seeds_from_is_seeded() -> None:
    def drawn() -> tuple[float, int, float]:
        WorkerExtension().seed_sampling(2**40 + 7)
        return random.random(), int(np.random.randint(2**62)), float(torch.rand(()))

    first = drawn()
    torch.rand(3)
    assert drawn() == first


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Call to add_lora method failed: LoRA rank 32 is greater than max_lora_rank 8.", UserError),
        ("Call to add_lora method failed: CUDA out of memory. Tried to allocate 2.00 GiB.", DeliveryError),
        ("Call to add_lora method failed: [Errno 116] Stale file handle: 'adapter_model.safetensors'", DeliveryError),
    ],
)
def test_a_fault_that_may_pass_is_told_from_one_of_the_version(message: str, kind: type[Exception]) -> None:
    error = not_loaded("the adapter in v000001", RuntimeError(message))
    assert type(error) is kind
    assert str(error) == f"vLLM does not load the adapter in v000001: {message}"


@pytest.mark.parametrize(("repeatable", "policy"), [(True, "fcfs"), (False, "priority")])
def test_only_an_engine_that_need_not_repeat_itself_goes_by_priorities(repeatable: bool, policy: str) -> None:
    settings = EngineSettings("model", "float32", 8, 2, False, False, 64, 1, repeatable, 1, 1, {})
    assert engine_arguments(settings)["scheduling_policy"] == policy
    assert engine_arguments(settings)["trust_remote_code"] is False


def test_short_prompts_are_shared_on_cpus_and_the_recipe_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def block_size(on_cpu: bool, **extra: Any) -> int | None:
        monkeypatch.setattr("brain_align.sampler.engine.settings._on_cpu", lambda: on_cpu)
        settings = EngineSettings("model", "float32", 8, 2, False, False, 64, 1, True, 1, 1, extra)
        return engine_arguments(settings).get("block_size")

    assert (block_size(True), block_size(True, block_size=128), block_size(False)) == (32, 128, None)


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_an_output_that_was_broken_off_is_none(reason: str | None) -> None:
    logprobs = SimpleNamespace(token_ids=[3], logprobs=[-1.0])
    whole = SimpleNamespace(token_ids=[3], logprobs=logprobs, finish_reason="length")
    assert completion(whole).token_ids == [3]
    whole.finish_reason = reason
    with pytest.raises(PipelineError, match=f"finish reason {reason!r}"):
        completion(whole)


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (1, 0)])
def test_other_outputs_than_were_asked_for_are_refused(lengths: tuple[int, ...]) -> None:
    def finished(*lengths: int) -> SimpleNamespace:
        logprobs = [SimpleNamespace(token_ids=[3] * length, logprobs=[-1.0] * length) for length in lengths]
        outputs = [SimpleNamespace(token_ids=own.token_ids, logprobs=own, finish_reason="stop") for own in logprobs]
        return SimpleNamespace(outputs=outputs)

    assert [one.token_ids for one in completions(finished(1, 2), 5, 2)] == [[3], [3, 3]]
    with pytest.raises(PipelineError, match=f"returned {len(lengths)} outputs for prompt 5, not 2, or empty ones"):
        completions(finished(*lengths), 5, 2)


class SlowEngine:
    """Holds adapters once it has been told to, whether or not the caller still waits."""

    def __init__(self) -> None:
        self.adapters: list[int] = []
        self.answers = asyncio.Event()

    async def add_adapter(self, adapter: Adapter) -> None:
        self.adapters.append(adapter.id)
        await self.answers.wait()

    async def remove_adapter(self, adapter: Adapter) -> None:
        self.adapters.remove(adapter.id)
        await self.answers.wait()


def test_an_adapter_whose_loading_broke_off_takes_no_place_for_long() -> None:
    version = ProposalVersion(1, "digest", 1, Path("v000001"), (), PROBE, None)

    async def scene() -> None:
        engine = SlowEngine()
        swap = AdapterSwap(cast(EngineWeights, engine), capacity=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(swap.put(version), 0.01)
        assert engine.adapters == [1]
        engine.answers.set()
        second = await swap.put(version)
        assert engine.adapters == [2]
        await swap.drop(second)
        assert engine.adapters == []

    asyncio.run(scene())
