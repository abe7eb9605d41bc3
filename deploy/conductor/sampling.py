"""From leases to committed groups, whatever becomes of the samplers."""

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

FATAL = 5
"""Samplers that a prompt must have brought down, all but the first while it was alone there, to be given up.

So many that samplers which are killed for other reasons, as where machines are taken away, cost no prompts.
"""

Commit = Callable[[SampleRequest, pa.RecordBatch], Awaitable[None]]
"""Makes groups of a lease durable."""

GiveUp = Callable[[Item], None]
"""Is told of a prompt that is not sampled any more; it is on record when this returns."""


@dataclass(frozen=True)
class _Outcome:
    """What came of one attempt: the prompts that have no groups yet, and what went wrong, if anything did."""

    rest: SampleRequest
    error: ActorLostError | None

    @property
    def is_blamed(self) -> bool:
        """Whether the prompts may have brought the sampler down."""
        return self.error is not None and not self.error.sent_away


class Sampling:
    """Has one lease after another sampled, each until all its prompts have groups or are given up.

    A sampler that is lost brings all its prompts under suspicion: they are sampled again, in halves, on samplers that
    do nothing else meanwhile, until the one that brings them down is alone.

    Args:
        pool: the samplers.
        whole: strict mode: a lease is committed whole, and always sampled with all its prompts, so that its groups do
            not depend on what happened meanwhile. Halves are then only tried, and what they give is dropped.
        timeout: seconds for one lease.
        commit, give_up: see their types.
    """

    def __init__(self, pool: Pool, *, whole: bool, timeout: float, commit: Commit, give_up: GiveUp) -> None:
        self._pool = pool
        self._whole = whole
        self._timeout = timeout
        self._commit = commit
        self._give_up = give_up

    async def sample(self, lease: SampleRequest, slot: Slot) -> None:
        """Sample a lease, first in a slot that was acquired for it.

        Raises:
            UserError: something about the lease must be put right.
            PipelineError: the samplers have failed for good.
        """
        if self._whole:
            await self._sample_whole(lease, slot)
        else:
            await self._sample_in_parts(lease, slot, losses=0)

    # -- overlapped: every group counts as soon as it is finished ----------------------------------------------------

    async def _sample_in_parts(self, lease: SampleRequest, slot: Slot | None, losses: int) -> None:
        while lease.prompts:
            slot = slot or await self._pool.acquire(alone=losses > 0)
            outcome = await self._stream(lease, slot)
            lease, slot = outcome.rest, None
            if not outcome.is_blamed or not lease.prompts:
                continue
            if len(lease.prompts) > 1:
                async with asyncio.TaskGroup() as halves:
                    for half in _halves(lease):
                        halves.create_task(self._sample_in_parts(half, None, losses=1))
                return
            losses += 1
            if losses == FATAL:
                self._give_up(_item(lease, outcome.error))
                return

    async def _stream(self, lease: SampleRequest, slot: Slot) -> _Outcome:
        done: set[str] = set()
        try:
            async with aclosing(slot.stream("generate", lease, timeout=self._timeout)) as parts:
                async for groups in parts:
                    await self._commit(lease, groups)
                    done.update(groups["group_id"].to_pylist())
        except ActorLostError as error:
            return _Outcome(lease.without(done), error)
        finally:
            slot.release()
        rest = lease.without(done)
        _check_all_there(lease, rest.group_ids)
        return _Outcome(rest, None)

    # -- strict: a lease counts as a whole ---------------------------------------------------------------------------

    async def _sample_whole(self, lease: SampleRequest, slot: Slot) -> None:
        losses = 0
        while lease.prompts:
            outcome = await self._attempt(lease, slot)
            if isinstance(outcome, pa.RecordBatch):
                await self._commit(lease, outcome)
                return
            losses += not outcome.sent_away
            if losses == FATAL - 1:
                culprits = await self._culprits(lease)
                for culprit in culprits:
                    self._give_up(culprit)
                lease = lease.without({culprit.group_id for culprit in culprits})
                losses = 0 if culprits else losses
            elif losses > FATAL:
                raise PipelineError(
                    f"Lease {lease.lease_id} has brought down {losses} samplers, though parts of it could be sampled; "
                    f"the last: {outcome}"
                )
            slot = await self._pool.acquire(alone=True)

    async def _culprits(self, lease: SampleRequest) -> list[Item]:
        """The prompts of a lease that bring samplers down."""
        for _attempt in range(1 if len(lease.prompts) > 1 else FATAL - 1):
            outcome = await self._attempt(lease, await self._pool.acquire(alone=True))
            while isinstance(outcome, ActorLostError) and outcome.sent_away:
                outcome = await self._attempt(lease, await self._pool.acquire(alone=True))
            if isinstance(outcome, pa.RecordBatch):
                return []
        if len(lease.prompts) == 1:
            return [_item(lease, outcome)]
        return [culprit for half in _halves(lease) for culprit in await self._culprits(half)]

    async def _attempt(self, lease: SampleRequest, slot: Slot) -> pa.RecordBatch | ActorLostError:
        """Sample all of a lease, or learn that its sampler was lost; rows in the lease's order."""
        try:
            async with aclosing(slot.stream("generate", lease, timeout=self._timeout)) as items:
                parts = [groups async for groups in items]
        except ActorLostError as error:
            return error
        finally:
            slot.release()
        sampled = [group for groups in parts for group in groups["group_id"].to_pylist()]
        place = {group: number for number, group in enumerate(sampled)}
        _check_all_there(lease, [group for group in lease.group_ids if group not in place])
        return pa.concat_batches(parts).take(pa.array([place[group] for group in lease.group_ids]))


def _halves(lease: SampleRequest) -> list[SampleRequest]:
    middle = len(lease.prompts) // 2
    return [lease.without(lease.group_ids[middle:]), lease.without(lease.group_ids[:middle])]


def _item(lease: SampleRequest, error: object) -> Item:
    return Item(lease.purpose, lease.round, lease.prompts[0].prompt_id, lease.group_ids[0], SAMPLER, str(error))


def _check_all_there(lease: SampleRequest, missing: Sequence[str]) -> None:
    if missing:
        raise PipelineError(f"A sampler left out {len(missing)} groups of lease {lease.lease_id}, without an error.")
