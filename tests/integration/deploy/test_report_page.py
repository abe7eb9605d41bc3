"""The page of a run as people see it, in headless Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_align.deploy.report.report import report_page
from tests.chromium import CHROMIUM, Page, chromium
from tests.unit.deploy.report.reported_runs import ATTACK, finished_run, large_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    path = folder / "report.html"
    path.write_text(report_page([large_run(folder / "run").root]), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_large_page_is_there_at_once_and_fits_the_screen(browser: Page, large: Path, width: int, dark: bool) -> None:
    browser.open(large, width, dark=dark)
    assert browser.problems == []
    assert len(browser.requests) == 1, "nothing is loaded but the page itself"
    paint = browser.run("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
    interactive = browser.run("performance.getEntriesByName('interactive')[0].startTime")
    assert paint is None or paint <= 1000, "first content within a second"  # a hidden tab paints nothing
    assert interactive <= 2000
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert browser.run("document.querySelectorAll('#charts canvas').length") == 11
    assert browser.run("document.querySelectorAll('#histograms canvas').length") == 2
    too_wide = "[...document.querySelectorAll('.plot')].filter(one => one.scrollWidth > one.clientWidth + 1).length"
    assert browser.run(too_wide) == 0
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark


def test_samples_are_ordered_searched_and_shown_piece_by_piece(browser: Page, large: Path) -> None:
    browser.open(large, 1280)
    change = "field.dispatchEvent(new Event(field.type === 'search' ? 'input' : 'change'))"

    def fill(name: str, value: str) -> None:
        browser.run(f"{{ const field = document.forms.browse.elements[{name!r}]; field.value = {value!r}; {change} }}")

    def heads() -> list[str]:
        return browser.run("[...document.querySelectorAll('.sample header')].map(one => one.textContent)")

    assert len(heads()) == 20 and all("→ 2 " in head for head in heads())  # the best first: version 1 gets at most 2
    browser.run("document.getElementById('more').click()")
    assert len(heads()) == 40
    fill("order", "worst")
    assert len(heads()) == 20 and all("→ 0 " in head for head in heads())
    fill("search", "1234 quick")
    assert len(heads()) == 1
    assert "1 of 1 found, of 2000" in browser.run("document.getElementById('found').textContent")
    fill("search", "")
    fill("kind", "group")
    assert "round 0, sampled from version 0" in heads()[0]
    assert "α 0.6792 · β 0.5" in browser.run("document.querySelector('.sample .bar').parentElement.textContent")


def test_every_logged_figure_can_be_drawn(browser: Page, large: Path) -> None:
    browser.open(large, 1280)
    browser.run(
        "{ const field = document.querySelector('#others select'); field.value = 'grad_norm';"
        "  field.dispatchEvent(new Event('change')) }"
    )
    assert browser.run("document.querySelectorAll('#other canvas').length") == 1


def test_what_outputs_hold_is_never_run(browser: Page, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", text=lambda *_: ATTACK, prompt=ATTACK)
    path = tmp_path / "report.html"
    path.write_text(report_page([run.root]), encoding="utf-8")
    browser.open(path, 1280)
    assert browser.run("window.attacked") is None
    assert browser.run("document.querySelectorAll('.sample img, .sample script').length") == 0
    assert "<script>window.attacked" in browser.run("document.querySelector('.sample .prompt').textContent")
    assert browser.problems == []


def test_runs_side_by_side_keep_their_colours(browser: Page, tmp_path: Path) -> None:
    roots = [finished_run(tmp_path / name).root for name in ("one", "two")]
    path = tmp_path / "report.html"
    path.write_text(report_page(roots), encoding="utf-8")
    browser.open(path, 390)
    assert browser.problems == []
    swatches = browser.run("[...document.querySelectorAll('header .swatch')].map(one => one.style.background)")
    markers = "[...document.querySelectorAll('#charts figure:first-child .u-marker')].map(one => one.style.background)"
    colours = browser.run(markers)[1:]
    assert colours == [swatches[0]] * 3 + [swatches[1]] * 3
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
