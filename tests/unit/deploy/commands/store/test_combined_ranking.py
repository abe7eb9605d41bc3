"""A reward that a recipe makes of several scorers ranks outputs wherever one scorer's values do."""

import json
from pathlib import Path

import numpy as np
import pytest

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.cli import main
from brain_align.deploy.commands.store.show import group_view
from brain_align.deploy.run.stored_source import open_source, ranking
from brain_align.deploy.run.yaml_text import dump_yaml
from tests.unit.factories import recipe_settings, scores
from tests.unit.stored_runs import REWARDS, stored_run

FUNCTION = {"kind": "function", "function": "m:f"}
LENGTHS: dict[str, list[float | None]] = {"aa01": [9.0, 1.0, 0.0, 5.0], "ab02": [0.0, 1.0, 2.0, 3.0]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = stored_run(tmp_path)
    settings = recipe_settings(
        scorers={"reward": FUNCTION, "length": FUNCTION},
        rewards={"both": {"kind": "weighted-sum", "weights": {"reward": 1, "length": -0.5}}},
        objective={"reward": "both", "temperature": 0.5},
    )
    (directory / "config.yaml").write_text(dump_yaml(Recipe.model_validate(settings).model_dump(mode="json")))
    return directory


def add_lengths(run: Path) -> None:
    store = SampleStore(run / "store", "run")
    for name, values in LENGTHS.items():
        store.append_scores(scores("length", {name: values}, gold_value=3.0))


def test_the_objective_s_reward_ranks(run: Path) -> None:
    add_lengths(run)
    source = open_source(str(run))
    found = ranking(source, None)
    assert (found.name, found.scorers) == ("both", ["reward", "length"])
    assert ranking(source, "length").scorers == ["length"]
    goodness = BrainSection(temperature=0.5)
    view = group_view(source.store, "aa01", found, goodness)
    rewards = [-4.5, 0.5, 2.0, -0.5]
    assert view.values["both"].tolist() == rewards
    assert view.gold["both"] == 0.0
    weights = np.exp(np.array(rewards) / 0.5)
    assert view.alpha == pytest.approx(weights / weights.sum())
    assert group_view(source.store, "ba03", found, goodness).alpha is None  # it has no length yet


def test_show_and_pairs_use_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_lengths(run)
    assert main(["store", "show", str(run), "aa01"]) == 0
    shown = capsys.readouterr().out
    assert "both" in shown and "goodness bradley-terry of both" in " ".join(shown.split())
    output = tmp_path / "pairs.jsonl"
    assert main(["store", "export", str(run), "--format", "pairs", "--output", str(output)]) == 0
    pairs = [json.loads(line) for line in output.read_text().splitlines()]
    assert {pair["group_id"] for pair in pairs} == {"aa01", "ab02"}
    first = pairs[0]
    assert (first["chosen"], first["rejected"]) == ("aa01 says 1", "aa01 says 0")
    assert (first["score_chosen"], first["score_rejected"]) == (0.5, -4.5)
    assert REWARDS["aa01"][2] == REWARDS["aa01"][3]
    assert (pairs[1]["chosen"], pairs[1]["margin"]) == ("aa01 says 2", 2.5)  # lengths break the tie
    assert "1 without a reward left out" in " ".join(capsys.readouterr().out.split())


def test_values_that_it_needs_and_nobody_has_are_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"has no values of 'length', it has values of reward"):
        ranking(open_source(str(run)), None)
