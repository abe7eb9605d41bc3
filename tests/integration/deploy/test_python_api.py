"""`brain_align.run` in this process, on a finished run; docs/tour.ipynb and docs/python.md on the same."""

import asyncio
import json
from typing import Any

import pytest
from rich.console import Console

import brain_align
from tests.integration.deploy.pipeline_runs import FinishedRun
from tests.locations import ROOT

pytestmark = pytest.mark.timeout(600)
QUIET = Console(quiet=True)


def test_a_finished_run_is_opened_also_within_an_event_loop(uninterrupted: FinishedRun) -> None:
    plain = brain_align.run(uninterrupted.directory, console=QUIET)

    async def cell() -> brain_align.RunResult:
        return brain_align.run(uninterrupted.directory, console=QUIET)

    assert plain == asyncio.run(cell())
    assert plain.summary == uninterrupted.summary()


def test_another_configuration_is_refused_as_on_the_command_line(uninterrupted: FinishedRun) -> None:
    with pytest.raises(brain_align.UserError, match="holds a run of a different configuration"):
        brain_align.run(uninterrupted.directory, console=QUIET, sampling={"n": 4})


def test_the_tour_runs(uninterrupted: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Its first cell names the recipe; here, the directory of a run of it that has ended."""
    cells = json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sources[0].startswith('recipe = "demo"')
    names: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    for source in [f"recipe = {str(uninterrupted.directory)!r}", *sources[1:]]:
        exec(compile(source, "docs/tour.ipynb", "exec"), names)
    rows, values, group = (names[name] for name in ("rows", "values", "group"))
    assert len(rows) == 2 * 16 * 8 and rows.groupby("group_id").alpha.sum().tolist() == pytest.approx([1] * 32)
    assert names["weighed"].groupby("group_id").beta.sum().tolist() == pytest.approx([1] * 32)
    assert values == pytest.approx(group.reward.tolist(), abs=1e-4)
    assert names["loss"].item() > 0 and any(one.grad is not None for one in names["model"].parameters())
