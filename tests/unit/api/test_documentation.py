"""docs/python.md: its examples run as printed; those that start a run or read one name settings that exist."""

import ast
import doctest
import inspect
import re

import pandas
import pytest

import brain_align
from brain_align.deploy.run.recipe_files import load_recipe
from tests.locations import ROOT
from tests.unit.stored_runs import stored_run

PAGE = (ROOT / "docs/python.md").read_text()


def test_the_examples_print_what_the_page_says():
    examples = doctest.DocTestParser().get_doctest(PAGE.replace("```", ""), {}, "docs/python.md", None, 0)
    assert len(examples.examples) > 10
    runner = doctest.DocTestRunner()
    said: list[str] = []
    runner.run(examples, out=said.append)
    assert not runner.failures, "".join(said)


def test_the_headings_have_the_signatures():
    for name in ("run", "open_store", "brain_loss", "sequence_logprobs", "load_scorer"):
        (printed,) = re.findall(rf"^## .*`{name}\((.*)\)`$", PAGE, re.MULTILINE)
        parameters = inspect.signature(getattr(brain_align, name)).parameters.values()
        bare = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
        names = [str(parameter).replace(" = ", "=") for parameter in bare]
        asked = [part.strip() for part in printed.split(",") if part.strip() != "*"]
        assert asked == names


def test_the_example_of_a_run_names_settings_of_the_shipped_recipe():
    (call,) = (
        node
        for block in re.findall(r"```python\n(import.*?)```", PAGE, re.DOTALL)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "brain_align.run"
    )
    arguments = eval(f"dict({', '.join(ast.unparse(keyword) for keyword in call.keywords)})")
    recipe = load_recipe(ast.literal_eval(call.args[0]), arguments)
    assert (recipe.sampling.n, recipe.algorithm.rounds) == (8, 2)


def test_the_example_of_a_store_runs(tmp_path, monkeypatch):
    stored_run(tmp_path / "runs").rename(tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in re.findall(r"```python\n(import.*?)```", PAGE, re.DOTALL) if "open_store" in block)
    names: dict[str, pandas.DataFrame] = {}
    exec(block, names)
    assert set(names["best"].text) == {"aa01 says 3", "ab02 says 0", "ba03 says 3"}


@pytest.mark.parametrize("column", ["reward", "prior_logprob", "proposal_logprob", "alpha", "policy_logprob", "beta"])
def test_every_column_of_the_page_is_in_the_table(tmp_path, column):
    assert f"| `{column}` |" in PAGE
    assert column in brain_align.open_store(stored_run(tmp_path)).schema.names
