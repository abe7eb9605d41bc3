"""The tables of a comparison."""

from collections.abc import Callable
from functools import partial

from brain_align.common.inference import OverOptimisation, PairedDifference
from brain_align.deploy.compare.report.budget_tables import budget_tables
from brain_align.deploy.compare.results.comparison import Comparison
from brain_align.deploy.compare.results.findings import SAME_METHOD, Finding
from brain_align.deploy.compare.results.method_results import MethodFigures, PairedTest, VersionFigures
from brain_align.deploy.compare.results.series import GridPoint
from brain_align.deploy.pages.text_table import (
    TextTable,
    each,
    number,
    p_value,
    percent,
    points,
    with_interval,
)

OUTCOMES = (
    "Shown: the whole interval is above 0, and so is each of two or more seeds; same sign: only the interval is; "
    "undecided: it contains 0; not reproduced: it is below 0."
)
"""What the outcomes of claims mean."""


def all_tables(comparison: Comparison) -> list[TextTable]:
    """Return the tables that have rows."""
    tables = [
        methods_table(comparison),
        findings_table(comparison),
        *budget_tables(comparison),
        sizes_table(comparison),
        likelihoods_table(comparison),
        curves_table(comparison),
        *tests_tables(comparison),
        grid_table(comparison),
        failures_table(comparison),
    ]
    return [table for table in tables if table.rows]


def methods_table(comparison: Comparison) -> TextTable:
    """Return the paper's Table 1: each method's win rates, reward, KL and seconds."""
    shown = comparison.with_prior()
    judges = list(shown[0].judges) if shown else []
    columns = ["method", "win rate (training reward), %", "each seed"]
    columns += [part for name in judges for part in _judge_columns(name)]
    columns += ["reward", "KL(q‖p), nats", "each seed", "tokens"]
    columns += ["finished (EOS), %", "versions", "rate", "s/run"]
    return TextTable(
        f"{comparison.name}: test prompts, means over seeds {', '.join(map(str, comparison.protocol.seeds))}",
        columns,
        [_method_row(figures, judges, comparison.against_prior(figures.label)) for figures in shown],
        _methods_note(comparison),
    )


def _judge_columns(name: str) -> list[str]:
    return [f"{name}, mean", f"{name} − prior [95 %]", f"{name} win rate, %"]


def _judge_cells(name: str, figures: VersionFigures, test: PairedTest | None) -> list[str]:
    verdict, gain = figures.judges[name], None if test is None else test.judges.get(name)
    return [
        with_interval(verdict.value, verdict.value_ci95, 3),
        "" if gain is None else points(gain, 3),
        with_interval(verdict.win_rate, verdict.win_rate_ci95),
    ]


def _methods_note(comparison: Comparison) -> str:
    sentences = [
        "± is the 95 % interval over test prompts and seeds; finished (EOS): outputs that end before the token limit; "
        "versions: the best of each seed, † if that is the prior; * marks a learning rate at the edge of the grid."
    ]
    objectives = {figures.objective for figures in comparison.methods.values()}
    if "dpo" in objectives:
        sentences.append(
            f"dpo trains on one human preference pair per group, the others on {comparison.protocol.n} outputs."
        )
    if "rso" in objectives:
        sentences.append("rso accepts a few outputs of each group and trains on pairs of these.")
    return " ".join(sentences)


def _method_row(figures: MethodFigures, judges: list[str], against_prior: PairedTest | None) -> list[str]:
    trained = figures.learning_rate is not None
    versions = ", ".join(f"{version}†" if version == 0 else str(version) for version in figures.best_versions)
    rate = "" if not trained else f"{figures.learning_rate:g}{'*' if figures.rate_at_edge else ''}"
    return [
        figures.label,
        with_interval(figures.train_rm_win_rate, figures.train_rm_win_rate_ci95),
        each(figures.train_rm_win_rate_by_seed),
        *(cell for name in judges for cell in _judge_cells(name, figures, against_prior)),
        number(figures.mean_reward, 3),
        with_interval(figures.kl_to_prior, figures.kl_to_prior_ci95, 2) if trained else "0",
        each(figures.kl_to_prior_by_seed) if trained else "",
        number(figures.mean_tokens, 1),
        number(figures.ended, 1),
        versions if trained else "",
        rate,
        number(figures.seconds, 0) if trained else "",
    ]


