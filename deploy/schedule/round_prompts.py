"""The groups that make up a round: those of the prompts that it draws, or those that a store has of it."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from brain_align.common.config.training import AlgorithmSection
from brain_align.common.data.prompts import PromptOrder
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.deploy.schedule.request_plan import RequestPlan

FIXED_AHEAD = 8
"""Rounds that are sampled ahead of the learner from a fixed proposal, so that samplers never wait for it."""

_ROUNDS_AT_HAND = 16  # whose prompts are kept: few are asked for again


class RoundGroups(ABC):
    """Names the groups of each round by keys, which are known before the groups are."""

    @abstractmethod
    def keys(self, round_: int) -> Sequence[Hashable]:
        """Return the keys of a round's groups, in the order in which its first pass trains them."""

    @abstractmethod
    def key(self, round_: int, prompt_id: str, group: str) -> Hashable:
        """Return the key of a group."""


class DrawnPrompts(RoundGroups):
    """Has each round draw prompts, with one group per prompt."""

    def __init__(self, algorithm: AlgorithmSection, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts = prompts
        self._order = PromptOrder(len(prompts), algorithm.prompts_per_round, seed)
        self._drawn: dict[int, list[Prompt]] = {}

    def prompts(self, round_: int) -> list[Prompt]:
        """Return the prompts that a round draws."""
        if round_ not in self._drawn:
            self._drawn[round_] = [self._prompts[index] for index in self._order.indices(round_)]
            if len(self._drawn) > _ROUNDS_AT_HAND:
                del self._drawn[next(iter(self._drawn))]
        return self._drawn[round_]

    @override
    def keys(self, round_: int) -> list[tuple[int, str]]:
        return [(round_, prompt.prompt_id) for prompt in self.prompts(round_)]

    @override
    def key(self, round_: int, prompt_id: str, group: str) -> tuple[int, str]:
        return round_, prompt_id


class StoredGroups(RoundGroups):
    """Gives each round the groups that a store has of it, in the order in which they were committed."""

    def __init__(self, index: pa.Table) -> None:
        self._index = index.select(["round", "group_id"])

    @override
    def keys(self, round_: int) -> list[str]:
        return self._index.filter(pc.equal(self._index["round"], round_))["group_id"].to_pylist()

    @override
    def key(self, round_: int, prompt_id: str, group: str) -> str:
        return group


@dataclass(frozen=True)
class TrainingRequests:
    """Decides which requests of which rounds may be given out.

    This admission keeps the bound on staleness. Round r's groups are trained while the newest proposal version is r, so
    a request of round r may be sampled from version v only if r - v <= max_staleness. With max_staleness 0 this is
    exactly Algorithm 1. Nothing that was sampled is ever dropped. A fixed proposal does not become stale: all rounds
    are sampled from version 0, and are admitted early to keep the samplers busy.
    """

    algorithm: AlgorithmSection
    round_prompts: DrawnPrompts
    plan: RequestPlan
    n: int
    fixed: bool = field(kw_only=True)

    def admitted(self, version: int) -> range:
        """Return the rounds that may be sampled from `version` while it is the newest."""
        ahead = max(FIXED_AHEAD, self.algorithm.max_staleness) if self.fixed else self.algorithm.max_staleness
        return range(version, min(version + ahead + 1, self.algorithm.rounds))

    def of_round(self, round_: int, version: int, sampled: Set[str], left_out: Set[str]) -> list[SampleRequest]:
        """Return the requests of a round that are still to be sampled from a version.

        With max_staleness 0 a request is sampled whole or not at all, so that it always gives the same groups.
        `sampled` are the ids of prompts that have a group, `left_out` those of prompts that are not to be sampled.
        """
        sampled_from = 0 if self.fixed else version
        requests = self.plan.requests("train", round_, sampled_from, self.n, self.round_prompts.prompts(round_))
        usable = [without_prompts(request, left_out) for request in requests]
        if self.algorithm.strict:
            return [request for request in usable if any(prompt.prompt_id not in sampled for prompt in request.prompts)]
        return [rest for request in usable if (rest := without_prompts(request, sampled)).prompts]

    def up_to_date(self, request: SampleRequest, newest: int) -> SampleRequest:
        """Return a request as it is given out: after a wait, it is sampled from a version published meanwhile.

        The version is never beyond its round, as another round is trained while that one is the newest.
        """
        if self.fixed or self.algorithm.strict:
            return request
        version = min(newest, request.round)
        return request if version == request.version else self.plan.from_version(request, version)


def without_prompts(request: SampleRequest, prompts: Set[str]) -> SampleRequest:
    """Return the request without these prompts, which are named by their ids."""
    if not prompts:
        return request
    pairs = zip(request.group_ids, request.prompts, strict=True)
    return request.without({group for group, prompt in pairs if prompt.prompt_id in prompts})
