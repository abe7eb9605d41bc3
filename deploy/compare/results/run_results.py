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
from brain_align.deploy.compare.plan.training_runs import TrainingRun
from brain_align.deploy.run.summary import read_summary
from brain_align.deploy.schedule.evaluation import Merit, merit


@dataclass(frozen=True)
class EvaluatedVersion:
    """One version of a training run, evaluated on test prompts."""

    run: TrainingRun
    version: int
    test: dict[str, Any]  # `Result` of the version on test prompts, by field
    outcomes: pa.Table  # one row per test prompt, see `Evaluation.outcomes`


@dataclass(frozen=True)
class FinishedRun(EvaluatedVersion):
    """The results of one finished training run; its version is the best one, chosen on validation prompts."""

    prior: dict[str, Any]  # `Result` of version 0 on test prompts
    validation: dict[int, dict[str, Any]]  # the same of every evaluated version on validation prompts
    examination: Examination  # likelihoods of the best version
    seconds: float  # from the learner's last start to the end of the evaluation

    @property
    def merit(self) -> Merit:
        """The criterion of the learning rate."""
        return self.merit_of(self.version)

    def merit_of(self, version: int) -> Merit:
        """Return what an evaluated version is chosen by."""
        figures = self.validation[version]
        return merit(figures["train_rm_win_rate"], figures["mean_reward"])

    def sentence(self) -> str:
        """Return the results as one line for the console."""
        validation, test = self.validation[self.version], self.test
        return (
            f"version {self.version}, win rate {_percent(validation)} on validation and {_percent(test)} on test "
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


def read_table(path: Path) -> pa.Table:
    """Read a table that `write_table` wrote."""
    return pa.ipc.open_file(path).read_all()


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
        version=summary["best_version"],
        test=summary["after"],
        outcomes=read_table(directory.outcomes(run.name)),
        prior=summary["before"],
        validation={int(version): figures for version, figures in summary["validation"].items()},
        examination=read_examination(directory.examination(run.name)),
        seconds=summary["seconds"]["total"],
    )


def write_tested(directory: ComparisonDirectory, result: EvaluatedVersion) -> None:
    """Save the test results of a version that is not its run's best."""
    path = directory.tested(result.run.name, result.version)
    path.parent.mkdir(exist_ok=True)
    write_table(directory.tested_outcomes(result.run.name, result.version), result.outcomes)
    write_file(path, json.dumps(result.test, indent=1))


def read_tested(directory: ComparisonDirectory, finished: FinishedRun, version: int) -> EvaluatedVersion | None:
    """Read the test results of a version of a finished run; None until it is evaluated on test prompts."""
    if version == finished.version:
        return finished
    path = directory.tested(finished.run.name, version)
    if not path.exists():
        return None
    outcomes = read_table(directory.tested_outcomes(finished.run.name, version))
    return EvaluatedVersion(finished.run, version, json.loads(path.read_text(encoding="utf-8")), outcomes)


PRIOR_METHOD = Method("prior", "prior")
"""The policy before training, as an entry in lists of methods."""


def read_prior(directory: ComparisonDirectory, like: FinishedRun) -> FinishedRun:
    """Read the prior's results, in the form of a method's run; `like` is any finished run of the same seed."""
    run = replace(like.run, method=PRIOR_METHOD)
    return replace(
        like,
        run=run,
        version=0,
        test=like.prior,
        outcomes=read_table(directory.prior_outcomes(run.seed)),
        validation={0: like.validation[0]},
        examination=read_examination(directory.prior_examination(run.seed)),
        seconds=0.0,
    )


def write_examination(path: Path, examination: Examination) -> None:
    """Save an examination."""
    write_file(path, json.dumps(asdict(examination), indent=1))


def read_examination(path: Path) -> Examination:
    """Read an examination that `write_examination` saved."""
    return Examination(**json.loads(path.read_text(encoding="utf-8")))
