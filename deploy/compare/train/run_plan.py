"""What a cell has to do: train on its seed's groups, and be evaluated as any run is."""

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


def cell_work(recipe: Recipe, run_id: str, directory: RunDirectory, groups: SeedGroups, below: Store) -> RunPlan:
    """The work of a cell.

    A method without a proposal of its own trains on the seed's groups of every round. One that updates its proposal
    begins with those of the first round, whose proposal is the prior for everybody, and samples the later rounds
    itself. One that trains on human pairs has these below instead. Outputs of version 0 are nowhere sampled again,
    since they are the prior's, the same for every cell.

    Args:
        recipe: the cell's.
        run_id: the cell's.
        directory: the cell's.
        groups: of its seed.
        below: the store of these groups, of their first outputs, or of human pairs.
    """
    plan = request_plan(recipe, run_id, directory.policies, prior_run=groups.run_id)
    if groups.directory.quarantine.exists() and not directory.quarantine.exists():
        write_file(directory.quarantine, groups.directory.quarantine.read_text())  # nobody has these groups
    round_prompts = DrawnPrompts(recipe.algorithm, groups.inputs.train, recipe.seed)
    offline = recipe.has_fixed_proposal
    evaluated = OverlaidStore(SampleStore(directory.evaluation, run_id), groups.open_evaluation(), 1)
    rounds_below = recipe.algorithm.rounds if offline else 1
    trained = StoredGroups(below.index()) if recipe.objective.reward == HUMAN else round_prompts
    return RunPlan(
        store=OverlaidStore(SampleStore(directory.own_store, run_id), below, rounds_below),
        schedule=Rounds(recipe.algorithm, trained, recipe.seed),
        training_scorers=training_scorers(recipe),
        started_scorers=evaluation_scorers(recipe),
        requests=None
        if offline
        else TrainingRequests(recipe.algorithm, round_prompts, plan, recipe.sampling.n, fixed=False),
        evaluation=Evaluation(groups.recipe, evaluated, plan, groups.inputs.held_back, evaluation_scorers(recipe)),
        quarantine=Quarantine(directory.quarantine),
    )