def findings_table(comparison: Comparison) -> TextTable:
    """Return the paper's claims and their outcomes: Table 3's ladder, no baseline (§9.3), fixed proposal (§9.5)."""
    rows = [
        [
            _claimed(finding),
            points(finding.difference),
            each(finding.difference.by_seed),
            p_value(finding.difference.p_value),
            p_value(finding.difference.p_seeds),
            finding.outcome,
            f"{finding.claim.source}: {finding.claim.text}",
        ]
        for finding in comparison.findings
    ]
    return TextTable(
        "Findings of the paper, and their outcome here",
        ["win rate (training reward) of", "points [95 %]", "each seed", "p", "p, seeds", "here", "the paper"],
        rows,
        "Interval and p: paired bootstrap over test prompts and seeds; p, seeds: t-test of the seeds' differences "
        "alone, which has little power with few seeds. " + OUTCOMES + _same_method_note(comparison),
    )


def _claimed(finding: Finding) -> str:
    return f"{finding.claim.better} − {finding.claim.worse}"


def _same_method_note(comparison: Comparison) -> str:
    ours, theirs = SAME_METHOD
    test = next((test for test in comparison.tests if (test.ours, test.theirs) == SAME_METHOD), None)
    if test is None or test.win_rate is None:
        return ""
    return (
        f" {ours} and {theirs} are one loss on the same groups, computed in two ways: they differ by "
        f"{points(test.win_rate)} points, by numerics alone, which shows the effect of rounding."
    )


def sizes_table(comparison: Comparison) -> TextTable:
    """Return the paper's figure 2 as a table: win rate by method and n."""
    sizes = sorted({point.n for point in comparison.group_sizes})
    rows = []
    for label in dict.fromkeys(point.label for point in comparison.group_sizes):
        of_n = {point.n: point for point in comparison.group_sizes if point.label == label}
        columns = [with_interval(of_n[n].win_rate, of_n[n].win_rate_ci95) if n in of_n else "" for n in sizes]
        rows.append([label, *columns])
    return TextTable(
        "Win rate (training reward) against n, %",
        ["method", *(f"n = {n}" for n in sizes)],
        rows,
        "Each at its own learning rate (see the grid). Groups are cut to their first n outputs.",
    )


def likelihoods_table(comparison: Comparison) -> TextTable:
    """Return ranking accuracy, drift and concentration of each method."""
    rows = [
        [
            label,
            percent(examination.ranking_accuracy),
            number(examination.trained_chosen_drift, 2),
            number(examination.trained_rejected_drift, 2),
            number(examination.held_back_chosen_drift, 2),
            number(examination.held_back_rejected_drift, 2),
            number(examination.top_k_entropy, 3),
            number(examination.top_k_mass, 4),
        ]
        for label, examination in ((figures.label, figures.examination) for figures in comparison.with_prior())
    ]
    ideal = "–" if comparison.prior is None else percent(comparison.prior.examination.ideal_ranking_accuracy)
    return TextTable(
        "Likelihoods of outputs sampled from the prior",
        [
            "method",
            "ranking accuracy, %",
            "chosen, trained",
            "rejected, trained",
            "chosen, held back",
            "rejected, held back",
            "top-10 entropy",
            "top-10 mass",
        ],
        rows,
        f"Chosen and rejected are a group's outputs of highest and lowest reward; drift is log q − log p in nats. A "
        f"method of human pairs has not trained on these groups. The exact posterior at the recipe's γ ranks {ideal} % "
        f"of the pairs correctly. Entropy and mass both below the prior's suggest over-optimisation.",
    )


