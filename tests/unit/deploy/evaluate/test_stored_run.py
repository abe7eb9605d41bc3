"""The evaluation at the end of a run that trained from a store, and what the command makes of its arguments."""

import io
import json
from contextlib import nullcontext

import pytest

from brain_align.common.errors import PipelineError, UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.deploy.cli import main
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.evaluate import evaluate as evaluation
from brain_align.deploy.evaluate import stored_run
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.summary import read_summary
from tests.unit.factories import PROBE


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    for version in (0, 1, 2):
        PolicyRegistry(directory.policies).publish(version, 0, lambda place: (place / "w").touch(), PROBE)
    directory.config.touch()
    directory.summary.write_text(json.dumps({"best_version": 2, "evaluation": "skipped"}))
    return directory


def evaluation_of(run):
    summary = read_summary(run)
    assert summary is not None
    return summary["evaluation"]


def evaluate(monkeypatch, run, result, *, vllm=True, asked=False):
    """Returns what was said, and the options that `evaluate` got."""
    seen = []

    def stand_in(options, _console, _progress):
        seen.append(options)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(stored_run, "evaluate", stand_in)
    monkeypatch.setattr(stored_run, "has_vllm", lambda: vllm)
    said = io.StringIO()
    stored_run.evaluate_stored_run(
        run, PlainConsole(file=said, width=500), lambda _total: nullcontext(print), asked=asked
    )
    return said.getvalue(), seen


def test_the_newest_version_is_evaluated_beside_the_first_and_the_summary_says_so(monkeypatch, run):
    _, (options,) = evaluate(monkeypatch, run, {"prompts": 7})
    assert [one.what for one in options.whats] == [f"{run.root}@2", f"{run.root}@0"]
    assert options.output == run.root / "evaluated"
    assert evaluation_of(run) == "of version 2 on 7 test prompts: evaluated/evaluation.json"


@pytest.mark.parametrize(
    "error", [UserError("no data"), PipelineError("no room"), ExceptionGroup("", [UserError("no data")])]
)
def test_a_run_stays_complete_where_its_evaluation_fails(monkeypatch, run, error):
    said, _ = evaluate(monkeypatch, run, error)
    assert "not evaluated: no " in said and f"brain evaluate {run.root}" in said
    assert evaluation_of(run) == "skipped"
    with pytest.raises(type(error)):
        evaluate(monkeypatch, run, error, asked=True)


def test_without_vllm_it_is_said_and_only_an_error_where_it_was_asked_for(monkeypatch, run):
    said, seen = evaluate(monkeypatch, run, {}, vllm=False)
    assert "vLLM is not installed" in said and not seen
    with pytest.raises(UserError, match="vLLM, which is not installed"):
        evaluate(monkeypatch, run, {}, vllm=False, asked=True)


def test_what_was_evaluated_is_not_again(monkeypatch, run):
    (run.root / "evaluated").mkdir()
    (run.root / "evaluated" / "evaluation.json").touch()
    said, seen = evaluate(monkeypatch, run, {})
    assert "evaluated before" in said and not seen


def test_settings_and_whats_may_stand_in_any_order(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    seen = []
    monkeypatch.setattr(evaluation, "evaluate", lambda options, *_: seen.append(options))
    arguments = ["evaluate", "a", "sampling.max_tokens=5", "--greedy", "b@3", "--prompts", "7", "seed=1"]
    assert main(arguments) == 0
    (options,) = seen
    assert ([one.what for one in options.whats], options.overrides) == (
        ["a", "b@3"],
        ["sampling.max_tokens=5", "seed=1"],
    )
    assert (options.greedy, options.prompts, options.split) == (True, 7, "test")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["seed=1"], "Nothing to evaluate is named"),
        (["a", "--prompts", "0"], "--prompts 0"),
        ([], "WHAT"),
    ],
)
def test_what_cannot_be_meant_is_refused(capsys, arguments, says):
    with pytest.raises(SystemExit) if not arguments else nullcontext():
        assert main(["evaluate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_model_needs_a_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").touch()
    assert main(["evaluate", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is not a run, so that its prompts, sampling and scorers are not known" in said
    assert len(said.strip().splitlines()) == 1
