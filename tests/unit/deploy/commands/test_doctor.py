import io
import tempfile
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR
from brain_align.deploy.commands.doctor import examine
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.services.trial import Trial
from tests.unit.factories import recipe_settings

ABSENT: dict[str, Any] = {  # and no hub ids
    "policy": {"model": "./none"},
    "scorers": {"reward": {"kind": "tldr", "path": "./none"}},
}


Problems = dict[str, str | None]


def trials(problems: Problems) -> dict[str, Trial]:
    return {name: Trial(None, None, problem) for name, problem in problems.items()}


def examined(recipe: Recipe, problems: Problems | UserError) -> tuple[int, str]:
    def try_scorers(*_: object) -> dict[str, Trial]:
        if isinstance(problems, UserError):
            raise problems
        return trials(problems)

    text = io.StringIO()
    return examine(recipe, PlainConsole(file=text, width=100), try_scorers), text.getvalue()


def test_all_that_is_wrong_is_said(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate(recipe_settings(**ABSENT))
    failed, text = examined(recipe, {PRIOR: None, "reward": "it has drifted"})
    problems = [
        line for line in text.splitlines() if line.startswith("FAILED  prompts, policy, and files of scorers: ")
    ]
    assert failed == len(problems) + 1 == 7  # tokenizer, model and reward model, three files of prompts; and the scorer
    assert "ok      scorer prior loads and scores the self-test texts" in text
    assert "FAILED  scorer reward: it has drifted" in text
    assert "ok      the cluster has room" in text
    assert "scores the self-test texts: log-probabilities of ./none" in text
    failed, text = examined(recipe, UserError("The Ray cluster is too small"))
    assert failed == 7
    assert "FAILED  the cluster has room for all services: The Ray cluster is too small" in text
    assert not list(tmp_path.iterdir())
    assert not list(temporary.glob("brain-doctor-*"))  # no service was started, so that there are no logs to read


def test_logs_stay_where_something_is_wrong(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def try_scorers(_: Recipe, scratch: RunDirectory, __: object) -> dict[str, Trial]:
        scratch.logs.mkdir()
        scratch.log("reward-0").write_text("why")
        return trials({PRIOR: None, "reward": "it has drifted"})

    examine(Recipe.model_validate(recipe_settings(**ABSENT)), PlainConsole(file=io.StringIO()), try_scorers)
    assert [log.name for log in temporary.glob("brain-doctor-*/logs/*")] == ["reward-0.log"]


def test_golden_values_of_the_run_are_what_scorers_are_held_to(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate(recipe_settings(run={"dir": "here"}, **ABSENT))
    golden = RunDirectory(tmp_path / "here").golden("reward")
    golden.parent.mkdir(parents=True)
    golden.write_text("kept")
    seen = []

    def try_scorers(_: Recipe, logs: RunDirectory, __: object) -> dict[str, Trial]:
        seen.append(logs.golden("reward").read_text())
        return trials({PRIOR: None, "reward": None})

    text = io.StringIO()
    examine(recipe, PlainConsole(file=text, width=100), try_scorers)
    assert seen == ["kept"]
    assert "scorer reward loads and agrees with the run's golden values" in text.getvalue()


def test_each_scorer_is_described(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    scorers = {
        "reward": {"kind": "hh", "path": "./none"},
        "short": {"kind": "function", "function": "my.rewards:short"},
        "judge": {
            "kind": "judge",
            "url": "http://here/v1",
            "model": "m",
            "instructions": "{prompt} {output}",
            "use": "evaluation",
        },
    }
    both = {"kind": "min", "weights": {"reward": 1, "short": 2}}
    settings = recipe_settings(policy={"model": "./none"}, scorers=scorers, rewards={"both": both})
    _, text = examined(Recipe.model_validate(settings), dict.fromkeys([PRIOR, *scorers]))
    for described in (
        "reward loads and scores the self-test texts: hh, ./none, for training, part of both",
        "short loads and scores the self-test texts: function, my.rewards:short, for training, part of both",
        "judge loads and scores the self-test texts: judge, http://here/v1, for evaluation",
    ):
        assert f"ok      scorer {described}\n" in text
