"""The sampling service: actors that receive requests and stream groups back."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import EngineLostError, EngineUnfitError, UserError
from brain_align.common.logs import redirect_output
from brain_align.common.policies import ProposalModel
from brain_align.common.requests import SampleRequest
from brain_align.common.system.last_error import last_error, log_size
from brain_align.common.system.run_place import check_place
from brain_align.sampler.engine.failures import may_pass
from brain_align.sampler.reports import Heartbeat

if TYPE_CHECKING:
    from brain_align.sampler.sampler import Sampler


class SamplerActor:
    """One sampler as an asynchronous actor: any number of requests at a time, and an answer to health checks meanwhile.

    An actor whose engine has died ends itself, so that it is noticed and restarted.
    """

    def __init__(self, name: str, recipe: dict[str, Any], model: ProposalModel, log_path: str) -> None:
        """Load nothing yet: an error raised here would reach the caller as the death of the actor."""
        self._log = Path(log_path), log_size(log_path)
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
            NotSharedError: this node does not see the run directory.
        """
        await asyncio.to_thread(check_place)
        from brain_align.sampler.sampler import Sampler  # torch and vLLM take seconds, which only this process spends

        self._sampler = await asyncio.to_thread(Sampler, self._name, self._recipe, self._model)
        return self._name

    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        """Sample a request: `Sampler.generate`.

        Raises:
            UserError: also where the engine cannot run the model at all; an actor whose engine is lost otherwise ends.
        """
        try:
            async for group in self._sampler.generate(request):
                yield group
        except EngineUnfitError as error:
            if (reason := await asyncio.to_thread(last_error, *self._log)) is None or may_pass(reason):
                self._end(error)
            raise UserError(
                f"vLLM's engine started with policy.model={self._model.source}, but died when it first computed with "
                f"it: {reason}. It cannot run this model here: choose another, or other settings under sampler.vllm"
            ) from error
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
