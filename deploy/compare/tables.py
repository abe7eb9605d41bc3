"""The tables of a comparison: rows of text, for the console and for the page."""

from dataclasses import dataclass

from rich import box
from rich.table import Table

from deploy.compare.comparison import Comparison
from deploy.compare.inference import OverOptimisation, PairedDifference
from deploy.compare.results import MethodFigures


@dataclass(frozen=True)
class TextTable:
    """A table whose first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def for_console(self) -> Table:
        """As rich prints it; the note is not in it."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def for_markdown(self) -> str:
        """As a section of a document."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        drawn = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
        return f"### {self.title}\n\n{drawn}\n" + (f"\n{self.note}\n" if self.note else "")


def all_tables(comparison: Comparison) -> list[TextTable]:
    """Those that have anything to show."""
    tables = [
        methods_table(comparison),
        findings_table(comparison),
        sizes_table(comparison),
        likelihoods_table(comparison),
        curves_table(comparison),
        tests_table(comparison),
        grid_table(comparison),
        failures_table(comparison),
    ]
    return [table for table in tables if table.rows]


def methods_table(comparison: Comparison) -> TextTable:
    """The paper's Table 1: win rates, and what they cost."""
    shown = _with_prior(comparison)
    judges = list(shown[0].judges) if shown else []
    columns = ["method", "train-RM win rate, %", *(f"{name}, mean" for name in judges)]
    columns += [*(f"{name} win rate, %" for name in judges), "reward", "KL(q‖p), nats", "tokens", "rate", "s a cell"]
    return TextTable(
        f"{comparison.name}: test prompts, means over seeds {_listed(comparison.protocol.seeds)}",
        columns,
        [_method_row(figures, judges) for figures in shown],
        "± is the 95 % interval over test prompts; * marks a learning rate at the edge of the grid.",
    )


def _method_row(figures: MethodFigures, judges: list[str]) -> list[str]:
    verdicts = [figures.judges[name] for name in judges]
    rate = "" if figures.learning_rate is None else f"{figures.learning_rate:g}{'*' if figures.rate_at_edge else ''}"
    return [
        figures.label,
        with_interval(figures.train_rm_win_rate, figures.train_rm_win_rate_ci95),
        *(number(verdict.value, 3) for verdict in verdicts),
        *(with_interval(verdict.win_rate, verdict.win_rate_ci95) for verdict in verdicts),
        number(figures.mean_reward, 3),
        number(figures.kl_to_prior, 2),
        number(figures.mean_tokens, 1),
        rate,
        "" if figures.learning_rate is None else number(figures.seconds, 0),
    ]


def findings_table(comparison: Comparison) -> TextTable:
    """The paper's claims: the ladder of Table 3, no baseline (§9.3), fixed proposal (§9.5)."""
    rows = [
        [
            f"{finding.claim.better} − {finding.claim.worse}",
            points(finding.difference),
            f"{finding.difference.p_value:.2g}",
            finding.outcome,
            f"{finding.claim.source}: {finding.claim.text}",
        ]
        for finding in comparison.findings
    ]
    return TextTable(
        "What the paper found, and what came out here",
        ["train-RM win rate of", "points [95 %]", "p", "here", "the paper"],
        rows,
        "Paired bootstrap over test prompts; shown: the whole interval is above 0.",
    )


def sizes_table(comparison: Comparison) -> TextTable:
    """The paper's figure 2."""
    sizes = sorted({point.n for point in comparison.group_sizes})
    rows = []
    for label in dict.fromkeys(point.label for point in comparison.group_sizes):
        of_n = {point.n: point for point in comparison.group_sizes if point.label == label}
        cells = [with_interval(of_n[n].win_rate, of_n[n].win_rate_ci95) if n in of_n else "" for n in sizes]
        rows.append([label, *cells])
    return TextTable("Train-RM win rate against n, %", ["method", *(f"n = {n}" for n in sizes)], rows)


