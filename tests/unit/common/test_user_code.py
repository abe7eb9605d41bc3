"""Functions by import path: the user's own, this project's by their old and new names, and names that shadow ours."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import differing_settings, recipe_digest
from brain_align.common.config.scorers import FunctionSection
from brain_align.common.errors import UserError
from brain_align.common.user_code import DIRECTORY, add_to_path, user_function
from brain_align.deploy.demo.truth import quality
from brain_align.scorer.kinds.function import load_function
from tests.locations import ROOT
from tests.unit.factories import recipe_settings

OLD, NEW = "deploy.demo.truth:quality", "brain_align.deploy.demo.truth:quality"
ROOMS = ("deploy", "common", "scorer", "learner", "sampler")


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A folder of the user's own modules; the rooms are found in the package alone, as where it is installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/brain_align").symlink_to(ROOT / "brain_align")
    (tmp_path / "own").mkdir()
    installed = [path for path in sys.path if not (Path(path) / "deploy").exists()]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own"), str(tmp_path / "site"), *installed])
    importlib.invalidate_caches()
    yield tmp_path / "own"
    for name in [name for name in sys.modules if name.split(".")[0] in ROOMS]:
        del sys.modules[name]


def own_module(folder, path, value):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"def quality(prompts, outputs):\n    return [{value}] * len(outputs)\n")


def test_a_function_of_this_project_is_found_by_both_names():
    functions = [user_function(name, "here")[0] for name in (OLD, NEW)]
    assert [inspect.unwrap(function) for function in functions] == [quality, quality]


@pytest.mark.parametrize("shadow", ["deploy.py", "deploy/__init__.py", "deploy/demo.py"])
def test_a_users_module_that_has_a_part_of_the_old_name_is_not_in_the_way(own, shadow):
    own_module(own, shadow, 7)
    assert inspect.unwrap(user_function(OLD, "here")[0]) is quality


def test_a_users_module_of_the_old_name_takes_precedence(own):
    own_module(own, "deploy/demo/truth.py", 7)
    assert user_function(OLD, "here")[0]([""], [""]) == [7]
    assert inspect.unwrap(user_function(NEW, "here")[0]) is quality


@pytest.mark.parametrize("name", ROOMS)
def test_a_users_module_may_be_called_as_one_of_our_rooms(own, name):
    own_module(own, f"{name}.py", 3)
    assert user_function(f"{name}:quality", "here")[0]([""], ["", ""]) == [3, 3]


def test_what_a_users_module_lacks_is_named_and_not_looked_for_in_this_project(own):
    (own / "needy.py").write_text("import common.absent\n")
    with pytest.raises(UserError, match=r"'needy' cannot be imported: No module named 'common"):
        user_function("needy:f", "here")
    with pytest.raises(UserError, match=r"'absent' cannot be imported: No module named 'absent'$"):
        user_function("absent:f", "here")


def recipe(function):
    scorers = {"truth": {"kind": "function", "function": function}}
    return Recipe.model_validate(recipe_settings(scorers=scorers, objective={"reward": "truth"}))


def test_a_run_keeps_its_identity_under_the_new_name_of_a_function():
    old, new, other = (recipe(path) for path in (OLD, NEW, "my.truth:quality"))
    assert recipe_digest(old) == recipe_digest(new) != recipe_digest(other)
    assert not differing_settings(old.model_dump(mode="json"), new.model_dump(mode="json"))
    (line,) = differing_settings(old.model_dump(mode="json"), other.model_dump(mode="json"))
    assert line.startswith("scorers.truth.function")


def test_the_demos_truth_has_the_digest_that_stores_of_earlier_versions_hold():
    """Of the first stores: resuming one of them, or scoring on in it, is refused where it changes."""
    digests = {load_function("truth", FunctionSection(kind="function", function=name)).digest for name in (OLD, NEW)}
    assert digests == {"deca105992fd5622bbc84ec03221b75b"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (["libraries"], ["libraries", "own"]),
        (["own", "libraries"], ["libraries", "own"]),
        (["", "libraries", "own"], ["libraries", "own"]),
        (["repository", "own", "libraries"], ["libraries", "own", "repository"]),
    ],
)
def test_a_users_directory_comes_after_the_libraries(own, monkeypatch, path, expected):
    places = {"own": str(own), "repository": str(ROOT), "": "", "libraries": str(own.parent / "site")}
    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, "path", [places[name] for name in path])
    add_to_path(str(own))
    assert sys.path == [places[name] for name in expected]


def test_no_library_is_taken_from_the_directory_that_ray_puts_first(own):
    for library in ("torch", "numpy", "pydantic", "transformers"):
        (own / f"{library}.py").write_text("raise SystemExit('a file of the user was executed')")
    (own / "mine.py").write_text("def score(prompts, outputs):\n    return [1.0] * len(outputs)\n")
    code = f"import sys; sys.path.insert(0, {str(own)!r}); import brain_align.common.config.recipe, numpy"
    code += (
        "; from brain_align.common.user_code import user_function; print(user_function('mine:score', 'x')[0]([], [1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), DIRECTORY: str(own)}
    done = subprocess.run([sys.executable, "-c", code], cwd=own.parent, env=environment, capture_output=True, text=True)
    assert done.stdout == "[1.0]\n", done.stderr
