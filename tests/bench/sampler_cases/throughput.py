"""In-pipeline generation (leases side by side in an actor, groups streamed and built) against bare `LLM.generate`."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from brain_align.common.policies import ProposalModel
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.sampler.service import SamplerActor
from tests.bench.sampler_cases.policy import (
    LEASE_PROMPTS,
    LEASES,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    RANK,
    VOCABULARY,
    BenchedPolicy,
    N,
    prompts,
)


class BareVllm:
    """`vllm.LLM` with its own defaults, in an actor: the same adapter, lengths and log-probabilities, nothing else.

    Without an adapter, it samples from the model itself.
    """

    def __init__(self, model: str, adapter: str | None) -> None:
        import os

        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self._adapter = None if adapter is None else LoRARequest("adapter", 1, adapter)
        adapters = {} if adapter is None else {"enable_lora": True, "max_loras": 3, "max_lora_rank": RANK}
        self._llm = LLM(
            model=model, dtype="float32", skip_tokenizer_init=True, max_model_len=PROMPT_TOKENS + OUTPUT_TOKENS,
            enforce_eager=True, logprobs_mode="processed_logprobs", **adapters,
        )  # fmt: skip

    def generate(self, texts: list[list[int]]) -> tuple[int, float]:
        """Returns the tokens generated, and the seconds it took as the caller of `LLM.generate` sees it."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            n=N, max_tokens=OUTPUT_TOKENS, stop_token_ids=[VOCABULARY - 1], logprobs=0, detokenize=False
        )
        began = time.perf_counter()
        results = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in texts], parameters, lora_request=self._adapter, use_tqdm=False
        )
        seconds = time.perf_counter() - began
        return sum(len(output.token_ids) for result in results for output in result.outputs), seconds


def lease(policy: BenchedPolicy, texts: list[list[int]], index: int) -> SampleRequest:
    drawn = tuple(Prompt(f"p{index}-{place}", "", tuple(ids), None) for place, ids in enumerate(texts))
    ids = tuple(prompt.prompt_id for prompt in drawn)
    return SampleRequest(f"l{index}", "train", 0, 0, N, index, ids, drawn, str(policy.registry.root), alone=False)


async def sampled(actor: Any, leases: list[SampleRequest]) -> tuple[int, float]:
    """All leases at once; the tokens and seconds until the last group has arrived here."""

    async def groups(one: SampleRequest) -> AsyncIterator[pa.RecordBatch]:
        async for group in actor.generate.remote(one):
            yield await group

    async def tokens(one: SampleRequest) -> int:
        return sum([len(group["outputs"].flatten().field("token_ids").flatten()) async for group in groups(one)])

    began = time.perf_counter()
    counts = await asyncio.gather(*(tokens(one) for one in leases))
    return sum(counts), time.perf_counter() - began


def measure(policy: BenchedPolicy, log: Path, repeats: int, *, merged: bool) -> list[dict[str, Any]]:
    """Tokens a second of both, in turns on the same prompts; the first turn of each warms up and is not counted.

    With `merged`, the sampler adds the adapter to the weights, and bare vLLM has none.
    """
    version = policy.publish(0)
    recipe = policy.recipe().model_dump(mode="json")
    ours = ray.remote(SamplerActor).remote(
        "sampler-0", recipe, ProposalModel(str(policy.model), RANK, merged), str(log)
    )
    ray.get(ours.ready.remote())
    bare = ray.remote(BareVllm).remote(str(policy.model), None if merged else str(version.path))
    rates: dict[str, list[float]] = {"bare vllm.LLM.generate": [], "leases through a sampler actor": []}
    for turn in range(repeats + 1):
        texts = prompts(LEASES * LEASE_PROMPTS, turn)
        cut = [texts[start : start + LEASE_PROMPTS] for start in range(0, len(texts), LEASE_PROMPTS)]
        leases = [lease(policy, part, turn * LEASES + index) for index, part in enumerate(cut)]
        cases = {
            "bare vllm.LLM.generate": lambda texts=texts: ray.get(bare.generate.remote(texts)),
            "leases through a sampler actor": lambda leases=leases: asyncio.run(sampled(ours, leases)),
        }
        for name in cases if turn % 2 else reversed(cases):
            tokens, seconds = cases[name]()
            if turn:
                rates[name].append(tokens / seconds)
    for actor in (ours, bare):
        ray.kill(actor)
    return [
        {"case": name, "tokens/s": sorted(values)[len(values) // 2], "best": max(values), "worst": min(values)}
        for name, values in rates.items()
    ]
