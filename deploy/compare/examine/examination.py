"""Examination of a published version: its likelihoods of stored outputs, as figures."""

from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.compare.examine.examiner import Likelihoods
from brain_align.deploy.compare.examine.likelihoods import Examination, StoredValues, drifts, ranking_accuracy
from brain_align.deploy.run.directory import RunDirectory


@dataclass(frozen=True)
class ExaminedGroups:
    """The groups of a seed that its versions are examined on.

    Attributes:
        held_back: values of groups of validation prompts, on which no method trains.
        rows: GROUPS rows of the held-back groups, then of the first round's.
    """

    recipe: Recipe
    held_back: StoredValues
    first_round: StoredValues
    rows: pa.Table


async def examine(
    examiner: Pool, directory: RunDirectory, version: int, groups: ExaminedGroups, *, trained: bool
) -> Examination:
    """Examine a published version on its seed's groups, with a pool of `ExaminerActor`s.

    `trained` means that the run trained on the seed's first round, rather than on human pairs.

    Raises:
        PipelineError, UserError: the examiner failed.
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
