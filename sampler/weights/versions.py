"""The proposal versions that the engine holds: verified, loaded and probed before use, and dropped to make room.

    use -> _verify -> _bring: fetch, make room, put, probe -> requests sample -> dropped when room is needed

delivery.py holds the ways into the engine, engine_weights.py vLLM's calls. For weights that are sent, receiving.py runs
in vLLM's workers, and transfer.py connects it to vLLM. The learner's side is `brain_align.learner.publishing`.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from brain_align.common.errors import DeliveryError, EngineLostError, EngineUnfitError, PipelineError, UserError
from brain_align.common.policies import PolicyRegistry, ProposalVersion, UnreadableVersionError
from brain_align.sampler.engine.data import Adapter
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.weights.delivery import Delivery

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

PROBE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
"""Nats per token, on average over the probe, by which sampler and learner may differ. In float32 their kernels differ
by 1e-6, with 4-bit weights by 1e-4. In bfloat16 either rounds a logit of 16 to 1/16; improbable tokens, of which a
probe has many, get the largest errors."""

VISIBLE_WITHIN = 60.0
"""Seconds within which a published version must be visible here: for so long network file systems may cache that a
directory does not exist."""

_LOOK_AGAIN = 0.5  # seconds


@dataclass
class _Held:
    """A version in the engine; `users` counts the requests that sample from it."""

    version: int
    adapter: Adapter | None
    gap: float
    users: int = 0


@dataclass(frozen=True)
class Use:
    """The version that one request samples from, valid until the request is done."""

    proposal: ProposalVersion  # as its own run published it
    adapter: Adapter | None  # that requests must name; None for a whole model
    gap: float  # nats per token between the learner's and the engine's log-probabilities of the probe


class Versions:
    """Brings versions into the engine on demand: verified, loaded and probed, each with a time limit.

    Versions are identified by the digest of their files, so that several runs may share a sampler. To make room, the
    least recently used version that no request uses is dropped.

    Attributes:
        phases: number of phases under way, each of which has its time limit (in seconds).
    """

    def __init__(self, sampler: str, engine: Engine, delivery: Delivery, dtype: str, time_limit: float) -> None:
        self._sampler = sampler
        self._engine = engine
        self._delivery = delivery
        self._tolerance = PROBE_TOLERANCE[dtype]
        self._time_limit = time_limit
        self._held: OrderedDict[str, _Held] = OrderedDict()  # by digest, the least recently used first
        self._verified: dict[tuple[str, int], ProposalVersion] = {}
        self._entrance = asyncio.Lock()  # first come, first served
        self._left = asyncio.Event()
        self._has_held = False  # any version: the engine can run the model
        self.phases = 0

    @asynccontextmanager
    async def use(self, policies: str, version: int, *, alone: bool) -> AsyncIterator[Use]:
        """Hold a version in the engine for one request; with `alone`, no other request uses the engine meanwhile.

        Raises:
            UserError: the version is missing, damaged, made for another model, or not what the learner has. Versions
                that were there before stay.
            DeliveryError: a phase took too long, or failed for another reason that may pass.
            EngineLostError: the engine has died; an EngineUnfitError: before it had brought in any version.
        """
        proposal = await self._verify(policies, version)
        async with self._entrance:
            if alone:
                await self._until(lambda: not any(held.users for held in self._held.values()))
            held = await self._bring(proposal)
            use = Use(proposal, held.adapter, held.gap)
            if alone:
                yield use
                return
            held.users += 1
        try:
            yield use
        finally:
            held.users -= 1
            self._left.set()

    async def _verify(self, policies: str, version: int) -> ProposalVersion:
        if (policies, version) not in self._verified:
            registry = PolicyRegistry(Path(policies))
            reading = self._read(registry.verify if self._delivery.reads_files else registry.get, version)
            self._verified[policies, version] = await self._phase("verify", version, reading)
        return self._verified[policies, version]

    async def _read(self, read: Callable[[int], ProposalVersion], version: int) -> ProposalVersion:
        """Read a version, which may take a moment to become visible here."""
        patience = time.monotonic() + min(VISIBLE_WITHIN, self._time_limit / 2)
        while True:
            try:
                return await asyncio.to_thread(read, version)
            except UnreadableVersionError:
                if time.monotonic() > patience:
                    raise
            await asyncio.sleep(_LOOK_AGAIN)

    async def _bring(self, proposal: ProposalVersion) -> _Held:
        """Bring a version into the engine if it is not there; one call at a time."""
        if proposal.digest in self._held:
            self._held.move_to_end(proposal.digest)
            return self._held[proposal.digest]
        if not await self._phase("fetch", proposal.version, self._delivery.fetch(proposal)):
            reading = self._read(PolicyRegistry(proposal.path.parent).verify, proposal.version)
            await self._phase("verify", proposal.version, reading)
        await self._make_room()
        began = time.monotonic()
        try:
            adapter = await self._phase("load", proposal.version, self._delivery.put(proposal))
            gap = await self._probed(proposal, adapter)
        except BaseException:
            self._forget(proposal.digest)
            raise
        seconds = time.monotonic() - began
        _LOG.info(
            "%s holds version %d (%s): loaded and probed in %.2f s, %.2g nats per token from the learner's probe",
            self._sampler,
            proposal.version,
            proposal.digest,
            seconds,
            gap,
        )
        self._has_held = True
        held = self._held[proposal.digest] = _Held(proposal.version, adapter, gap)
        return held

    async def _probed(self, proposal: ProposalVersion, adapter: Adapter | None) -> float:
        """Return the probe's gap; drop the version if the probe fails for any reason."""
        try:
            return await self._phase("probe", proposal.version, self._compare(proposal, adapter))
        except BaseException:  # also when the request is cancelled
            with contextlib.suppress(PipelineError):  # the first error is the one that counts
                await self._phase("drop", proposal.version, self._delivery.drop(adapter))
            raise

    def _forget(self, digest: str) -> None:
        """Forget that a version's files were verified, so that they are before it is loaded again."""
        self._verified = {key: known for key, known in self._verified.items() if known.digest != digest}

    async def _make_room(self) -> None:
        if len(self._held) < self._delivery.capacity:
            return
        await self._until(lambda: any(not held.users for held in self._held.values()))
        oldest = next(digest for digest, held in self._held.items() if not held.users)
        self._forget(oldest)
        await self._delivery.drop(self._held.pop(oldest).adapter)

    async def _compare(self, proposal: ProposalVersion, adapter: Adapter | None) -> float:
        """Return the mean gap between the engine's and the learner's log-probabilities of the probe."""
        probe = proposal.probe
        logprobs = await self._engine.continuation_logprobs(probe.prompt, probe.continuation, adapter)
        gap = fmean(abs(ours - theirs) for ours, theirs in zip(logprobs, probe.logprobs, strict=True))
        if not gap <= self._tolerance:  # NaN is refused too
            raise UserError(
                f"the engine gives the version's probe {sum(logprobs):.6g} nats, the learner gave it "
                f"{sum(probe.logprobs):.6g} ({gap:.2g} nats per token apart, {self._tolerance:g} are allowed): they "
                f"do not hold the same weights; compare policy.model, dtype and quantisation of both."
            )
        return gap

    async def _phase(self, phase: str, version: int, work: Awaitable[T]) -> T:
        """Run a phase of bringing a version in; errors name the sampler, the version and the phase."""
        self.phases += 1
        try:
            return await asyncio.wait_for(work, self._time_limit)
        except EngineLostError as error:
            raise error if self._has_held else EngineUnfitError(str(error)) from error
        except TimeoutError:
            raise DeliveryError(
                f"{self._sampler} did not finish phase `{phase}` of proposal version {version} within "
                f"{self._time_limit:g} s (timeouts.load)."
            ) from None
        except (UserError, DeliveryError) as error:
            kept = ", ".join(str(held.version) for held in self._held.values()) or "none"
            kind = DeliveryError if isinstance(error, DeliveryError) else UserError
            raise kind(
                f"{self._sampler} refuses proposal version {version} in phase `{phase}` (it keeps: {kept}): {error}"
            ) from error
        finally:
            self.phases -= 1

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until requests have ended and the condition holds; the caller must hold the entrance."""
        while not holds():
            self._left.clear()
            await self._left.wait()
