"""Has the examiner look at a version, and makes figures of what it says."""

from common.config.recipe import Recipe
from deploy.compare.examiner import Likelihoods
from deploy.compare.likelihoods import Examination, StoredValues, drifts, ranking_accuracy
from deploy.compare.seed_groups import SeedGroups
from deploy.pool import Pool
from deploy.run_directory import RunDirectory


async def examine(examiner: Pool, directory: RunDirectory, version: int, groups: SeedGroups) -> Examination:
    """Examine a published version on its seed's groups.

    Args:
        examiner: pool of `ExaminerActor`s.
        directory: of the run that published the version.
        version: which.
        groups: of the seed.

    Raises:
        PipelineError, UserError: the examiner failed.
    """
    recipe, store = groups.recipe, groups.open()
    held_back, trained = groups.examined(store, recipe.algorithm.rounds), groups.examined(store, 0)
    rows = store.groups([*held_back.group_ids, *trained.group_ids])
    timeout = recipe.timeouts.lease
    likelihoods = await examiner.call("examine", str(directory.policies), version, rows, timeout=timeout)
    return figures(likelihoods, held_back, trained, recipe)


def figures(likelihoods: Likelihoods, held_back: StoredValues, trained: StoredValues, recipe: Recipe) -> Examination:
    """What the likelihoods of held-back and of trained groups, in this order, say about the policy."""
    count = len(held_back.group_ids)
    on_held_back, on_trained = likelihoods.logprobs[:count], likelihoods.logprobs[count:]
    ideal = held_back.posterior(recipe.objective.temperature)
    chosen, rejected = drifts(on_held_back, held_back)
    trained_chosen, trained_rejected = drifts(on_trained, trained)
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
