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
    """Cuts rounds and evaluations into requests, the same ones after every restart.

    Attributes:
        run_id: part of every group's id.
        lease_prompts: prompts per request.
        policies: where the versions are published.
        alone: each request is sampled on its own (`SampleRequest.alone`).
        prior_run: the run that shares its groups of version 0, the prior (`brain compare`); default: this run.
    """

    run_id: str
    seed: int
    lease_prompts: int
    policies: Path
    alone: bool = field(default=True, kw_only=True)
    prior_run: str | None = field(default=None, kw_only=True)

    def requests(
        self, purpose: Purpose, round_: int, version: int, n: int, prompts: Sequence[Prompt]
    ) -> list[SampleRequest]:
        """Return requests for all prompts, in their order."""
        cut = range(0, len(prompts), self.lease_prompts)
        return [
            self._request(purpose, round_, version, n, index, prompts[start : start + self.lease_prompts])
            for index, start in enumerate(cut)
        ]

    def from_version(self, request: SampleRequest, version: int) -> SampleRequest:
        """Return the request for another version; its groups have other ids."""
        prompts = [prompt.prompt_id for prompt in request.prompts]
        return replace(request, version=version, group_ids=self._ids(request.purpose, request.round, version, prompts))

    @staticmethod
    def purpose_of(lease_id: str) -> Purpose:
        """Return what a request was for."""
        return next(purpose for purpose in get_args(Purpose) if lease_id.startswith(f"{purpose}-"))

    def _request(
        self, purpose: Purpose, round_: int, version: int, n: int, index: int, prompts: Sequence[Prompt]
    ) -> SampleRequest:
        lease_id = f"{purpose}-{round_:04d}-{index:04d}"
        ids = self._ids(purpose, round_, version, [prompt.prompt_id for prompt in prompts])
        seed = seed_from("lease", self.seed, lease_id)
        return SampleRequest(
            lease_id, purpose, round_, version, n, seed, ids, tuple(prompts), str(self.policies), self.alone
        )

    def _ids(self, purpose: Purpose, round_: int, version: int, prompts: Sequence[str]) -> tuple[str, ...]:
        run_id = self.run_id if version else self.prior_run or self.run_id
        return tuple(group_id(f"{run_id}/{purpose}", prompt, round_, version) for prompt in prompts)


def request_plan(recipe: Recipe, run_id: str, policies: Path, *, prior_run: str | None = None) -> RequestPlan:
    """Return the plan of a run with a recipe."""
    algorithm, sampler = recipe.algorithm, recipe.sampler
    return RequestPlan(
        run_id, recipe.seed, sampler.lease_prompts, policies, alone=algorithm.strict, prior_run=prior_run
    )
