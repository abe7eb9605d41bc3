"""The examination of a published version: a service computes its likelihoods of stored groups, as figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.logs import redirect_output
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.compare.examine.likelihoods import Examination, StoredValues, drifts, ranking_accuracy
from brain_align.deploy.run.directory import RunDirectory

if TYPE_CHECKING:
    from brain_align.common.nn.logprobs import SequenceLogprobs
    from brain_align.common.nn.policy_versions import PolicyVersions

TOP_K = 10
"""The number of most probable next tokens whose entropy and mass are computed."""


@dataclass(frozen=True)
class Likelihoods:
    """The likelihoods of stored groups under one version."""

    logprobs: list[np.ndarray]  # log q(y|x) of each group's outputs, nats; NaN where there is none.  # groups x [n]
    # entropy of the ten most probable next tokens, renormalised; mean over the positions of a group's first output,
    # nats.  # [groups]
    top_k_entropy: np.ndarray
    top_k_mass: np.ndarray  # the total probability of these tokens; the same mean.  # [groups]


class ExaminerActor:
    """Loads one version after another, on the resources of the prior's scorer."""

    def __init__(self, recipe: dict[str, Any], log_path: str) -> None:
        redirect_output(Path(log_path))
        self._recipe = Recipe.model_validate(recipe)
        self._device = "cpu"
        self._versions: PolicyVersions | None = None

    def ready(self) -> None:
        """Import what takes seconds."""
        import torch

        from brain_align.common.nn import policy_versions  # noqa: F401  (transformers, before the first version comes)

        prior = self._recipe.prior
        torch.set_num_threads(prior.threads)
        self._device = "cuda" if prior.gpus > 0 and torch.cuda.is_available() else "cpu"

    def examine(self, policies: str, version: int, groups: pa.Table) -> Likelihoods:
        """Compute the likelihoods of GROUPS rows under a published version; UserError if it is missing or damaged."""
        from brain_align.common.nn.policy_versions import PolicyVersions

        if self._versions is None:
            self._versions = PolicyVersions(self._recipe.policy, self._device, self._recipe.window)
        policy = self._versions.load(Path(policies), version)
        rows = groups.select(["prompt_token_ids", "outputs"]).to_pylist()
        logprobs = [_group_logprobs(policy, row) for row in rows]
        entropies, masses = zip(*(self._next_tokens(policy, row) for row in rows), strict=True)
        return Likelihoods(logprobs, np.array(entropies), np.array(masses))

    def _next_tokens(self, policy: "SequenceLogprobs", row: dict[str, Any]) -> tuple[float, float]:
        """Return entropy (nats) and mass of the most probable tokens, means over the positions of the first output."""
        import torch

        prompt, output = row["prompt_token_ids"], row["outputs"][0]["token_ids"]
        ids = torch.tensor([prompt + output], device=self._device)
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        top = logits.float().log_softmax(dim=-1).topk(min(TOP_K, logits.shape[-1]), dim=-1).values
        mass = top.exp().sum(dim=-1)
        renormalised = top - mass.log()[:, None]
        entropy = -(renormalised.exp() * renormalised).sum(dim=-1)
        return float(entropy.mean()), float(mass.mean())


def _group_logprobs(policy: "SequenceLogprobs", row: dict[str, Any]) -> np.ndarray:
    from brain_align.common.nn.logprobs import request_of
    from brain_align.scorer.catalogue import MAX_TOKENS

    request = request_of(row["prompt_token_ids"], [output["token_ids"] for output in row["outputs"]])
    return policy.in_parts(request, MAX_TOKENS).cpu().numpy()


@dataclass(frozen=True)
class ExaminedGroups:
    """The groups of a seed that its versions are examined on."""

    recipe: Recipe
    held_back: StoredValues  # values of groups of validation prompts, on which no method trains
    first_round: StoredValues
    rows: pa.Table  # GROUPS rows of the held-back groups, then of the first round's


async def examine(
    examiner: Pool, directory: RunDirectory, version: int, groups: ExaminedGroups, *, trained: bool
) -> Examination:
    """Examine a published version on its seed's groups, with a pool of `ExaminerActor`s.

    `trained` means that the run trained on the seed's first round, rather than on human pairs. PipelineError or
    UserError is raised if the examiner failed.
    """
    timeout = groups.recipe.timeouts.lease
    likelihoods = await examiner.call("examine", str(directory.policies), version, groups.rows, timeout=timeout)
    return figures(likelihoods, groups, trained=trained)


def figures(likelihoods: Likelihoods, groups: ExaminedGroups, *, trained: bool) -> Examination:
    """Compute the figures of an examination from the likelihoods of its groups; see `examine`."""
    held_back, count = groups.held_back, len(groups.held_back.group_ids)
    on_held_back, on_first_round = likelihoods.logprobs[:count], likelihoods.logprobs[count:]
    ideal = held_back.posterior(groups.recipe.objective.temperature)
    chosen, rejected = drifts(on_held_back, held_back)
    trained_chosen, trained_rejected = drifts(on_first_round, groups.first_round) if trained else (None, None)
    return Examination(
        ranking_accuracy=ranking_accuracy(on_held_back, held_back.rewards),
        ideal_ranking_accuracy=ranking_accuracy(ideal, held_back.rewards),
        held_back_chosen_drift=chosen,
        held_back_rejected_drift=rejected,
        trained_chosen_drift=trained_chosen,
        trained_rejected_drift=trained_rejected,
        top_k_entropy=float(likelihoods.top_k_entropy[:count].mean()),
        top_k_mass=float(likelihoods.top_k_mass[:count].mean()),
    )
