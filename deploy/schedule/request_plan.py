"""The requests into which rounds and evaluations are cut."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from brain_align.common.config.recipe import Recipe
from brain_align.common.identity import group_id, seed_from
from brain_align.common.requests import Prompt, Purpose, SampleRequest


@dataclass(frozen=True)
class RequestPlan:
    """Cuts rounds and evaluations into requests, the same ones after every restart."""

    run_id: str  # part of every group's id
    seed: int
    lease_prompts: int  # prompts per request
    policies: Path  # where the versions are published
    alone: bool = field(default=True, kw_only=True)  # each request is sampled on its own (`SampleRequest.alone`)
    # the run that shares its groups of version 0, the prior (`brain compare`); default: this run.
    prior_run: str | None = field(default=None, kw_only=True)

    def requests(
        self, purpose: Purpose, round_: int, version: int, n: int, prompts: Sequence[Prompt]
    ) -> list[SampleRequest]:
        """Return requests for all prompts, in their order."""
        requests = []
        for index, start in enumerate(range(0, len(prompts), self.lease_prompts)):
            part = tuple(prompts[start : start + self.lease_prompts])
            lease_id = f"{purpose}-{round_:04d}-{index:04d}"
            ids = self._ids(purpose, round_, version, part)
            seed = seed_from("lease", self.seed, lease_id)
            request = SampleRequest(
                lease_id, purpose, round_, version, n, seed, ids, part, str(self.policies), self.alone
            )
            requests.append(request)
        return requests

    def from_version(self, request: SampleRequest, version: int) -> SampleRequest:
        """Return the request for another version; its groups have other ids."""
        ids = self._ids(request.purpose, request.round, version, request.prompts)
        return replace(request, version=version, group_ids=ids)

    @staticmethod
    def purpose_of(lease_id: str) -> Purpose:
        """Return what a request was for."""
        return next(purpose for purpose in get_args(Purpose) if lease_id.startswith(f"{purpose}-"))

    def _ids(self, purpose: Purpose, round_: int, version: int, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        run_id = self.run_id if version else self.prior_run or self.run_id
        return tuple(group_id(f"{run_id}/{purpose}", prompt.prompt_id, round_, version) for prompt in prompts)


def request_plan(recipe: Recipe, run_id: str, policies: Path, *, prior_run: str | None = None) -> RequestPlan:
    """Return the plan of a run with a recipe."""
    algorithm, sampler = recipe.algorithm, recipe.sampler
    return RequestPlan(
        run_id, recipe.seed, sampler.lease_prompts, policies, alone=algorithm.strict, prior_run=prior_run
    )
