"""What a finished run leaves for the comparison: the evaluation of its best version, and its examination."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from brain_align.common.durable import write_file
from brain_align.deploy.compare.examine.likelihoods import Examination
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan, TrainingRun, best_rate
from brain_align.deploy.run.summary import read_summary
from brain_align.deploy.schedule.evaluation import Merit, merit


@dataclass(frozen=True)
class FinishedRun:
    """Figures of one finished run.

    Attributes:
        run: which.
        best_version: chosen on validation prompts.
        test: `Result` of the best version on test prompts, by field.
        prior: the same of version 0.
        validation: the same of every evaluated version on validation prompts.
        outcomes: one row a test prompt, see `Evaluation.outcomes`.
        examination: likelihoods of the best version.
        seconds: from the learner's last start to the end of the evaluation.
    """

    run: TrainingRun
    best_version: int
    test: dict[str, Any]
    prior: dict[str, Any]
    validation: dict[int, dict[str, Any]]
    outcomes: pa.Table
    examination: Examination
    seconds: float

    @property
    def merit(self) -> Merit:
        """What its learning rate is chosen by."""
        best = self.validation[self.best_version]
        return merit(best["train_rm_win_rate"], best["mean_reward"])

    def sentence(self) -> str:
        """In a line of the console."""
        validation, test = self.validation[self.best_version], self.test
        return (
            f"version {self.best_version}, win rate {_percent(validation)} on validation and {_percent(test)} on test "
            f"prompts, reward {test['mean_reward']:.3f}, KL {test['kl_to_prior']:.2f}; {self.seconds:.0f} s"
        )


def _percent(figures: dict[str, Any]) -> str:
    rate = figures["train_rm_win_rate"]
    return "-" if rate is None else f"{rate:.1f} %"


def write_table(path: Path, table: pa.Table) -> None:
    """Write as Arrow IPC, whole or not at all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_file(path, memoryview(sink.getvalue()))


def is_finished(directory: ComparisonDirectory, run: TrainingRun) -> bool:
    """Whether a run's results are complete."""
    return directory.examination(run.name).exists()


def read_finished(directory: ComparisonDirectory, run: TrainingRun) -> FinishedRun | None:
    """The results of a run, or None until it is finished."""
    if not is_finished(directory, run):
        return None
    summary = read_summary(directory.run(run.name))
    assert summary is not None, "it is written before the examination"
    return FinishedRun(
        run=run,
        best_version=summary["best_version"],
        test=summary["after"],
        prior=summary["before"],
        validation={int(version): figures for version, figures in summary["validation"].items()},
        outcomes=pa.ipc.open_file(directory.outcomes(run.name)).read_all(),
        examination=read_examination(directory.examination(run.name)),
        seconds=summary["seconds"]["total"],
    )


PRIOR_METHOD = Method("prior", "prior")
"""What stands for the policy before training where methods are listed."""


def read_prior(directory: ComparisonDirectory, like: FinishedRun) -> FinishedRun:
    """The prior, as if it were a method's run.

    Args:
        directory: of the comparison.
        like: any finished run of the same seed, whose run has evaluated the prior.
    """
    run = replace(like.run, method=PRIOR_METHOD)
    return FinishedRun(
        run=run,
        best_version=0,
        test=like.prior,
        prior=like.prior,
        validation={0: like.validation[0]},
        outcomes=pa.ipc.open_file(directory.prior_outcomes(run.seed)).read_all(),
        examination=read_examination(directory.prior_examination(run.seed)),
        seconds=0.0,
    )


def write_examination(path: Path, examination: Examination) -> None:
    """Save what the examiner found."""
    write_file(path, json.dumps(examination.as_dict(), indent=1))


def read_examination(path: Path) -> Examination:
    """What `write_examination` has saved."""
    return Examination(**json.loads(path.read_text()))


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
