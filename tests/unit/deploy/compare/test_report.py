import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from brain_align.common.errors import PipelineError
from brain_align.common.inference import OverOptimisation, PairedDifference
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.report.plot_styles import legend_names, plot_styles
from brain_align.deploy.compare.report.plots import CLOSEST, draw
from brain_align.deploy.compare.report.report import inline_svg, page, report
from brain_align.deploy.compare.report.tables import all_tables, findings_table, grid_table, methods_table
from brain_align.deploy.compare.results.comparison import Comparison, collect
from brain_align.deploy.compare.results.findings import CLAIMS, SAME_METHOD, findings, size_findings
from brain_align.deploy.compare.results.method_results import PairedTest
from brain_align.deploy.compare.results.run_results import write_table
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.pages.text_table import number, p_value
from brain_align.deploy.plotting import INK, as_svg
from tests.unit.deploy.compare.compared_runs import BRAIN, WARM, finished_comparison, outcomes, plan, recipe


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    work = plan(sizes=(4,))
    return collect(finished_comparison(tmp_path_factory.mktemp("out"), work), recipe(), work, {"a run": "broke"})


def test_a_method_is_reported_at_its_own_rate_over_all_seeds(comparison: Comparison) -> None:
    brain, warm = comparison.methods[BRAIN.label], comparison.methods[WARM.label]
    assert (brain.learning_rate, warm.learning_rate) == (1e-3, 1e-4)
    assert (brain.seeds, brain.train_rm_win_rate, brain.train_rm_win_rate_by_seed) == ([0, 1], 60.0, [60.0, 60.0])
    assert warm.train_rm_win_rate == 40.0
    assert brain.train_rm_win_rate_ci95 == pytest.approx(1.96 * (0.6 * 0.4 / 40) ** 0.5 * 100)
    assert brain.judges["truth"].win_rate == 100.0
    assert brain.judges["truth"].value_by_seed == pytest.approx([0.7, 0.7])
    assert brain.judges["truth"].value_ci95 == pytest.approx(0.0)
    assert (brain.kl_to_prior_by_seed, brain.kl_to_prior_ci95) == ([60 / 25] * 2, 0.0)
    assert (brain.judges["truth"].value, brain.judges["truth"].gold_value) == pytest.approx((0.7, 0.6))
    assert comparison.prior is not None
    assert (comparison.prior.train_rm_win_rate, comparison.prior.learning_rate) == (20.0, None)


def test_methods_are_tested_on_the_same_prompts(comparison: Comparison) -> None:
    test = next(test for test in comparison.tests if test.ours == BRAIN.label)
    assert test.win_rate is not None
    assert test.win_rate.difference == pytest.approx(20.0)
    assert test.win_rate.low > 0
    assert test.reward.difference == pytest.approx(0.4)  # 8 of 40 prompts, two units of reward each
    assert test.mcnemar_p == pytest.approx([2 / 2**8] * 2)  # 8 discordant prompts, all ours
    assert test.judges["truth"].difference == 0.0
    assert (test.judges["truth"].p_value, test.win_rate.p_seeds) == (1.0, 0.0)  # both seeds say exactly 20 points
    prior = next(one for one in comparison.tests if (one.ours, one.theirs) == (BRAIN.label, "prior"))
    assert prior.win_rate is not None and prior.win_rate.difference == pytest.approx(40.0)
    other = next(one for one in comparison.tests if (one.ours, one.theirs) == (WARM.label, BRAIN.label))
    assert other.win_rate is not None
    assert other.win_rate.difference == -test.win_rate.difference
    assert (other.win_rate.low, other.win_rate.high) == (-test.win_rate.high, -test.win_rate.low)
    assert other.mcnemar_p == test.mcnemar_p


