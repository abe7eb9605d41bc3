"""From requests to committed groups, whatever happens to the samplers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.errors import PipelineError
from brain_align.common.requests import SampleRequest
from brain_align.deploy.actors.actor import ActorLostError
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.actors.replica import Slot
from brain_align.deploy.schedule.quarantine import SAMPLER, Item

FATAL_LOSSES = 5
"""A prompt is given up when it has crashed so many samplers, all but the first while it was alone there.

The number is this high because samplers are also lost for other reasons, e.g. machines that are taken away.
"""


@dataclass(frozen=True)
class Sampling:
    """Has each request sampled until all its prompts have groups or are given up.

    If a sampler is lost, all its prompts are suspects: they are sampled again, in halves, on samplers that do nothing
    else meanwhile, until the prompt that brings samplers down is alone.
    """

    pool: Pool  # the samplers
    # Strict mode: a request is committed whole and always sampled with all its prompts, so that its groups do not
    # depend on what happened meanwhile. Halves are only tried then, and their groups are dropped.
    whole: bool
    timeout: float  # seconds for one request
    commit: Callable[[SampleRequest, pa.RecordBatch], Awaitable[None]]  # makes groups of a request durable
    give_up: Callable[[Item], None]  # puts a prompt on record that is not sampled any more

    async def sample(self, request: SampleRequest, slot: Slot) -> None:
        """Sample a request, first in a slot that was acquired for it.

        Raises:
            UserError: the user must correct something about the request.
            PipelineError: the samplers have failed for good.
        """
        if self.whole:
            await self._sample_whole(request, slot)
        else:
            await self._sample_in_parts(request, slot, losses=0)

    async def _sample_in_parts(self, request: SampleRequest, slot: Slot | None, losses: int) -> None:
        """Sample a request, overlapped: every group counts as soon as it is finished."""
        while request.prompts:
            slot = slot or await self.pool.acquire(alone=losses > 0)
            request, error = await self._stream(request, slot)
            slot = None
            if error is None or error.sent_away or not request.prompts:  # the prompts are not to blame
                continue
            if len(request.prompts) > 1:
                async with asyncio.TaskGroup() as halves:
                    for half in _halves(request):
                        halves.create_task(self._sample_in_parts(half, None, losses=1))
                return
            losses += 1
            if losses == FATAL_LOSSES:
                self.give_up(_item(request, error))
                return

    async def _stream(self, request: SampleRequest, slot: Slot) -> tuple[SampleRequest, ActorLostError | None]:
        """Commit groups as they come; return what has none yet, and the error by which the sampler was lost."""
        done: set[str] = set()
        try:
            async with aclosing(slot.stream("generate", request, timeout=self.timeout)) as parts:
                async for groups in parts:
                    await self.commit(request, groups)
                    done.update(groups["group_id"].to_pylist())
        except ActorLostError as error:
            return request.without(done), error
        finally:
            slot.release()
        rest = request.without(done)
        _check_all_there(request, rest.group_ids)
        return rest, None

    async def _sample_whole(self, request: SampleRequest, slot: Slot) -> None:
        """Sample a request in strict mode: it counts as a whole."""
        losses = 0
        while request.prompts:
            outcome = await self._attempt(request, slot)
            if isinstance(outcome, pa.RecordBatch):
                await self.commit(request, outcome)
                return
            losses += not outcome.sent_away
            if losses == FATAL_LOSSES - 1:
                culprits = await self._culprits(request)
                for culprit in culprits:
                    self.give_up(culprit)
                request = request.without({culprit.group_id for culprit in culprits})
                losses = 0 if culprits else losses
            elif losses > FATAL_LOSSES:
                raise PipelineError(
                    f"Request {request.lease_id} crashed {losses} samplers as a whole, but none of its parts does "
                    f"alone; the last error: {outcome}"
                )
            slot = await self.pool.acquire(alone=True)

    async def _culprits(self, request: SampleRequest) -> list[Item]:
        """Return the prompts of a request that bring samplers down."""
        for _attempt in range(1 if len(request.prompts) > 1 else FATAL_LOSSES - 1):
            outcome = await self._attempt(request, await self.pool.acquire(alone=True))
            while isinstance(outcome, ActorLostError) and outcome.sent_away:
                outcome = await self._attempt(request, await self.pool.acquire(alone=True))
            if isinstance(outcome, pa.RecordBatch):
                return []
        if len(request.prompts) == 1:
            return [_item(request, outcome)]
        return [culprit for half in _halves(request) for culprit in await self._culprits(half)]

    async def _attempt(self, request: SampleRequest, slot: Slot) -> pa.RecordBatch | ActorLostError:
        """Return all groups of a request, in its order, or the error by which its sampler was lost."""
        try:
            async with aclosing(slot.stream("generate", request, timeout=self.timeout)) as items:
                parts = [groups async for groups in items]
        except ActorLostError as error:
            return error
        finally:
            slot.release()
        sampled = [group for groups in parts for group in groups["group_id"].to_pylist()]
        place = {group: number for number, group in enumerate(sampled)}
        _check_all_there(request, [group for group in request.group_ids if group not in place])
        return pa.concat_batches(parts).take(pa.array([place[group] for group in request.group_ids]))


def _halves(request: SampleRequest) -> list[SampleRequest]:
    middle = len(request.prompts) // 2
    return [request.without(request.group_ids[middle:]), request.without(request.group_ids[:middle])]


def _item(request: SampleRequest, error: object) -> Item:
    return Item(request.purpose, request.round, request.prompts[0].prompt_id, request.group_ids[0], SAMPLER, str(error))


def _check_all_there(request: SampleRequest, missing: Sequence[str]) -> None:
    if missing:
        raise PipelineError(f"A sampler left out {len(missing)} groups of request {request.lease_id} without an error.")
