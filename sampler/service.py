"""The sampling service: actors that receive requests and stream groups back."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import EngineLostError
from brain_align.common.logs import redirect_output
from brain_align.common.policies import ProposalModel
from brain_align.common.requests import SampleRequest
from brain_align.sampler.reports import Heartbeat

if TYPE_CHECKING:
    from brain_align.sampler.sampler import Sampler


class SamplerActor:
    """One sampler as an asynchronous actor: any number of requests at a time, and an answer to health checks meanwhile.

    An actor whose engine has died ends itself, so that it is noticed and restarted.
    """

    def __init__(self, name: str, recipe: dict[str, Any], model: ProposalModel, log_path: str) -> None:
        """Load nothing yet: an error raised here would reach the caller as the death of the actor."""
        redirect_output(Path(log_path))
        logging.basicConfig(format="%(asctime)s %(message)s", force=True)
        logging.getLogger("brain_align.sampler").setLevel(logging.INFO)
        self._name = name
        self._recipe = Recipe.model_validate(recipe)
        self._model = model
        self._sampler: Sampler

    async def ready(self) -> str:
        """Start the engine.

        Raises:
            UserError: the model cannot be loaded.
        """
        from brain_align.sampler.sampler import Sampler  # torch and vLLM take seconds, which only this process spends

        self._sampler = await asyncio.to_thread(Sampler, self._name, self._recipe, self._model)
        return self._name

    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        """Sample a request: `Sampler.generate`."""
        try:
            async for group in self._sampler.generate(request):
                yield group
        except EngineLostError as error:
            self._end(error)

    async def heartbeat(self) -> Heartbeat:
        """Return the sign of life of `Sampler.heartbeat`."""
        try:
            return self._sampler.heartbeat()
        except EngineLostError as error:
            self._end(error)

    def _end(self, error: EngineLostError) -> NoReturn:
        print(f"{self._name} ends itself: {error}", flush=True)
        os._exit(1)
