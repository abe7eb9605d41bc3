"""A new version comes to a sampler at work: how long until it is sampled from, and what running requests notice."""

import asyncio
import statistics
import time
from itertools import pairwise
from typing import Any

from common.config.recipe import SamplingSection
from sampler.delivery import AdapterSwap
from sampler.engine import Engine
from sampler.engine_settings import EngineSettings
from sampler.versions import Versions
from tests.bench.sampler_cases.policy import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    RANK,
    VOCABULARY,
    BenchedPolicy,
    N,
    prompts,
)

VERSIONS_HELD = 3
WINDOW = 3.0  # seconds of steps before a publication that say what a step usually takes


def measure(policy: BenchedPolicy, publications: int) -> list[dict[str, Any]]:
    """One row a publication."""
    settings = EngineSettings(
        model=str(policy.model), dtype="float32", adapter_rank=RANK, adapters=VERSIONS_HELD,
        max_model_tokens=PROMPT_TOKENS + OUTPUT_TOKENS, tensor_parallel=1, repeatable=False, threads=1,
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


async def _measure(engine: Engine, policy: BenchedPolicy, publications: int) -> list[dict[str, Any]]:
    versions = Versions("sampler-0", engine, AdapterSwap(engine, VERSIONS_HELD), "float32", 60)
    running = asyncio.create_task(_keep_busy(engine, versions, policy))
    rows = []
    try:
        for version in range(1, publications + 1):
            await asyncio.sleep(WINDOW)
            rows.append({"version": version, **await _bring(engine, versions, policy, version)})
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return rows


async def _keep_busy(engine: Engine, versions: Versions, policy: BenchedPolicy) -> None:
    """Old leases, one as soon as another ends, on version 0: what must not notice."""

    async def leases(seed: int) -> None:
        while True:
            async with versions.use(str(policy.registry.root), 0, alone=False) as used:
                await _sample(engine, prompts(4, seed), used.adapter)

    async with asyncio.TaskGroup() as tasks:
        for seed in range(4):
            tasks.create_task(leases(seed))


async def _bring(engine: Engine, versions: Versions, policy: BenchedPolicy, version: int) -> dict[str, Any]:
    """A lease of a version that the sampler has not seen yet: verified, loaded, probed, and its first group begun."""
    published = time.monotonic()
    async with versions.use(str(policy.registry.root), version, alone=False) as used:
        sampling = asyncio.create_task(_sample(engine, prompts(1, version), used.adapter))
        ready = time.monotonic()
        while engine.step_times[-1] <= ready:
            await asyncio.sleep(0.001)
        begun = engine.step_times[-1]
        await sampling
    before = [
        later - earlier for earlier, later in pairwise(engine.step_times) if published - WINDOW < later < published
    ]
    during = [later - earlier for earlier, later in pairwise(engine.step_times) if published < later <= begun]
    step = statistics.median(before)
    return {
        "first group s": begun - published,
        "usual step ms": 1000 * step,
        "longest usual step ms": 1000 * max(before),
        "longest step meanwhile ms": 1000 * max(during),
        "delay in steps": (max(during) - step) / step,
    }


async def _sample(engine: Engine, texts: list[list[int]], adapter: Any) -> None:
    sampling = SamplingSection(n=N, max_tokens=OUTPUT_TOKENS)
    async for _ in engine.sample(texts, sampling, n=N, eos_token_id=VOCABULARY - 1, adapter=adapter, seed=None):
        pass
