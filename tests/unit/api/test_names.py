import ast
import subprocess
import sys
from pathlib import Path

import pytest

import brain_align
from brain_align.common import errors
from tests.locations import ROOT

HEAVY = ("numpy", "pyarrow", "pydantic", "torch", "transformers", "ray", "rich", "yaml")


def loaded(code: str) -> list[str]:
    """The libraries among HEAVY that a process of its own holds once it has run `code`."""
    tail = f"\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules], file=sys.__stderr__)"
    done = subprocess.run([sys.executable, "-c", code + tail], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.split()


def test_importing_the_package_loads_nothing():
    assert loaded("import brain_align; dir(brain_align)") == []


def test_reading_a_store_needs_neither_torch_nor_ray():
    assert not {"torch", "transformers", "ray"} & set(loaded("import brain_align; brain_align.open_store"))


def test_starting_a_run_loads_no_engine_before_its_recipe_is_read():
    refused = "import brain_align\ntry: brain_align.run('absent')\nexcept brain_align.UserError: pass"
    assert not {"torch", "transformers", "ray"} & set(loaded(refused))


def test_every_name_is_there_and_found_without_asking_again():
    assert sorted(brain_align.__all__) == brain_align.__all__ == sorted(brain_align._MODULES)
    for name in brain_align.__all__:
        assert getattr(brain_align, name).__name__ == name
        assert name in vars(brain_align) and name in dir(brain_align)
    assert (brain_align.UserError, brain_align.PipelineError) == (errors.UserError, errors.PipelineError)


def test_type_checkers_find_the_names_in_the_same_modules():
    source = Path(ROOT / "brain_align/__init__.py").read_text()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names if node.module}
    lazy = {name: f"brain_align.{module}" for name, module in brain_align._MODULES.items()}
    assert lazy.items() <= typed.items()


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'brain_align' has no attribute 'train'"):
        _ = brain_align.train
    with pytest.raises(ImportError):
        exec("from brain_align import train")
