"""The figures of methods, and tests between them, from their finished runs; pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from brain_align.common.inference import (
    Estimate,
    Floats,
    PairedDifference,
    clustered_mean,
    mcnemar,
    paired_bootstrap,
)
from brain_align.deploy.compare.examine.likelihoods import Examination
from brain_align.deploy.compare.results.run_results import PRIOR_METHOD, EvaluatedVersion, FinishedRun

PERCENT = 100.0


@dataclass(frozen=True)
class JudgeFigures:
    """Figures of a scorer on which no method was trained."""

    # value, gold_value: mean over the outputs, and over gold.
    value: float
    # value_ci95, value_by_seed: half-width of `clustered_mean`'s interval of the first, and each seed's mean.
    value_ci95: float
    value_by_seed: list[float]
    gold_value: float | None
    # win_rate, win_rate_ci95: percent of prompts whose output it prefers to gold; None without gold.
    win_rate: float | None
    win_rate_ci95: float | None


@dataclass(frozen=True)
class VersionFigures:
    """A method at one learning rate: means over seeds, on test prompts, of one version of each seed."""

    label: str  # of the method; `prior` for the policy before training
    learning_rate: float | None  # chosen on the first seed; None for the prior
    seeds: list[int]
    # train_rm_win_rate, train_rm_win_rate_ci95: percent, with the half-width of `clustered_mean`'s interval.
    train_rm_win_rate: float | None
    train_rm_win_rate_ci95: float | None
    train_rm_win_rate_by_seed: list[float]
    judges: dict[str, JudgeFigures]  # by name of the scorer
    # mean_reward, kl_to_prior, mean_tokens, ended: as in `Result`.
    mean_reward: float
    kl_to_prior: float
    # kl_to_prior_ci95, kl_to_prior_by_seed: nats.
    kl_to_prior_ci95: float
    kl_to_prior_by_seed: list[float]
    mean_tokens: float
    ended: float


@dataclass(frozen=True)
class MethodFigures(VersionFigures):
    """A method at its learning rate, with each seed's best version on validation prompts."""

    objective: str  # the recipe's `objective.name`; `prior` for the prior
    rate_at_edge: bool  # whether the learning rate is the smallest or largest of the grid
    best_versions: list[int]
    examination: Examination
    seconds: float  # per run, from the learner's start to the end of evaluation; of a resumed one, from its last start


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same prompts and seeds."""

    # ours, theirs: labels.
    ours: str
    theirs: str
    # difference of the win rate (training reward)s, percentage points; None without gold.
    win_rate: PairedDifference | None
    reward: PairedDifference  # difference of the mean rewards
    # difference of the means of each scorer on which no method was trained, by its name.
    judges: dict[str, PairedDifference]
    mcnemar_p: list[float]  # exact, of each seed separately; empty without gold

    def turned(self) -> "PairedTest":
        """Return the test with the methods exchanged."""
        rate = None if self.win_rate is None else self.win_rate.turned()
        judges = {name: difference.turned() for name, difference in self.judges.items()}
        return PairedTest(self.theirs, self.ours, rate, self.reward.turned(), judges, self.mcnemar_p)


def wins(results: Sequence[EvaluatedVersion]) -> Floats | None:
    """Return 1 where an output's reward is strictly above gold's, else 0, NaN where unknown; None without gold.

    # [seeds, prompts]
    """
    return _above_gold(results, "reward")


def outcomes(results: Sequence[EvaluatedVersion], column: str) -> Floats:
    """Return a column of the test outcomes, see `Evaluation.outcomes`; NaN where unknown.  # [seeds, prompts]."""
    return np.stack([result.outcomes[column].to_numpy().astype(np.float64) for result in results])


def _above_gold(results: Sequence[EvaluatedVersion], column: str) -> Floats | None:
    ours, gold = outcomes(results, column), outcomes(results, f"gold_{column}")
    if np.isnan(gold).all():
        return None
    return np.where(np.isnan(ours) | np.isnan(gold), np.nan, ours > gold)


def known(values: Floats) -> Floats:
    """Return the columns of the prompts whose value is known for every seed."""
    return values[:, ~np.isnan(values).any(axis=0)]


def percentage(values: Floats | None) -> Estimate | None:
    """Return percent over the prompts that are known for every seed; None without gold or without such a prompt."""
    return None if values is None or not known(values).size else clustered_mean(PERCENT * known(values))


