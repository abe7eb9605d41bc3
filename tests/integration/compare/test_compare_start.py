"""`brain compare` before and after its services: what the checks say, and when the first expected end is known."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from brain_align.deploy.compare import compare as start
from brain_align.deploy.compare.plan.layout import ComparisonDirectory, save_comparison
from brain_align.deploy.compare.train.runner import ComparisonSetup
from brain_align.deploy.compare.train.services import comparison_resources
from brain_align.deploy.console import PlainConsole
from tests.unit.deploy.compare.compared_runs import BRAIN, finish_run, finished_comparison, plan, recipe
from tests.unit.pretrained_base import USELESS, recipe_with_useless_reward


def test_a_useless_reward_model_is_named_at_the_start_and_on_the_page(tmp_path: Path) -> None:
    work, poor, text = plan(), recipe_with_useless_reward(tmp_path), io.StringIO()
    directory = finished_comparison(tmp_path / "comparison", work)
    save_comparison(directory, poor, {})
    start.compare(poor, work.request, directory, None, PlainConsole(file=text, width=400))
    said = text.getvalue()
    assert said.count(USELESS) == 2 and said.index(USELESS) < said.index("win rate"), "before and after the tables"
    assert f"<li>{USELESS}</li>" in directory.page.read_text()


@pytest.mark.parametrize(("fit", "asked", "left"), [(1, None, "2 min"), (2, None, "1 min"), (1, 2, "1 min")])
def test_the_expected_end_is_of_as_many_runs_side_by_side_as_fit(
    fit: int, asked: int | None, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, directory, text = plan(), ComparisonDirectory(tmp_path), io.StringIO()
    for run in work.grid(BRAIN, 8):  # 30 s each, of six in all
        finish_run(directory, run, validation=30.0, wins=12)

    @contextmanager
    def cluster(*_: object) -> Iterator[Mapping[str, float]]:
        yield comparison_resources(recipe(), fit)

    class Nothing:
        failed: Mapping[str, str] = {}

        def __init__(self, *_: Any) -> None: ...

        async def run(self) -> None: ...

    for name, value in {
        "ray_cluster": cluster, "Runner": Nothing, "proposal_model": lambda *_: None,
        "shared_services": lambda *_: SimpleNamespace(kill=lambda: None),
    }.items():  # fmt: skip
        monkeypatch.setattr(start, name, value)
    setup = SimpleNamespace(
        base=SimpleNamespace(recipe=recipe()), directory=directory, inputs=SimpleNamespace(delivery=None)
    )
    start._train(cast(ComparisonSetup, setup), work, asked, PlainConsole(file=text, width=300))
    assert re.findall(r"(\d+ min) left: expected end", text.getvalue()) == [left]
