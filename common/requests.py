"""Requests to samplers: the unit of sampling, commit and retry.

conductor -> SampleRequest -> sampler -> GROUPS
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, Self

Purpose = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Prompt:
    """A prompt of a run. Its token ids decide; the text is never tokenised again."""

    prompt_id: str
    text: str
    token_ids: tuple[int, ...]
    gold_text: str | None


@dataclass(frozen=True)
class SampleRequest:
    """Prompts to sample n outputs each for, all from one proposal version.

    If it is sampled alone, its outputs depend on its fields only: not on which sampler takes it, nor on how often it is
    given out.

    Attributes:
        alone: sample it on its own, from an empty prefix cache and a generator seeded with `seed`, so that the same
            request yields the same bytes; otherwise it shares the engine with other requests, and `seed` has no effect.
        greedy: take the most probable token each time, whatever the recipe's temperature and truncation; the stored
            log-probabilities are then the policy's own (temperature 1), and the stored temperature is 0.
    """

    lease_id: str  # unique in the run
    purpose: Purpose  # of the groups; only those for "train" enter the run's sample store
    round: int  # of Algorithm 1, from 0; in an evaluation the version that is evaluated
    version: int  # of the proposal to sample from
    n: int  # outputs per prompt
    seed: int  # of the sampler's random generator for this request
    group_ids: tuple[str, ...]  # one per prompt
    prompts: tuple[Prompt, ...]
    policies: str  # directory of the published versions (`PolicyRegistry`); several runs may share a sampler
    alone: bool = True
    greedy: bool = False

    def without(self, groups: Collection[str]) -> Self:
        """Return the request without the prompts of these groups."""
        kept = [place for place, group in enumerate(self.group_ids) if group not in groups]
        return replace(
            self,
            group_ids=tuple(self.group_ids[place] for place in kept),
            prompts=tuple(self.prompts[place] for place in kept),
        )
