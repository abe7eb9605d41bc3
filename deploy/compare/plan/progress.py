"""What of a plan is done, by what lies in the comparison's directory."""

from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan, TrainingRun, best_rate
from brain_align.deploy.compare.results.run_results import is_finished, read_finished


def chosen_rate(directory: ComparisonDirectory, grid: list[TrainingRun]) -> float | None:
    """The learning rate of a method with n outputs a group, once that grid is trained; None where all of it failed."""
    found = {run.learning_rate: read_finished(directory, run) for run in grid}
    return best_rate({rate: result.merit for rate, result in found.items() if result is not None})


def unfinished(directory: ComparisonDirectory, plan: ComparisonPlan) -> bool:
    """Whether anything of a plan is left to train."""
    for method in plan.request.methods:
        for n in plan.sizes(method):
            grid = plan.grid(method, n)
            rate = chosen_rate(directory, grid)
            runs = grid if rate is None else [*grid, *plan.chosen(method, n, rate)]
            if not all(is_finished(directory, run) for run in runs):
                return True
    return False
