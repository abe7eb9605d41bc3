import asyncio
import io
import json
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import FunctionSection
from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.cli import main
from brain_align.deploy.commands.score import Outcome, Write, read_texts, score, score_rows
from brain_align.deploy.commands.scoring import resolved_for_scoring
from brain_align.deploy.conductor.group_scorer import scorers_at_work
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory, save_config
from brain_align.deploy.run.resolve import placed, run_directory
from brain_align.scorer.kinds.function import load_function
from tests.stand_ins import LocalActor
from tests.unit.factories import recipe_settings


def lengths(prompts: list[str], outputs: list[str]) -> list[float]:
    return [float(len(output)) for output in outputs]


def longer_than_two(prompts: list[str], outputs: list[str]) -> list[float]:
    return [len(output) if len(output) > 2 else float("nan") for output in outputs]


class InProcess(LocalActor):
    """A scorer whose later calls are answered first, and that fails at some prompts."""

    def __init__(self, function: str, fails_at: Container[str] = ()) -> None:
        super().__init__()
        section = FunctionSection(kind="function", function=f"{__name__}:{function}")
        self._scorer, self._fails_at = load_function(function, section), fails_at
        self.calls = self.rows = self.most = 0

    async def ready(self) -> dict[str, str]:
        return {"name": self._scorer.name, "digest": self._scorer.digest}

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        self.calls += 1
        self.rows += groups.num_rows
        self.most = max(self.most, self.rows)
        await asyncio.sleep(0.02 / self.calls)
        self.rows -= groups.num_rows
        if any(prompt in self._fails_at for prompt in groups["prompt_text"].to_pylist()):
            raise PipelineError("no memory")
        return self._scorer.score(groups)


RECIPE = Recipe.model_validate(
    recipe_settings(
        scorers={
            name: {"kind": "function", "function": f"{__name__}:lengths", "timeout": 10} for name in ("lengths", "long")
        },
        objective={"reward": "lengths"},
        timeouts={"outage": 0.2},
    )
)


def run(texts: Any, scorers: dict[str, InProcess], folder: Path, most: int = 4) -> tuple[Any, Any, list[int]]:
    lines: list[str] = []
    advanced: list[int] = []

    async def with_pools() -> Any:
        settings = PoolSettings(start=5, slots=4)
        pools = {
            name: Pool(name, 1, lambda label, _log: scorers[label[:-2]], RunDirectory(folder).log, settings)
            for name in scorers
        }
        try:
            async with scorers_at_work(pools, RECIPE, print) as at_work:
                return await score_rows(texts, at_work, lines.append, advanced.append, most=most)
        finally:
            for pool in pools.values():
                pool.kill()

    outcome = asyncio.run(asyncio.wait_for(with_pools(), 20))
    return [json.loads(line) for line in lines], outcome, advanced


def test_rows_keep_their_order_and_get_every_scorer_s_values(tmp_path: Path):
    texts = [(f"p{number}", ["a" * (number % 5), "bbb"]) for number in range(100)]
    scorers = {"lengths": InProcess("lengths"), "long": InProcess("longer_than_two")}
    rows, outcome, advanced = run(texts, scorers, tmp_path)
    assert [(row["prompt"], row["outputs"]) for row in rows] == texts
    assert [row["scores"]["lengths"] for row in rows] == [[number % 5, 3] for number in range(100)]
    assert rows[0]["scores"]["long"] == [None, 3]
    assert rows[0]["errors"] == {"long": "output 0 has the value nan"}
    assert "errors" not in rows[3]
    assert (outcome.rows, outcome.outputs, sum(advanced)) == (100, 200, 100)
    assert outcome.missing == {"long": 60}
    assert scorers["lengths"].calls == 7
    assert 16 < scorers["lengths"].most <= 4 * 16