def method_figures(label: str, results: Sequence[FinishedRun], *, rate_at_edge: bool) -> MethodFigures:
    """Return the figures of a method's runs, one per seed, all at one learning rate."""
    return MethodFigures(
        **vars(version_figures(label, results)),
        objective=results[0].run.method.objective,
        rate_at_edge=rate_at_edge,
        best_versions=[result.version for result in results],
        examination=mean_examination([result.examination for result in results]),
        seconds=float(np.mean([result.seconds for result in results])),
    )


def version_figures(label: str, results: Sequence[EvaluatedVersion]) -> VersionFigures:
    """Return the figures of versions of a method's runs, one per seed, all at one learning rate."""
    won = wins(results)
    rate = percentage(won)
    tests = [result.test for result in results]
    return VersionFigures(
        label=label,
        learning_rate=None if results[0].run.method == PRIOR_METHOD else results[0].run.learning_rate,
        seeds=[result.run.seed for result in results],
        train_rm_win_rate=None if rate is None else rate.mean,
        train_rm_win_rate_ci95=None if rate is None else rate.half_width,
        train_rm_win_rate_by_seed=[]
        if won is None or rate is None
        else [PERCENT * float(np.nanmean(row)) for row in won],
        judges={name: _judge(results, name) for name in _judges(results)},
        **{name: float(np.mean([test[name] for test in tests])) for name in _AVERAGED},
        kl_to_prior_ci95=clustered_mean(known(outcomes(results, "log_ratio"))).half_width,
        kl_to_prior_by_seed=[test["kl_to_prior"] for test in tests],
    )


_AVERAGED = ("mean_reward", "kl_to_prior", "mean_tokens", "ended")


def _judges(results: Sequence[EvaluatedVersion]) -> list[str]:
    """Return the scorers that have scored at least one prompt for every seed."""
    columns = [name for name in results[0].outcomes.column_names if name.startswith("scores.")]
    return [name.removeprefix("scores.") for name in columns if known(outcomes(results, name)).size]


def _judge(results: Sequence[EvaluatedVersion], name: str) -> JudgeFigures:
    values, gold = outcomes(results, f"scores.{name}"), outcomes(results, f"gold_scores.{name}")
    rate = percentage(_above_gold(results, f"scores.{name}"))
    return JudgeFigures(
        value=float(np.nanmean(values)),
        value_ci95=clustered_mean(known(values)).half_width,
        value_by_seed=np.nanmean(values, axis=1).tolist(),
        gold_value=None if np.isnan(gold).all() else float(np.nanmean(gold)),
        win_rate=None if rate is None else rate.mean,
        win_rate_ci95=None if rate is None else rate.half_width,
    )


def mean_examination(examinations: Sequence[Examination]) -> Examination:
    """Return the means of the fields; None where an examination has None."""
    rows = [asdict(one) for one in examinations]
    means: dict[str, Any] = {name: _mean_or_none([row[name] for row in rows]) for name in rows[0]}
    return Examination(**means)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def paired_test(
    ours: str, our_results: Sequence[EvaluatedVersion], theirs: str, their_results: Sequence[EvaluatedVersion]
) -> PairedTest | None:
    """Compare two methods on the prompts and seeds that both have; None if these are none."""
    shared = sorted({one.run.seed for one in our_results} & {one.run.seed for one in their_results})
    us = [one for one in our_results if one.run.seed in shared]
    them = [one for one in their_results if one.run.seed in shared]
    if not shared or not known(outcomes(us, "reward") - outcomes(them, "reward")).size:
        return None
    our_wins, their_wins = wins(us), wins(them)
    by_rate, by_seed = None, []
    if our_wins is not None and their_wins is not None:
        by_rate = paired_bootstrap(known(PERCENT * our_wins - PERCENT * their_wins))
        by_seed = [_mcnemar(a, b) for a, b in zip(our_wins, their_wins, strict=True)]
    judges = {name: _of_column(us, them, f"scores.{name}") for name in _judges([*us, *them])}
    return PairedTest(ours, theirs, by_rate, _of_column(us, them, "reward"), judges, by_seed)


def _of_column(ours: Sequence[EvaluatedVersion], theirs: Sequence[EvaluatedVersion], column: str) -> PairedDifference:
    return paired_bootstrap(known(outcomes(ours, column) - outcomes(theirs, column)))


def _mcnemar(ours: Floats, theirs: Floats) -> float:
    known = ~np.isnan(ours + theirs)
    return mcnemar(ours[known] > 0, theirs[known] > 0)
