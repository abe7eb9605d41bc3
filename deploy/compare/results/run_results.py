"""The results of finished training runs: evaluation and examination of the best version."""

import json
from dataclasses import asdict, dataclass, replace
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
    """The results of one finished training run."""

    run: TrainingRun
    best_version: int  # chosen on validation prompts
    test: dict[str, Any]  # `Result` of the best version on test prompts, by field
    prior: dict[str, Any]  # the same of version 0
    validation: dict[int, dict[str, Any]]  # the same of every evaluated version on validation prompts
    outcomes: pa.Table  # one row per test prompt, see `Evaluation.outcomes`
    examination: Examination  # likelihoods of the best version
    seconds: float  # from the learner's last start to the end of the evaluation

    @property
    def merit(self) -> Merit:
        """The criterion of the learning rate."""
        best = self.validation[self.best_version]
        return merit(best["train_rm_win_rate"], best["mean_reward"])

    def sentence(self) -> str:
        """Return the results as one line for the console."""
        validation, test = self.validation[self.best_version], self.test
        return (
            f"version {self.best_version}, win rate {_percent(validation)} on validation and {_percent(test)} on test "
            f"prompts, reward {test['mean_reward']:.3f}, KL {test['kl_to_prior']:.2f}; {self.seconds:.0f} s"
        )


def _percent(figures: dict[str, Any]) -> str:
    rate = figures["train_rm_win_rate"]
    return "-" if rate is None else f"{rate:.1f} %"


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Arrow IPC, atomically."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_file(path, memoryview(sink.getvalue()))


def is_finished(directory: ComparisonDirectory, run: TrainingRun) -> bool:
    """Return whether a run's results are complete."""
    return directory.examination(run.name).exists()


def read_finished(directory: ComparisonDirectory, run: TrainingRun) -> FinishedRun | None:
    """Read the results of a run; None until it is finished."""
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
"""The policy before training, as an entry in lists of methods."""


def read_prior(directory: ComparisonDirectory, like: FinishedRun) -> FinishedRun:
    """Read the prior's results, in the form of a method's run; `like` is any finished run of the same seed."""
    run = replace(like.run, method=PRIOR_METHOD)
    return replace(
        like,
        run=run,
        best_version=0,
        test=like.prior,
        validation={0: like.validation[0]},
        outcomes=pa.ipc.open_file(directory.prior_outcomes(run.seed)).read_all(),
        examination=read_examination(directory.prior_examination(run.seed)),
        seconds=0.0,
    )


def write_examination(path: Path, examination: Examination) -> None:
    """Save an examination."""
    write_file(path, json.dumps(asdict(examination), indent=1))


def read_examination(path: Path) -> Examination:
    """Read an examination that `write_examination` saved."""
    return Examination(**json.loads(path.read_text(encoding="utf-8")))


def chosen_rate(directory: ComparisonDirectory, grid: list[TrainingRun]) -> float | None:
    """Return the best learning rate of a grid whose runs have ended; None if all of them failed."""
    found = {run.learning_rate: read_finished(directory, run) for run in grid}
    return best_rate({rate: result.merit for rate, result in found.items() if result is not None})


def unfinished(directory: ComparisonDirectory, plan: ComparisonPlan) -> bool:
    """Return whether any run of a plan is left to train."""
    for method in plan.request.methods:
        for n in plan.sizes(method):
            grid = plan.grid(method, n)
            rate = chosen_rate(directory, grid)
            runs = grid if rate is None else [*grid, *plan.chosen(method, n, rate)]
            if not all(is_finished(directory, run) for run in runs):
                return True
    return False
