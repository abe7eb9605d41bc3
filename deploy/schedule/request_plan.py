"""The requests into which rounds and evaluations are cut."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from brain_align.common.config.recipe import Recipe
from brain_align.common.identity import group_id, seed_from
from brain_align.common.requests import Prompt, Purpose, SampleRequest


class RequestPlan:
    """Cuts rounds and evaluations into requests, the same ones after every restart.

    Args:
        run_id: of the run; part of every group's id.
        seed: of the recipe.
        lease_prompts: the number of prompts per request.
        policies: where the versions are published.
        alone: each request is sampled on its own (`SampleRequest.alone`).
        prior_run: the run that shares its groups of version 0, the prior (`brain compare`); default: this run.
    """

    def __init__(
        self,
        run_id: str,
        seed: int,
        lease_prompts: int,
        policies: Path,
        *,
        alone: bool = True,
        prior_run: str | None = None,
    ) -> None:
        self._run_id = run_id
        self._prior_run = prior_run or run_id
        self._seed = seed
        self._lease_prompts = lease_prompts
        self._policies = str(policies)
        self._alone = alone

    def requests(
        self, purpose: Purpose, round_: int, version: int, n: int, prompts: Sequence[Prompt]
    ) -> list[SampleRequest]:
        """Return requests for all prompts, in their order."""
        cut = range(0, len(prompts), self._lease_prompts)
        return [
            self._request(purpose, round_, version, n, index, prompts[start : start + self._lease_prompts])
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
        seed = seed_from("lease", self._seed, lease_id)
        return SampleRequest(
            lease_id, purpose, round_, version, n, seed, ids, tuple(prompts), self._policies, self._alone
        )

    def _ids(self, purpose: Purpose, round_: int, version: int, prompts: Sequence[str]) -> tuple[str, ...]:
        run_id = self._run_id if version else self._prior_run
        return tuple(group_id(f"{run_id}/{purpose}", prompt, round_, version) for prompt in prompts)


def request_plan(recipe: Recipe, run_id: str, policies: Path, *, prior_run: str | None = None) -> RequestPlan:
    """Return the plan of a run with a recipe."""
    algorithm, sampler = recipe.algorithm, recipe.sampler
    return RequestPlan(
        run_id, recipe.seed, sampler.lease_prompts, policies, alone=algorithm.strict, prior_run=prior_run
    )
