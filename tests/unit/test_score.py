import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from common.config.recipe import Recipe
from common.config.scorers import FunctionSection
from common.errors import PipelineError, UserError
from deploy.cli import main
from deploy.run_directory import run_directory, save_config
from deploy.score import read_texts, resolved_for_scoring, score_rows
from scorer.function import load_function
from tests.unit.factories import recipe_settings


def lengths(prompts: list[str], outputs: list[str]) -> list[float]:
    return [float(len(output)) for output in outputs]


def longer_than_two(prompts: list[str], outputs: list[str]) -> list[float]:
    return [len(output) if len(output) > 2 else float("nan") for output in outputs]


class InProcess:
    """A pool whose later calls are answered first."""

    def __init__(self, function: str) -> None:
        self._scorer = load_function(function, FunctionSection(kind="function", function=f"{__name__}:{function}"))
        self.calls = self.under_way = self.most = 0

    async def call(self, method: str, *args: Any, timeout: float) -> pa.RecordBatch:
        self.calls += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.02 / self.calls)
        self.under_way -= 1
        return getattr(self._scorer, method)(*args)


def run(texts: Any, pools: Any, most: int = 4) -> tuple[list[dict[str, Any]], Any, list[int]]:
    file = io.StringIO()
    advanced: list[int] = []
    outcome = asyncio.run(score_rows(texts, pools, file, advanced.append, timeout=5, most=most))
    return [json.loads(line) for line in file.getvalue().splitlines()], outcome, advanced


def test_rows_keep_their_order_and_get_every_scorer_s_values():
    texts = [(f"p{number}", ["a" * (number % 5), "bbb"]) for number in range(100)]
    pools = {"lengths": InProcess("lengths"), "long": InProcess("longer_than_two")}
    rows, outcome, advanced = run(texts, pools)
    assert [(row["prompt"], row["outputs"]) for row in rows] == texts
    assert [row["scores"]["lengths"] for row in rows] == [[number % 5, 3] for number in range(100)]
    assert rows[0]["scores"]["long"] == [None, 3]
    assert rows[0]["errors"] == {"long": "output 0 has the value nan"}
    assert "errors" not in rows[3]
    assert (outcome.rows, outcome.outputs, sum(advanced)) == (100, 200, 100)
    assert outcome.missing == {"long": 60}
    assert pools["lengths"].calls == 7
    assert pools["lengths"].most <= 4


def test_a_scorer_that_fails_for_good_ends_it():
    class Failing:
        async def call(self, method: str, *args: Any, timeout: float) -> Any:
            raise PipelineError("scorer-reward-0 was lost")

    with pytest.raises(PipelineError, match="was lost"):
        run([("p", ["a"])] * 100, {"lengths": InProcess("lengths"), "reward": Failing()})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1, is not JSON"),
        ('{"outputs": ["a"]}', "row 1, has no text under `prompt`"),
        ('{"prompt": "p", "outputs": "a"}', "row 1, has no list of texts under `outputs`"),
        ('{"prompt": "p", "outputs": []}', "row 1, has no list of texts under `outputs`"),
        ('{"prompt": "p", "outputs": ["a", 1]}', "row 1, has no list of texts under `outputs`"),
        ("", "has no rows"),
    ],
)
def test_bad_files_are_refused_and_nothing_is_written(line, message, tmp_path: Path, capsys):
    source, target, recipe = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "recipe.yaml"
    source.write_text(f"{line}\n")
    recipe.write_text(yaml.safe_dump(recipe_settings()))
    with pytest.raises(UserError, match=message):
        list(read_texts(source))
    assert main(["score", str(recipe), "--input", str(source), "--output", str(target)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.jsonl", "recipe.yaml"]


def test_an_output_that_exists_is_not_replaced(tmp_path: Path, capsys):
    target, recipe = tmp_path / "out.jsonl", tmp_path / "recipe.yaml"
    target.write_text("precious")
    recipe.write_text(yaml.safe_dump(recipe_settings()))
    assert main(["score", str(recipe), "--input", str(tmp_path / "in.jsonl"), "--output", str(target)]) == 2
    assert "out.jsonl exists already" in capsys.readouterr().err
    assert target.read_text() == "precious"


def test_a_world_is_there_for_the_scorers_that_lie_in_it_alone(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = recipe_settings(
        prepare={"kind": "hh"},  # on raw data that is not there
        policy={"model": "{world}/policy"},
        scorers={
            "length": {"kind": "function", "function": f"{__name__}:lengths"},
            "reward": {"kind": "hh", "path": "{world}/reward"},
        },
    )
    recipe, console = Recipe.model_validate(settings), Console(file=io.StringIO())
    run = run_directory(recipe)
    assert resolved_for_scoring(recipe, ["length"], run, console) == recipe
    with pytest.raises(UserError, match=r"set data\.path"):
        resolved_for_scoring(recipe, ["length", "reward"], run, console)
    save_config(run, recipe, {"world": "hh-123"})
    (tmp_path / "build" / "worlds" / "hh-123").mkdir(parents=True)
    with pytest.raises(UserError, match=r"build/worlds/hh-123/reward does not exist"):
        resolved_for_scoring(recipe, ["reward"], run, console)
