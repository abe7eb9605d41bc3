"""Versions that are not their run's best, evaluated on test prompts; and the texts of evaluated versions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.training_runs import TrainingRun
from brain_align.deploy.compare.results.run_results import EvaluatedVersion, write_tested
from brain_align.deploy.compare.train.seed_groups import SeedGroups, run_evaluation
from brain_align.deploy.conductor.group_pipeline import GroupPipeline
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.services.services import Services


@dataclass(frozen=True)
class Text:
    """A test prompt and an output."""

    prompt: str
    gold: str | None
    output: str


@dataclass(frozen=True)
class FinishedWork:
    """A finished training run, as its evaluation is continued."""

    run: TrainingRun
    recipe: Recipe
    plan: RunPlan


async def evaluate_versions(
    work: FinishedWork, versions: Sequence[int], directory: ComparisonDirectory, services: Services, tracker: Tracker
) -> None:
    """Evaluate published versions of a run on test prompts, and save the results; what is stored is not sampled again.

    Raises:
        PipelineError, UserError: see `Conductor.run`.
    """
    evaluation = work.plan.evaluation
    assert evaluation is not None, "a comparison's runs are evaluated"
    await services.start_pools(None, work.recipe.timeouts.lease)
    pipeline = GroupPipeline(work.recipe, replace(work.plan, requests=None), tracker, services)
    lane = pipeline.evaluation
    assert lane is not None
    async with pipeline.running():
        await lane.take_up()
        for version in versions:
            pipeline.enqueue(await lane.queue.call(evaluation.requests, "test", version))
        await lane.report()
        await pipeline.until_evaluated("test", versions)
        for version in versions:
            result = await lane.queue.call(evaluation.result, "test", version)
            outcomes = await lane.queue.call(evaluation.outcomes, "test", version)
            write_tested(directory, EvaluatedVersion(work.run, version, vars(result), outcomes))


def read_texts(
    recipe: Recipe, run_id: str, directory: RunDirectory, groups: SeedGroups, versions: Sequence[int]
) -> dict[int, list[Text]]:
    """Read the outputs of versions of a finished run that were evaluated on test prompts, one per prompt."""
    evaluation = run_evaluation(recipe, run_id, directory, groups, read_only=True)
    evaluation.leave_out(list(Quarantine(directory.quarantine)))
    return {
        version: [Text(prompt, gold, output) for prompt, gold, output, _ in evaluation.texts("test", version)]
        for version in versions
    }
