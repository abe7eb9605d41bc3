"""Which outputs an evaluation needs: their names, the requests for them, and what a store lacks of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.identity import digest, seed_from
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.evaluate.candidates import Candidate
from brain_align.deploy.evaluate.settings import PROMPTS_PER_REQUEST
from brain_align.deploy.schedule.evaluation import Split


@dataclass(frozen=True)
class Series:
    """The outputs of one candidate in one way of decoding, one for each prompt."""

    candidate: Candidate
    greedy: bool
    requests: list[SampleRequest]
    scorers: list[str]  # whose values each output gets

    @property
    def decoding(self) -> str:
        """The way of decoding, as files and tables call it."""
        return "greedy" if self.greedy else "sampled"

    @property
    def group_ids(self) -> list[str]:
        """The names of the outputs' groups, in the order of the prompts."""
        return [group for request in self.requests for group in request.group_ids]


@dataclass(frozen=True)
class Lacking:
    """What a store lacks of an evaluation."""

    requests: list[list[SampleRequest]]  # by series
    scores: dict[str, list[str]]  # by scorer, stored groups without its values

    @property
    def groups(self) -> int:
        """The number of outputs that are not there, or not scored."""
        sampled = sum(len(request.prompts) for requests in self.requests for request in requests)
        return sampled + len({group for groups in self.scores.values() for group in groups})


def make_series(
    candidate: Candidate, prompts: Sequence[Prompt], recipe: Recipe, split: Split, scorers: list[str], *, greedy: bool
) -> Series:
    """Name the outputs of a candidate, and make the requests for them.

    A name depends on all that decides an output but the code: weights, prompt, sampling and seed. So the outputs of
    earlier evaluations in the same store are found, and those of another version or setting are never taken for them.
    """
    found, policy = candidate.published, candidate.recipe.policy
    weights = [found.digest, policy.model, policy.dtype, policy.quantization]
    how = [recipe.sampling.model_dump(mode="json", exclude={"n"}), recipe.seed, greedy]
    requests = []
    for start in range(0, len(prompts), PROMPTS_PER_REQUEST):
        part = tuple(prompts[start : start + PROMPTS_PER_REQUEST])
        ids = tuple(digest("evaluated", weights, how, one.prompt_id, one.token_ids) for one in part)
        seed = seed_from("evaluated", recipe.seed, ids[0])
        lease_id = f"{split}-{ids[0][:12]}"
        version, policies = found.version, str(candidate.policies)
        requests.append(
            SampleRequest(lease_id, split, version, version, 1, seed, ids, part, policies, alone=True, greedy=greedy)
        )
    return Series(candidate, greedy, requests, scorers)


def lacking(store: SampleStore, series: Sequence[Series], recipe: Recipe) -> Lacking:
    """Find out what is still to be sampled and scored; scorers that may recover are asked again about nulls."""
    requests: list[list[SampleRequest]] = []
    scores: dict[str, list[str]] = {}
    for one in series:
        ids = one.group_ids
        there = {group for group, found in zip(ids, store.has_groups(ids), strict=True) if found}
        rest = [request.without(there) for request in one.requests]
        requests.append([request for request in rest if request.prompts])
        stored = [group for group in ids if group in there]
        for name in one.scorers:
            scored = store.has_scores(stored, name)
            unscored = [group for group, found in zip(stored, scored, strict=True) if not found]
            if recipe.may_recover(name):
                nulls = set(store.nulls(name)["group_id"].to_pylist())
                unscored += [group for group in stored if group in nulls]
            if unscored:
                scores[name] = list(dict.fromkeys([*scores.get(name, []), *unscored]))
    return Lacking(requests, scores)


def rows_of(groups: pa.RecordBatch, wanted: set[str]) -> pa.RecordBatch:
    """Return the rows of some groups."""
    return groups.filter(pa.array([group in wanted for group in groups["group_id"].to_pylist()]))