def test_the_grid_the_sizes_and_the_curve_have_all_cells(comparison: Comparison) -> None:
    rates = [(point.label, point.learning_rate, point.win_rate) for point in comparison.grid]
    assert (BRAIN.label, 1e-4, 30.0) in rates and (WARM.label, 1e-4, 45.0) in rates and len(rates) == 4
    assert [(point.label, point.n, point.win_rate) for point in comparison.group_sizes] == [
        (BRAIN.label, 4, 50.0),
        (BRAIN.label, 8, 60.0),
    ]
    smaller = [(point.n, point.learning_rate, point.win_rate) for point in comparison.size_grid]
    assert smaller == [(4, 1e-4, 30.0), (4, 1e-3, 60.0)]
    grid = {row[0]: row[1:] for row in grid_table(comparison).rows}
    assert grid == {
        "brain": ["30.0 (1.2)", "60.0 (2.4) ✓"],
        "brain, n = 4": ["30.0 (1.2)", "60.0 (2.4) ✓"],
        "brain:temperature=2": ["45.0 (1.8) ✓", "30.0 (1.2)"],
    }
    curve = comparison.curves[0]
    assert len(curve.points) == 3 * 2  # two rates and another seed, versions 1 and 2
    best = next(point for point in curve.points if point.learning_rate == 1e-3 and point.version == 1)
    assert (best.distance, best.gain) == pytest.approx(((60 / 25) ** 0.5, (60 - 20) / 50))


@pytest.mark.parametrize(
    ("low", "high", "by_seed", "outcome"),
    [
        (0.5, 5.0, [1.0, 3.0], "shown"),
        (0.5, 5.0, [-1.0, 5.0], "same sign"),  # but not of every seed
        (0.5, 5.0, [2.0], "same sign"),  # one seed shows nothing of others
        (-1.0, 5.0, [1.0, 3.0], "undecided"),
        (0.0, 5.0, [1.0, 3.0], "undecided"),
        (-3.0, 2.0, [-0.1, -0.1], "undecided"),
        (-3.0, -0.1, [-1.0, -2.0], "not reproduced"),
    ],
)
def test_a_finding_says_what_interval_and_seeds_say(
    low: float, high: float, by_seed: list[float], outcome: str
) -> None:
    by_rate = PairedDifference(float(np.mean(by_seed)), low, high, 0.1, by_seed, 0.2)
    tests = [PairedTest("brain", "brain-no-baseline", by_rate, by_rate, {}, [])]
    (found,) = findings(tests)
    assert (found.claim.source, found.outcome) == ("§9.3", outcome)
    assert len({(claim.better, claim.worse) for claim in CLAIMS}) == len(CLAIMS)


def test_one_method_under_two_names_is_one_finding_and_a_check_of_numerics(comparison: Comparison) -> None:
    better = PairedDifference(5.0, 1.0, 9.0, 0.01, [4.0, 6.0], 0.1)
    twice = [PairedTest("brain", theirs, better, better, {}, []) for theirs in SAME_METHOD]
    assert [found.claim.worse for found in findings(twice)] == ["dpo-sft+iw+n"]
    assert [found.claim.worse for found in findings(twice[1:])] == ["brain-fixed-proposal"]
    same = PairedTest(*SAME_METHOD, PairedDifference(-0.25, -1.5, 1.0, 0.7, [-0.5, 0.0], 0.5), better, {}, [])
    note = findings_table(replace(comparison, tests=[*twice, same])).note
    assert "one loss on the same groups" in note and "-0.2 [-1.5, +1.0] points, by numerics" in note
    assert "one loss" not in findings_table(comparison).note


def test_figure_2_is_a_rise_that_becomes_smaller() -> None:
    wins = {
        n: np.where(np.tile(np.arange(100) < won, (2, 1)), 100.0, 0.0)
        for n, won in {2: 20, 4: 50, 8: 60, 16: 62}.items()
    }
    rise, flat = size_findings("brain", wins)
    assert (rise.claim.better, rise.claim.worse, rise.outcome) == ("brain, n = 16", "brain, n = 2", "shown")
    assert rise.difference.difference == pytest.approx(42)
    assert (flat.claim.better, flat.claim.worse, flat.outcome) == ("brain, n 2 → 4", "brain, n 8 → 16", "shown")
    assert flat.difference.difference == pytest.approx(30 - 2)
    assert [found.claim.worse for found in size_findings("brain", {2: wins[2], 8: wins[8]})] == ["brain, n = 2"]
    assert size_findings("brain", {8: wins[8]}) == []
    assert [found.claim.better for found in size_findings("dpo-sft", wins)] == ["dpo-sft, n = 16"], (
        "it need not saturate"
    )