def curves_table(comparison: Comparison) -> TextTable:
    """Return the coefficients of the over-optimisation curves."""
    rows = [
        [curve.label, *_coefficients(curve.fit), *_coefficients(curve.truth_fit)]
        for curve in comparison.curves
        if curve.fit is not None
    ]
    return TextTable(
        "Gain against d = √KL(q‖p), fitted by d(a − b·log d)",
        ["method", "a", "b", "R²", "truth: a", "b", "R²"],
        rows,
        "Over all learning rates, seeds and evaluated versions, on validation prompts; left: the training reward, "
        "right: the ground truth.",
    )


def tests_tables(comparison: Comparison) -> list[TextTable]:
    """Return tables of every method against every other on the same prompts: by win rate, and by each judge."""
    judges = list(dict.fromkeys(name for test in comparison.tests for name in test.judges))
    tables = [_tests_table(comparison, "win rates (training reward), points", lambda test: test.win_rate, 1)]
    return [*tables, *(_tests_table(comparison, f"{name}, means", partial(_of_judge, name), 3) for name in judges)]


def _of_judge(name: str, test: PairedTest) -> PairedDifference | None:
    return test.judges.get(name)


def _tests_table(
    comparison: Comparison, what: str, difference: Callable[[PairedTest], PairedDifference | None], digits: int
) -> TextTable:
    labels = [figures.label for figures in comparison.with_prior()]
    of_pair = {(test.ours, test.theirs): difference(test) for test in comparison.tests}
    rows = [[ours, *(_against(of_pair.get((ours, theirs)), digits) for theirs in labels)] for ours in labels]
    return TextTable(
        f"Difference of {what}: row minus column",
        ["", *labels],
        rows if any(of_pair.values()) else [],
        "Paired bootstrap over test prompts and seeds; * marks a 95 % interval that excludes 0. All intervals, "
        "p-values and McNemar's tests of each seed are in compare.json.",
    )


def grid_table(comparison: Comparison) -> TextTable:
    """Return the validation figures at every learning rate of every method."""
    rates = comparison.protocol.learning_rates
    n = comparison.protocol.n
    chosen = {(label, n): figures.learning_rate for label, figures in comparison.methods.items()}
    chosen |= {(point.label, point.n): point.learning_rate for point in comparison.group_sizes}
    found = {(one.label, one.n, one.learning_rate): one for one in [*comparison.grid, *comparison.size_grid]}
    rows = []
    for (label, size), name in sorted(comparison.protocol.planned().items(), key=lambda item: item[0][1] != n):
        own = chosen.get((label, size))
        rows.append([name, *(_grid_cell(found.get((label, size, rate)), chosen=rate == own) for rate in rates)])
    return TextTable(
        f"Validation win rate, % (KL(q‖p), nats) by learning rate, seed {comparison.protocol.seeds[0]}",
        ["method", *(f"{rate:g}" for rate in rates)],
        rows,
        "✓ marks the method's learning rate: the highest win rate, of equal ones the higher mean reward.",
    )


def _grid_cell(point: GridPoint | None, *, chosen: bool) -> str:
    if point is None:
        return "failed"
    return f"{number(point.win_rate, 1)} ({number(point.kl_to_prior, 1)}){' ✓' if chosen else ''}"


def failures_table(comparison: Comparison) -> TextTable:
    """Return the training runs that failed, with their reasons."""
    rows = [[name, why] for name, why in comparison.failed.items()]
    return TextTable("Training runs that failed", ["run", "reason"], rows, "Run the same command again to retry.")


def _coefficients(fit: OverOptimisation | None) -> list[str]:
    values = (None, None, None) if fit is None else (fit.a, fit.b, fit.r_squared)
    return [number(value, 3) for value in values]


def _against(difference: PairedDifference | None, digits: int) -> str:
    if difference is None:
        return ""
    certain = difference.low > 0 or difference.high < 0
    return f"{difference.difference:+.{digits}f}{'*' if certain else ''}"
