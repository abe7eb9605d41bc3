"""A sampler: an engine, the versions that it holds, and the requests that it samples."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.nn.models.causal_lm import load_tokenizer
from brain_align.common.nn.models.end_tokens import end_tokens
from brain_align.common.policies import ProposalModel
from brain_align.common.requests import SampleRequest
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.engine.settings import EngineSettings
from brain_align.sampler.generation import Generation, check_prompts, generate_groups
from brain_align.sampler.reports import Heartbeat
from brain_align.sampler.weights.delivery import AdapterSwap, Delivery, MergedAdapters, WeightsByFile, WeightsByTransfer
from brain_align.sampler.weights.engine_weights import EngineWeights
from brain_align.sampler.weights.versions import Versions


class Sampler:
    """Samples several requests at a time, each from the published version that it names."""

    def __init__(self, name: str, recipe: Recipe, model: ProposalModel) -> None:
        """Start the engine.

        Raises:
            UserError: the model cannot be loaded.
        """
        live = recipe.algorithm.max_staleness + 1
        self._engine = Engine(_engine_settings(recipe, model, adapters=live + 1))
        self._versions = Versions(
            name,
            self._engine,
            _delivery(name, self._engine, recipe, model, live + 1),
            recipe.policy.dtype,
            recipe.timeouts.load,
        )
        tokenizer = load_tokenizer(recipe.policy.tokenizer or recipe.policy.model)
        self._how = Generation(recipe.sampling, end_tokens(recipe.policy.model, tokenizer), tokenizer, name)
        self._in_flight = 0  # outputs
        self._at_work_since = time.monotonic()
        self._outputs = 0
        self._tokens = 0

    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        """Sample a request; yield GROUPS rows, one per prompt, as they finish.

        Raises:
            UserError: the model cannot read a prompt, or the request's version is missing, damaged or another model's.
            PipelineError: the engine broke its contract, died, or took too long to load the version.
        """
        room = self._engine.max_model_tokens - self._how.sampling.max_tokens
        check_prompts(request, vocabulary=self._engine.vocabulary, max_prompt_tokens=room)
        open_ = request.n * len(request.prompts)
        if not self._in_flight:
            self._at_work_since = time.monotonic()
        self._in_flight += open_
        try:
            async with (
                self._versions.use(request.policies, request.version, alone=request.alone) as used,
                aclosing(generate_groups(self._engine, request, used, self._how)) as groups,
            ):
                self._at_work_since = time.monotonic()
                async for group in groups:
                    open_ -= request.n
                    self._count(group, request.n)
                    yield group
        finally:
            self._in_flight -= open_

    def heartbeat(self) -> Heartbeat:
        """Return the state of this sampler's work.

        Raises:
            EngineLostError: the engine has died.
        """
        self._engine.check()
        running = min(self._in_flight, self._engine.running_at_most)
        last = max(self._engine.step_log.newest, self._at_work_since)
        idle = 0.0 if self._versions.phases else time.monotonic() - last
        return Heartbeat(running, self._in_flight - running, self._outputs, self._tokens, idle)

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _count(self, group: pa.RecordBatch, n: int) -> None:
        self._in_flight -= n
        self._outputs += n
        self._tokens += len(group["outputs"].flatten().field("token_ids").flatten())


def _delivery(name: str, engine: Engine, recipe: Recipe, model: ProposalModel, capacity: int) -> Delivery:
    weights = EngineWeights(engine)
    if model.adapter_rank is not None:
        return MergedAdapters(weights) if model.merged else AdapterSwap(weights, capacity)
    if recipe.sampler.delivery == "transfer":
        return WeightsByTransfer(name, weights, recipe.timeouts.load)
    return WeightsByFile(weights)


def _engine_settings(recipe: Recipe, model: ProposalModel, adapters: int) -> EngineSettings:
    return EngineSettings(
        model=model.source,
        dtype=recipe.policy.dtype,
        adapter_rank=None if model.merged else model.adapter_rank,
        adapters=adapters,
        receives=recipe.sampler.delivery == "transfer",
        merges=model.merged,
        max_model_tokens=recipe.window,
        tensor_parallel=recipe.sampler.tensor_parallel,
        repeatable=recipe.algorithm.strict,
        threads=recipe.sampler.threads,
        kv_cache_gib=recipe.sampler.kv_cache_gib,
        extra=recipe.sampler.vllm,
    )