def test_tables_show_what_there_is(comparison: Comparison) -> None:
    tables = {table.title: table for table in all_tables(comparison)}
    methods = next(iter(tables.values()))
    rows = {row[0]: row for row in methods.rows}
    assert rows["brain"][1] == "60.0 ± 15.2"
    assert rows["brain"][2] == "60.0 / 60.0"
    assert rows["brain"][-3:-1] == ["1, 1", "0.001*"]  # at the edge of the grid
    untrained = replace(comparison.methods["brain"], best_versions=[1, 0], objective="dpo")
    other = methods_table(replace(comparison, methods={"brain": untrained}))
    assert other.rows[-1][-3] == "1, 0†"
    assert "dpo trains on one human preference pair per group" in other.note and "dpo trains" not in methods.note
    assert (p_value(None), p_value(1e-5), p_value(0.0123)) == ("–", "≤ 0.0002", "0.012")
    assert (number(float("nan"), 1), number(None, 1), number(0.25, 1)) == ("–", "–", "0.2")
    assert "prior" in rows
    assert tables["Training runs that failed"].rows == [["a run", "broke"]]
    assert all(len(row) == len(table.columns) for table in tables.values() for row in table.rows)


class _Elements(HTMLParser):
    """Collects ids and whatever would be fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.fetched.append(value)


def test_the_page_is_whole_by_itself(comparison: Comparison) -> None:
    drawn = {name: as_svg(figure, transparent=True).decode() for name, figure in draw(comparison).items()}
    assert set(drawn) == {"win-rates", "group-size", "reward-kl", "truth-kl", "learning-rates", "drift"}
    document = page(comparison, all_tables(comparison), drawn)
    elements = _Elements()
    elements.feed(document)
    assert elements.fetched == []
    assert len(elements.ids) == len(set(elements.ids)) > 0
    references = set(re.findall(r"url\(#([^)]+)\)", document)) | set(re.findall(r'xlink:href="#([^"]+)"', document))
    assert references <= set(elements.ids)
    assert "currentColor" in document and INK not in document
    assert document.count("<svg") == len(drawn)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", document)


def _with_methods(comparison: Comparison, *labels: str) -> Comparison:
    """Each with the figures of brain."""
    curve, of_brain = comparison.curves[0], comparison.methods["brain"]
    return replace(
        comparison,
        methods={label: replace(of_brain, label=label) for label in labels},
        curves=[replace(curve, label=label) for label in labels],
        grid=[replace(point, label=label) for point in comparison.grid if point.label == "brain" for label in labels],
        group_sizes=[],
    )


def test_methods_look_different_from_each_other_and_one_under_two_names_like_itself() -> None:
    many = [f"method {number}" for number in range(42)]
    found = plot_styles(many)
    assert len(set(found.values())) == len({(style.colour, style.marker) for style in found.values()}) == 42
    first, again = SAME_METHOD
    both = plot_styles(["dpo", again, first, "brain"])
    assert both[first] == both[again]
    assert len(set(both.values())) == 3
    assert legend_names([again, "dpo", first]) == {"dpo": "dpo", first: f"{first} (= {again})"}
    assert legend_names(["dpo", again]) == {"dpo": "dpo", again: again}


def test_one_method_under_two_names_is_drawn_once(comparison: Comparison) -> None:
    figures = draw(_with_methods(comparison, "dpo", *SAME_METHOD))
    for name in ("reward-kl", "truth-kl", "learning-rates"):
        (legend,) = figures[name].legends
        assert [text.get_text() for text in legend.get_texts()] == ["dpo", " (= ".join(SAME_METHOD) + ")"]


@pytest.mark.parametrize(("r_squared", "drawn"), [(0.49, 0), (0.5, 1)])
def test_a_fit_that_explains_little_is_not_drawn(comparison: Comparison, r_squared: float, drawn: int) -> None:
    curve = replace(comparison.curves[0], fit=OverOptimisation(1.0, 0.1, r_squared))
    figure = draw(replace(comparison, curves=[curve]))["reward-kl"]
    (axes,) = figure.axes
    assert sum(np.asarray(line.get_xdata()).size == 100 for line in axes.lines) == drawn
    (handle,) = figure.legends[0].get_lines()
    assert handle.get_linestyle() == ("-" if drawn else "None")
    assert axes.get_xscale() == "log"


def test_versions_that_never_left_the_prior_stand_where_the_logarithmic_axis_begins(comparison: Comparison) -> None:
    curve = comparison.curves[0]
    still = replace(curve, points=[replace(point, distance=0.0) for point in curve.points], fit=None)
    (axes,) = draw(replace(comparison, curves=[still]))["reward-kl"].axes
    drawn = np.array(axes.lines[0].get_xydata())
    assert drawn[:, 0] == pytest.approx([CLOSEST] * len(curve.points))
    assert drawn[:, 1] == pytest.approx([point.gain for point in curve.points])


def test_error_bars_of_two_methods_stand_side_by_side(comparison: Comparison) -> None:
    there = comparison.group_sizes
    both = [*there, *(replace(point, label=WARM.label) for point in there)]
    (axes,) = draw(replace(comparison, group_sizes=both))["group-size"].axes
    joined = [line for line in axes.lines if line.get_linestyle() == "-"]  # and not the caps of the bars
    ours, theirs = (np.asarray(line.get_xdata(), np.float64) for line in joined)
    assert all(ours < [4, 8]) and all(theirs > [4, 8])
    assert np.sqrt(ours * theirs) == pytest.approx([4, 8])


def test_the_page_begins_with_what_to_be_careful_about_and_explains_its_words(comparison: Comparison) -> None:
    document = page(comparison, all_tables(comparison), {})
    cautions, rest = document.split("<details>")
    assert f"edge of the grid (*): brain, {WARM.label}. A better one" in cautions
    assert "1 training run failed" in cautions
    assert "seed" not in cautions.split('<ul class="cautions">')[1]
    for term in (
        "reference (gold)",
        "win rate (training reward)",
        "KL(q‖p)",
        "each seed",
        "versions, †",
        "+iw+n",
        "no-baseline",
    ):
        assert f"<dt>{term}</dt>" in rest
    short = replace(comparison.methods["brain"], seeds=[0], rate_at_edge=False)
    some = replace(comparison, methods={"brain": short}, failed={})
    (line,) = re.findall("<li>(.*)</li>", page(some, [], {}))
    assert line.startswith("Not over all 2 seeds: brain (lacks seed 1); brain:temperature=2 (lacks seed 0, 1).")
    alone = replace(some, protocol=replace(comparison.protocol, seeds=[0]))
    (line,) = re.findall("<li>(.*)</li>", page(alone, [], {}))
    assert line.startswith("Only one seed (0): the intervals do not include the variation over seeds")
    sound = replace(
        some, methods={label: replace(one, rate_at_edge=False) for label, one in comparison.methods.items()}
    )
    assert 'class="cautions"' not in page(sound, [], {})


def test_a_useless_reward_model_is_a_caution_wherever_the_comparison_is_read(tmp_path: Path) -> None:
    work = plan()
    directory = finished_comparison(tmp_path, work)
    console = PlainConsole(record=True, width=160, file=(tmp_path / "console").open("w"))
    report(directory, recipe(), work, {}, console, ["NO BETTER THAN A COIN <"])
    assert '<ul class="cautions">\n<li>NO BETTER THAN A COIN &lt;</li>' in directory.page.read_text()
    assert directory.tables.read_text().startswith("**NO BETTER THAN A COIN <**\n\n### ")
    assert json.loads(directory.results.read_text())["warnings"] == ["NO BETTER THAN A COIN <"]
    assert "NO BETTER THAN A COIN <" in console.export_text()


def test_names_are_escaped_in_the_page(comparison: Comparison) -> None:
    assert "<b>" not in page(replace(comparison, name="<b>"), [], {})


def test_ids_of_two_plots_do_not_clash() -> None:
    svg = '<?xml version="1.0"?><svg><defs><path id="m1"/></defs><use xlink:href="#m1"/><g clip-path="url(#p2)"/></svg>'
    found = inline_svg("drift", svg)
    assert found.startswith("<svg>")
    assert 'id="drift-m1"' in found and '"#drift-m1"' in found and "url(#drift-p2)" in found


def test_a_report_leaves_figures_plots_and_page(tmp_path: Path) -> None:
    work = plan()
    directory = finished_comparison(tmp_path, work)
    console = PlainConsole(record=True, width=160, file=(tmp_path / "console").open("w"))
    report(directory, recipe(), work, {}, console)
    saved = json.loads(directory.results.read_text())
    assert saved["methods"]["brain"]["train_rm_win_rate"] == 60.0
    assert saved["methods"]["brain"]["seeds"] == [0, 1]
    assert saved["protocol"]["learning_rates"] == [1e-4, 1e-3]
    assert "| brain | 60.0 ± 15.2 |" in directory.tables.read_text()
    assert (directory.plots / "win-rates.png").read_bytes().startswith(b"\x89PNG")
    assert {file.suffix for file in directory.plots.iterdir()} == {".png", ".svg"}
    assert "60.0 ± 15.2" in console.export_text()
    before = directory.page.read_bytes()
    report(directory, recipe(), work, {}, PlainConsole(quiet=True))
    assert directory.page.read_bytes() == before


def test_without_a_finished_cell_the_reasons_are_given(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"No training run of .* succeeded\. the disk is full"):
        report(ComparisonDirectory(tmp_path), recipe(), plan(), {"run": "the disk is full"}, PlainConsole(quiet=True))


def test_a_method_without_a_seed_is_reported_as_far_as_it_went_and_then_refused(tmp_path: Path) -> None:
    directory = finished_comparison(tmp_path, plan())
    with pytest.raises(PipelineError, match="is not complete, it lacks brain: seed 2; brain:temperature=2: seed 2"):
        report(directory, recipe(), plan(seeds=(0, 1, 2)), {}, PlainConsole(quiet=True))
    assert json.loads(directory.results.read_text())["methods"]["brain"]["seeds"] == [0, 1]


def test_smaller_groups_that_could_not_be_trained_are_missed(tmp_path: Path) -> None:
    work = plan(sizes=(2, 4))
    directory = finished_comparison(tmp_path, work)
    failing = [work.chosen(BRAIN, 2, 1e-3)[1], *work.grid(BRAIN, 4), *work.chosen(BRAIN, 4, 1e-3)]
    for run in failing:
        directory.examination(run.name).unlink(missing_ok=True)
    with pytest.raises(PipelineError, match=r"it lacks brain, n = 2: seed 1; brain, n = 4: seed 0, 1; see the reasons"):
        report(directory, recipe(), work, {failing[0].name: "broke"}, PlainConsole(quiet=True))
    written = directory.tables.read_text()
    assert "| brain, n = 4 | failed | failed |" in written
    assert "Not over all 2 seeds: brain, n = 2 (lacks seed 1); brain, n = 4 (lacks" in directory.page.read_text()


def test_outputs_that_nobody_could_score_leave_out_the_test_alone(tmp_path: Path) -> None:
    work = plan()
    directory = finished_comparison(tmp_path, work)
    for run in work.chosen(WARM, 8, 1e-4):
        table = outcomes(16)
        nothing = pa.nulls(len(table), pa.float64())
        write_table(directory.outcomes(run.name), table.set_column(2, "reward", nothing))
    tests = collect(directory, recipe(), work, {}).tests
    assert {(test.ours, test.theirs) for test in tests} == {("prior", "brain"), ("brain", "prior")}