def likelihoods_table(comparison: Comparison) -> TextTable:
    """Ranking accuracy, drift and concentration."""
    rows = []
    for figures in _with_prior(comparison):
        seen = figures.examination
        rows.append(
            [
                figures.label,
                number(100 * seen.ranking_accuracy, 1),
                number(seen.trained_chosen_drift, 2),
                number(seen.trained_rejected_drift, 2),
                number(seen.held_back_chosen_drift, 2),
                number(seen.held_back_rejected_drift, 2),
                number(seen.top_k_entropy, 3),
                number(seen.top_k_mass, 4),
            ]
        )
    ideal = "" if comparison.prior is None else number(100 * comparison.prior.examination.ideal_ranking_accuracy, 1)
    return TextTable(
        "Likelihoods of outputs that the prior wrote",
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
        f"Drift is log q − log p in nats. The exact posterior ranks {ideal} % of the pairs right. Where entropy and "
        f"mass both fall below the prior's, look for over-optimisation.",
    )


def curves_table(comparison: Comparison) -> TextTable:
    """The fitted over-optimisation curves."""
    rows = [
        [curve.label, *_coefficients(curve.fit), *_coefficients(curve.truth_fit)]
        for curve in comparison.curves
        if curve.fit is not None
    ]
    return TextTable(
        "Gain against d = √KL(q‖p), fitted by d(a − b·log d)",
        ["method", "a", "b", "R²", "truth: a", "b", "R²"],
        rows,
        "Over all learning rates, seeds and evaluated versions, on validation prompts; left the trained reward, right "
        "the ground truth.",
    )


def tests_table(comparison: Comparison) -> TextTable:
    """Every method against every other, on the same prompts."""
    labels = list(comparison.methods)
    of_pair = {(test.ours, test.theirs): test.win_rate for test in comparison.tests}
    rows = [[ours, *(_against(of_pair.get((ours, theirs))) for theirs in labels)] for ours in labels]
    return TextTable(
        "Difference of train-RM win rates, points: row minus column",
        ["", *labels],
        rows if any(of_pair.values()) else [],
        "Paired bootstrap; * marks a 95 % interval without 0. All intervals, p-values, and McNemar's test of each seed "
        "are in compare.json.",
    )


def grid_table(comparison: Comparison) -> TextTable:
    """Every learning rate of every method."""
    rates = comparison.protocol.learning_rates
    rows = []
    for label in comparison.methods:
        of_rate = {point.learning_rate: point for point in comparison.grid if point.label == label}
        rows.append([label, *(number(of_rate[rate].win_rate, 1) if rate in of_rate else "failed" for rate in rates)])
    return TextTable(
        f"Validation win rate by learning rate, %, seed {comparison.protocol.seeds[0]}",
        ["method", *(f"{rate:g}" for rate in rates)],
        rows,
        "The rate with the highest is the method's own.",
    )


def failures_table(comparison: Comparison) -> TextTable:
    """Cells without a result."""
    rows = [[name, why] for name, why in comparison.failed.items()]
    return TextTable("Cells that could not be trained", ["cell", "why"], rows, "Run the same command again to retry.")


def _coefficients(fit: OverOptimisation | None) -> list[str]:
    values = (None, None, None) if fit is None else (fit.a, fit.b, fit.r_squared)
    return [number(value, 3) for value in values]


def number(value: float | None, digits: int) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, half_width: float | None) -> str:
    """A figure with its 95 % interval."""
    return "–" if value is None or half_width is None else f"{value:.1f} ± {half_width:.1f}"


def points(difference: PairedDifference) -> str:
    """A difference with its 95 % interval."""
    return f"{difference.difference:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def _against(difference: PairedDifference | None) -> str:
    if difference is None:
        return ""
    certain = difference.low > 0 or difference.high < 0
    return f"{difference.difference:+.1f}{'*' if certain else ''}"


def _with_prior(comparison: Comparison) -> list[MethodFigures]:
    prior = [] if comparison.prior is None else [comparison.prior]
    return [*prior, *comparison.methods.values()]


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
