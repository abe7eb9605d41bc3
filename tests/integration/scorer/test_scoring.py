"""`brain score` and `brain store rescore` with scorers that go wrong, in the actors and processes of a user's call."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.yaml_text import dump_yaml
from tests.integration.deploy.pipeline_runs import BRAIN, environment, kill_tree
from tests.unit.factories import groups, recipe_settings
from tests.unit.scorer.http_service import serving

LIMIT = 300.0

REWARDS = """
import math, time

WRONG = {"raises": None, "nan": [1.0, math.nan], "few": [1.0], "text": "1, 2", "words": ["1", "2"], "none": None}

def odd(prompts, outputs):
    what = outputs[0]
    if what == "hangs":
        time.sleep(10_000)
    if what == "raises":
        raise KeyError("no such prompt")
    return WRONG.get(what, [float(len(output)) for output in outputs])

def slow(prompts, outputs):
    time.sleep(0.05)
    return [float(len(output)) for output in outputs]
"""

EXPECTED = {  # by a row's first output: what the function's values are, and what is said of them
    "fine": ([4, 1], None),
    "hangs": ([None, None], "the function returned no values within 1 s"),
    "raises": ([None, None], "the function raised KeyError: 'no such prompt'"),
    "nan": ([1, None], "output 1 has the value nan"),
    "few": ([None, None], "the function returned 1 values for 2 outputs"),
    "text": ([None, None], "the function returned a str, not a list of numbers"),
    "words": ([None, None], "the function returned '1', which is not a number"),
    "none": ([None, None], "the function returned a NoneType, not a list of numbers"),
    "last": ([4, 1], None),
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a user's folder with the rewards in scorer.py, among names of the project's folders and of libraries."""
    (tmp_path / "scorer.py").write_text(REWARDS)
    ours = ("common/__init__.py", "deploy.py", "learner/__init__.py", "sampler.py")
    for shadow in (*ours, "torch.py", "numpy.py", "ray.py", "pyarrow.py"):
        (tmp_path / shadow).parent.mkdir(exist_ok=True)
        (tmp_path / shadow).write_text("raise AssertionError('nobody asked for this module')\n")
    return tmp_path


def function(name: str, **settings: Any) -> dict[str, Any]:
    return {"kind": "function", "function": f"scorer:{name}", "cpus": 0.1, **settings}


@contextlib.contextmanager
def brain(here: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command in a user's folder; it ends, with all that it started, with the block."""
    command = [BRAIN, *arguments]
    with open(here / f"{len(list(here.glob('*.log')))}.log", "w") as log:
        process = subprocess.Popen(command, cwd=here, env=environment(), stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


def said(here: Path) -> str:
    return "\n".join(log.read_text() for log in sorted(here.glob("*.log")))


@pytest.mark.timeout(LIMIT + 60)
def test_what_a_scorer_gets_wrong_is_null_with_its_name_and_reason(here: Path) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return (503, "busy") if "few" in body["outputs"] else (200, {"scores": [2.0] * len(body["outputs"])})

    rows = [{"prompt": "p", "outputs": [what, "b"]} for what in EXPECTED]
    (here / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with serving(answer) as service:
        remote = {"kind": "http", "url": service.url, "attempts": 2, "backoff": 0.01, "cpus": 0.1}
        scorers = {"odd": function("odd", timeout=1), "remote": remote}
        (here / "recipe.yaml").write_text(yaml.safe_dump(recipe_settings(scorers=scorers, objective={"reward": "odd"})))
        with brain(here, "score", "recipe.yaml", "--input", "in.jsonl", "--output", "out.jsonl") as process:
            assert process.wait(LIMIT) == 0, said(here)
    found = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in ("prompt", "outputs")} for row in found] == rows
    for row in found:
        values, error = EXPECTED[row["outputs"][0]]
        assert row["scores"]["odd"] == values
        assert row.get("errors", {}).get("odd") == error
        down = row["outputs"][0] == "few"
        assert row["scores"]["remote"] == ([None, None] if down else [2, 2])
        assert ("was asked 2 times: status 503" in row.get("errors", {}).get("remote", "")) == down
    assert "odd has no value for 13 outputs: the function returned no values within 1 s" in " ".join(said(here).split())
    assert "remote has no value for 2 outputs" in said(here)


@pytest.mark.timeout(2 * LIMIT)
def test_two_scorers_at_once_one_killed_in_the_middle_leave_one_value_each(here: Path) -> None:
    ids = [f"g{number:03d}" for number in range(120)]
    scorers = {name: function("slow") for name in ("one", "two")}
    settings = recipe_settings(scorers=scorers, objective={"reward": "one"}, sampler={"lease_prompts": 4})
    run = here / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_yaml(Recipe.model_validate(settings).model_dump(mode="json")))
    SampleStore(run / "store", "run").append_groups(groups(*ids))

    def left(scorer: str) -> int:
        return len(SampleStore(run / "store", None, read_only=True).unscored(scorer))

    with (
        brain(here, "store", "rescore", "run", "--scorer", "one") as first,
        brain(here, "store", "rescore", "run", "--scorer", "two") as second,
    ):
        deadline = time.monotonic() + LIMIT
        while left("two") == len(ids):
            assert time.monotonic() < deadline and second.poll() is None, said(here)
            time.sleep(0.05)
        kill_tree(second.pid)
        assert first.wait(LIMIT) == 0, said(here)
    missing = left("two")
    assert 0 < missing < len(ids)
    with brain(here, "store", "rescore", "run", "--scorer", "two") as again:
        assert again.wait(LIMIT) == 0, said(here)
    assert f"two has values for {len(ids)} groups, {missing} of them new" in " ".join(said(here).split())
    store = SampleStore(run / "store", None, read_only=True)
    for scorer in scorers:
        assert store.scores(ids, scorer)["values"].to_pylist() == [[4, 4]] * len(ids)
        assert [facts.groups for facts in store.scorers() if facts.name == scorer] == [len(ids)]
