"""The run plan of one training run of a comparison: train on its seed's groups, and be evaluated as any run is."""

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import write_file
from brain_align.common.schemas import HUMAN
from brain_align.common.store.overlay import OverlaidStore, Store
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.compare.train.seed_groups import SeedGroups, evaluation_scorers
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.run_plan import RunPlan, training_scorers
from brain_align.deploy.schedule.evaluation import Evaluation
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.request_plan import request_plan
from brain_align.deploy.schedule.round_prompts import DrawnPrompts, StoredGroups, TrainingRequests
from brain_align.deploy.schedule.rounds import Rounds


def make_run_plan(recipe: Recipe, run_id: str, directory: RunDirectory, groups: SeedGroups, below: Store) -> RunPlan:
    """Return the plan of one training run.

    A method with a fixed proposal trains on the seed's groups of every round. A method that updates its proposal
    trains on those of the first round, whose proposal is the prior for every method, and samples the later rounds
    itself. A method of human pairs finds these in `below` instead. Outputs of version 0 are never sampled again:
    they are the prior's, the same for every training run.

    Args:
        recipe: the training run's.
        run_id: the training run's.
        directory: the training run's.
        groups: of its seed.
        below: the store of these groups, of their first outputs, or of human pairs.
    """
    plan = request_plan(recipe, run_id, directory.policies, prior_run=groups.run_id)
    if groups.directory.quarantine.exists() and not directory.quarantine.exists():
        write_file(directory.quarantine, groups.directory.quarantine.read_text())  # no training run has these groups
    prompts = DrawnPrompts(recipe.algorithm, groups.inputs.train, recipe.seed)
    offline = recipe.has_fixed_proposal
    evaluated = OverlaidStore(SampleStore(directory.evaluation, run_id), groups.open_evaluation(), 1)
    rounds_below = recipe.algorithm.rounds if offline else 1
    trained = StoredGroups(below.index()) if recipe.objective.reward == HUMAN else prompts
    return RunPlan(
        store=OverlaidStore(SampleStore(directory.own_store, run_id), below, rounds_below),
        schedule=Rounds(recipe.algorithm, trained, recipe.seed),
        training_scorers=training_scorers(recipe),
        started_scorers=evaluation_scorers(recipe),
        requests=None if offline else TrainingRequests(recipe.algorithm, prompts, plan, recipe.sampling.n, fixed=False),
        evaluation=Evaluation(groups.recipe, evaluated, plan, groups.inputs.held_back, evaluation_scorers(recipe)),
        quarantine=Quarantine(directory.quarantine),
    )
