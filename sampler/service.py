"""The sampling service: actors that take leases and return groups."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.config.recipe import Recipe
from common.leases import Lease
from common.logs import redirect_output
from common.policies import PolicyRegistry, ProposalModel, ProposalVersion
from sampler.reports import Pulse


class SamplerActor:
    """One vLLM engine that samples from whichever published proposal version a lease names."""

    def __init__(self, name: str, recipe: dict[str, Any], model: ProposalModel, log_path: str) -> None:
        """Load nothing yet: an error raised here would reach the caller as the death of the actor.

        Args:
            name: of the replica.
            recipe: the run's.
            model: what the published versions are versions of.
            log_path: the file that gets this process's output.
        """
        redirect_output(Path(log_path))
        self._name = name
        self._recipe = Recipe.model_validate(recipe)
        self._model = model
        self._running = 0
        self._verified: dict[tuple[str, int], ProposalVersion] = {}

    async def ready(self) -> str:
        """Start the engine.

        Raises:
            UserError: the model cannot be loaded.
        """
        from sampler.engine import Engine, EngineSettings

        policy, settings = self._recipe.policy, self._recipe.sampler
        self._engine = Engine(
            EngineSettings(
                model=self._model.source,
                dtype=policy.dtype,
                adapter_rank=self._model.adapter_rank,
                max_model_tokens=self._recipe.data.max_prompt_tokens + self._recipe.sampling.max_tokens,
                threads=settings.threads,
                kv_cache_gib=settings.kv_cache_gib,
                extra=settings.vllm,
            )
        )
        from common.nn.causal_lm import load_tokenizer  # torch, after the engine has set its environment

        self._tokenizer = load_tokenizer(policy.tokenizer or policy.model)
        return self._name

    async def pulse(self) -> Pulse:
        """How the engine is doing."""
        return Pulse(self._running, 0, 0, 0, 0.0)

    async def generate(self, lease: Lease) -> AsyncIterator[pa.RecordBatch]:
        """Sample a lease; yields GROUPS rows, one per prompt.

        Raises:
            UserError: the lease's proposal version is missing or damaged.
        """
        from sampler.generation import generate_groups

        self._running += 1
        try:
            yield generate_groups(
                self._engine,
                lease,
                self._proposal(lease.policies, lease.version),
                self._recipe.sampling,
                eos_token_id=self._tokenizer.eos_token_id,
                decode=self._decode,
                sampler_id=self._name,
            )
        finally:
            self._running -= 1

    def _proposal(self, policies: str, version: int) -> ProposalVersion:
        if (policies, version) not in self._verified:
            self._verified[policies, version] = PolicyRegistry(Path(policies)).verify(version)
        return self._verified[policies, version]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)
