"""The import rules of docs/architecture.md, on the sources (which line?) and in clean processes (really?)."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "sampler", "scorer", "learner", "deploy")
STAGES = ("sampler", "scorer", "learner")
# The files that may import an engine. Of the sampler's, engine_requests.py and engine_weights.py build what engine.py
# hands to vLLM; weight_transfer.py has a subclass of one of vLLM's, which imports it in its own processes.
ENGINES = {
    "vllm": (
        PurePosixPath("sampler/engine.py"),
        PurePosixPath("sampler/engine_requests.py"),
        PurePosixPath("sampler/engine_weights.py"),
        PurePosixPath("sampler/weight_transfer.py"),
    ),
    "deepspeed": (PurePosixPath("learner/engine.py"),),
}
TENSOR_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
HEAVY = ("ray", "vllm", "deepspeed")


def sources() -> list[PurePosixPath]:
    return sorted(
        PurePosixPath(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    )


def imported(source: str, path: PurePosixPath) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that `source` imports at any depth, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = list(path.parts[: len(path.parts) - level]) if level else []
                prefix = ".".join(base + ([module] if module else []))
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def broken_rule(path: PurePosixPath, name: str) -> str | None:
    """The rule that the file at `path` breaks by importing `name`, if any."""
    package, target = path.parts[0], name.split(".")[0]
    in_common = package == "common" and path.parts[1] != "nn"
    rules = {
        "the product never imports its tests": target == "tests",
        "nothing imports deploy": target == "deploy" and package != "deploy",
        "sampler, scorer and learner never import each other, nor common any of them": (
            target in STAGES and package not in (target, "deploy")
        ),
        f"{target} is imported only in {', '.join(map(str, ENGINES.get(target, ())))}": (
            target in ENGINES and path not in ENGINES[target]
        ),
        "ray is imported only in deploy and in the stages' service.py": (
            target == "ray" and package != "deploy" and not (package in STAGES and path.name == "service.py")
        ),
        "common outside of common.nn imports no tensor library": in_common and target in TENSOR_LIBRARIES,
        "datasets is imported only in deploy": target == "datasets" and package != "deploy",
        "common does not import common.nn": in_common and f"{name}.".startswith("common.nn."),
    }
    return next((rule for rule, broken in rules.items() if broken), None)


def test_no_file_breaks_an_import_rule():
    broken = [
        f"{path}:{line} imports {name}: {rule}"
        for path in sources()
        for line, name in imported((ROOT / path).read_text(encoding="utf-8"), path)
        if (rule := broken_rule(path, name))
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/store.py", "import torch.nn as nn"),
        ("common/store.py", "def f():\n    from transformers import AutoModel"),
        ("common/row_files.py", "from datasets import load_dataset"),
        ("common/store.py", "from common import nn"),
        ("common/store.py", "from .nn import logprobs"),
        ("common/config/recipe.py", "from ..nn.logprobs import f"),
        ("common/store.py", "import learner.engine"),
        ("common/nn/load.py", "import ray"),
        ("sampler/engine.py", "from scorer import rewards"),
        ("sampler/prompts.py", "import vllm"),
        ("sampler/receiving.py", "from vllm.distributed import weight_transfer"),
        ("sampler/engine_failures.py", "from vllm.v1.engine.exceptions import EngineDeadError"),
        ("learner/service.py", "from deepspeed import zero"),
        ("learner/engine.py", "import ray"),
        ("deploy/doctor.py", "import importlib\nimportlib.import_module('vllm')"),
        ("scorer/pool.py", "if True:\n    import ray"),
        ("scorer/service.py", "from deploy.cli import main"),
        ("deploy/cli.py", "from tests.bench import harness"),
    ],
)
def test_a_planted_breach_is_found(path, source):
    path = PurePosixPath(path)
    assert any(broken_rule(path, name) for _, name in imported(source, path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/nn/load.py", "import torch, transformers\nfrom common.store import Store"),
        ("common/store.py", "from . import schemas\nfrom .nncache import x"),
        ("sampler/engine.py", "import vllm"),
        ("sampler/weight_transfer.py", "from vllm.config import VllmConfig"),
        ("learner/engine.py", "import deepspeed\nfrom .objectives import brain"),
        ("scorer/service.py", "import ray"),
        ("deploy/conductor.py", "import ray\nfrom learner.service import Learner\nfrom . import cli"),
    ],
)
def test_what_is_allowed_passes(path, source):
    path = PurePosixPath(path)
    assert not [name for _, name in imported(source, path) if broken_rule(path, name)]


def loaded_after_importing(paths: list[PurePosixPath]) -> set[str]:
    """Imports the modules at `paths` in a process of their own; the top-level packages that it then holds."""
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), sep='\\n', file=sys.__stderr__)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert process.returncode == 0, f"importing {', '.join(names)} failed:\n{process.stderr}"
    return set(process.stderr.splitlines())


def test_common_loads_no_engine_and_no_tensor_library():
    paths = [path for path in sources() if path.parts[0] == "common" and path.parts[1] != "nn"]
    assert not loaded_after_importing(paths) & {*HEAVY, *TENSOR_LIBRARIES}


def test_tensor_code_and_pure_code_of_the_stages_load_no_engine():
    paths = [
        path
        for path in sources()
        if path.parts[:2] == ("common", "nn")
        or (path.parts[0] in STAGES and path.name not in ("service.py", "__main__.py"))
        if not any(path in files for files in ENGINES.values())
    ]
    assert not loaded_after_importing(paths) & set(HEAVY)


def test_init_files_are_empty_and_every_code_folder_has_one():
    paths = sources()
    assert not [str(path) for path in paths if path.name == "__init__.py" and (ROOT / path).read_text().strip()]
    assert not {str(path.parent) for path in paths} - {str(p.parent) for p in paths if p.name == "__init__.py"}


def test_the_packaging_ships_every_package_and_no_tests():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    shipped = set(find_packages(str(ROOT), include=settings["include"]))
    assert shipped == {".".join(path.parent.parts) for path in sources() if path.name == "__init__.py"}
    assert shipped >= set(PACKAGES)
    assert not [name for name in shipped if name.split(".")[0] not in PACKAGES]