def test_a_row_that_a_scorer_fails_at_has_no_value_of_it_and_all_others(tmp_path: Path):
    texts = [(f"p{number}", ["a", "bb"]) for number in range(40)]
    rows, outcome, _ = run(texts, {"lengths": InProcess("lengths"), "long": InProcess("lengths", {"p7"})}, tmp_path)
    assert [row["prompt"] for row in rows] == [prompt for prompt, _ in texts]
    expected = {"lengths": [1, 2], "long": [1, 2]}
    assert rows[7]["scores"] == {"lengths": [1, 2], "long": [None, None]}
    assert rows[7]["errors"]["long"].startswith("long-0 failed in 'score': PipelineError: no memory")
    assert all(row["scores"] == expected for row in rows if row["prompt"] != "p7")
    assert outcome.missing == {"long": 2}


def test_a_scorer_that_fails_at_everything_ends_it(tmp_path: Path):
    class Everything:
        def __contains__(self, _prompt: object) -> bool:
            return True

    with pytest.raises(PipelineError, match=r"'long' has given no values for 0.2 s .*no memory"):
        run(
            [("p", ["a"])] * 100,
            {"lengths": InProcess("lengths"), "long": InProcess("lengths", Everything())},
            tmp_path,
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p"', "line 1, is not JSON (Expecting ',' delimiter at character 16); fix or remove the line"),
        ('{"outputs": ["a"]}', "row 1: `prompt` must be a string"),
        ('{"prompt": "p", "outputs": "a"}', "row 1: `outputs` must be a list of strings"),
        ('{"prompt": "p", "outputs": []}', "row 1: `outputs` must be a list of strings"),
        ('{"prompt": "p", "outputs": ["a", 1]}', "row 1: `outputs` must be a list of strings"),
        ("", "has no rows"),
    ],
)
def test_bad_files_are_refused_and_nothing_is_written(line, message, tmp_path: Path, capsys):
    source, target, recipe = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "recipe.yaml"
    source.write_text(f"{line}\n")
    recipe.write_text(yaml.safe_dump(recipe_settings()))
    with pytest.raises(UserError, match=re.escape(message)):
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


@pytest.mark.parametrize("error", [ConnectionError("the head node is gone"), TimeoutError("too late")])
def test_what_fails_in_scoring_is_not_called_a_failure_to_write_and_leaves_nothing(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "p", "outputs": ["a"]}\n')
    golden = run_directory(RECIPE).golden("long")
    golden.parent.mkdir(parents=True)
    golden.write_text("kept")
    seen = []

    def services(_recipe: Recipe, logs: RunDirectory, _trial: Any, _source: Path, write: Write, *_: Any) -> Outcome:
        seen.append(logs.golden("long").read_text())
        write("a line")
        raise error

    monkeypatch.setattr("brain_align.deploy.commands.score._score_with_services", services)
    with pytest.raises(type(error), match=str(error)):
        score(RECIPE, tmp_path / "in.jsonl", Path("new/deep/out.jsonl"), PlainConsole(file=io.StringIO()), force=False)
    assert seen == ["kept"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.jsonl", "runs"]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_prepared(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("brain_align.deploy.commands.score.read_texts", lambda _: pytest.fail("the input was read"))
    with pytest.raises(
        UserError, match=r"Cannot write .*out\.jsonl: \S+/file is not a directory; name another --output"
    ):
        score(RECIPE, tmp_path / "in.jsonl", tmp_path / "file/out.jsonl", PlainConsole(), force=False)


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
    recipe, console = Recipe.model_validate(settings), PlainConsole(file=io.StringIO())
    run = run_directory(recipe)
    assert resolved_for_scoring(recipe, ["length"], run, console) == placed(recipe)
    with pytest.raises(UserError, match=r"set data\.path"):
        resolved_for_scoring(recipe, ["length", "reward"], run, console)
    save_config(run, recipe, {"world": "hh-123"})
    (tmp_path / "build" / "worlds" / "hh-123").mkdir(parents=True)
    with pytest.raises(UserError, match=r"build/worlds/hh-123/reward does not exist"):
        resolved_for_scoring(recipe, ["reward"], run, console)
