"""A new version comes to a sampler at work: how long until it is sampled from, and what running requests notice."""

import asyncio
import statistics
import time
from itertools import pairwise
from typing import Any

from brain_align.common.config.sampling import SamplingSection
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.engine.settings import EngineSettings
from brain_align.sampler.weights.delivery import AdapterSwap, MergedAdapters
from brain_align.sampler.weights.engine_weights import EngineWeights
from brain_align.sampler.weights.versions import Versions
from tests.bench.sampler_cases.policy import (
    LEASE_PROMPTS,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    RANK,
    VOCABULARY,
    BenchedPolicy,
    N,
    prompts,
)

VERSIONS_HELD = 3
RUNNING = 16  # prompts of version 0, which goes on meanwhile
LONG = 448  # tokens of their outputs: nobody begins or ends while it is measured
WINDOW = 20  # steps before a publication that say what a step usually takes


def measure(policy: BenchedPolicy, publications: int) -> list[dict[str, Any]]:
    """One row a publication."""
    settings = EngineSettings(
        model=str(policy.model), dtype="float32", adapter_rank=RANK, receives=False, merges=False,
        adapters=VERSIONS_HELD, max_model_tokens=PROMPT_TOKENS + LONG, tensor_parallel=1, repeatable=False, threads=1,
        kv_cache_gib=1, extra={},
    )  # fmt: skip
    policy.publish(0)
    for version in range(1, publications + 1):
        policy.publish(version)
    engine = Engine(settings)
    try:
        return asyncio.run(_measure(engine, policy, publications))
    finally:
        engine.close()


def measure_merged(policy: BenchedPolicy, publications: int) -> list[dict[str, Any]]:
    """One row per publication whose adapter is merged: until its lease, alone, has the first token of each output."""
    settings = EngineSettings(
        model=str(policy.model), dtype=policy.dtype, adapter_rank=None, receives=False, merges=True, adapters=1,
        max_model_tokens=PROMPT_TOKENS + policy.output_tokens, tensor_parallel=1, repeatable=True, threads=1,
        kv_cache_gib=1, extra={},
    )  # fmt: skip
    for version in range(publications + 1):
        policy.publish(version)
    engine = Engine(settings)
    versions = Versions("sampler-0", engine, MergedAdapters(EngineWeights(engine)), policy.dtype, 60)

    async def begun(version: int) -> dict[str, Any]:
        published = time.monotonic()
        async with versions.use(str(policy.registry.root), version, alone=True) as used:
            ready = time.monotonic()
            sampling = SamplingSection(n=N, max_tokens=1)
            texts = prompts(LEASE_PROMPTS, version, policy.vocabulary)
            async for _ in engine.sample(
                texts, sampling, n=N, end_tokens=policy.ends, adapter=used.adapter, seed=version
            ):
                pass
        return {"version": version, "ready s": ready - published, "first tokens s": time.monotonic() - published}

    async def all_begun() -> list[dict[str, Any]]:
        return [await begun(version) for version in range(publications + 1)][1:]  # the first warms up

    try:
        return asyncio.run(all_begun())
    finally:
        engine.close()


async def _measure(engine: Engine, policy: BenchedPolicy, publications: int) -> list[dict[str, Any]]:
    ends: list[float] = []
    engine.step_log.watch = ends.append
    versions = Versions("sampler-0", engine, AdapterSwap(EngineWeights(engine), VERSIONS_HELD), "float32", 60)
    async with versions.use(str(policy.registry.root), 0, alone=False) as used:
        running = asyncio.create_task(_sample(engine, prompts(RUNNING, 0), used.adapter, LONG))
        await _steps(engine, WINDOW)
        rows = []
        for version in range(1, publications + 1):
            await _steps(engine, WINDOW)
            rows.append({"version": version, **await _bring(engine, ends, versions, policy, version)})
        if running.done():
            raise RuntimeError("the requests that were to be disturbed had ended; make LONG larger")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return rows


async def _steps(engine: Engine, count: int) -> None:
    """Wait for so many steps."""
    seen = engine.step_log.newest
    while count:
        await asyncio.sleep(0.001)
        if engine.step_log.newest > seen:
            seen, count = engine.step_log.newest, count - 1


async def _bring(
    engine: Engine, ends: list[float], versions: Versions, policy: BenchedPolicy, version: int
) -> dict[str, Any]:
    """A lease of a version that the sampler has not seen yet: verified, loaded, probed, and its first group begun.

    `ends` are the times at which the engine's steps have ended so far.
    """
    published = time.monotonic()
    async with versions.use(str(policy.registry.root), version, alone=False) as used:
        sampling = asyncio.create_task(_sample(engine, prompts(1, version), used.adapter, OUTPUT_TOKENS))
        ready = time.monotonic()
        await _steps(engine, 2)  # one may have been under way
        begun = time.monotonic()
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
    steps = [(later, later - earlier) for earlier, later in pairwise(ends)]
    before = [seconds for end, seconds in steps if end < published][-WINDOW:]
    until = min(end for end in ends if end > ready)  # the step during which it became ready
    during = [seconds for end, seconds in steps if published < end <= until]
    step = statistics.median(before)
    return {
        "ready s": ready - published,
        "first group s": begun - published,
        "usual step ms": 1000 * step,
        "longest usual step ms": 1000 * max(before),
        "longest step meanwhile ms": 1000 * max(during),
        "delay in steps": (max(during) - step) / step,
    }


async def _sample(engine: Engine, texts: list[list[int]], adapter: Any, tokens: int) -> None:
    sampling = SamplingSection(n=N, max_tokens=tokens)
    async for _ in engine.sample(texts, sampling, n=N, end_tokens=[VOCABULARY - 1], adapter=adapter, seed=None):
        pass
