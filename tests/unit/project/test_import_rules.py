"""The import rules of docs/architecture.md, on the sources (which line?) and in clean processes (really?)."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from setuptools import find_packages

from tests.locations import ROOT

PACKAGE = "brain_align"
ROOMS = ("common", "sampler", "scorer", "learner", "deploy")
STAGES = ("sampler", "scorer", "learner")
# The files that may import an engine. Of the sampler's, requests.py and engine_weights.py make vLLM's arguments;
# merging.py and transfer.py are imported by vLLM in its own processes.
ENGINES = {
    "vllm": (
        PurePosixPath("sampler/engine/adapter_support.py"),
        PurePosixPath("sampler/engine/engine.py"),
        PurePosixPath("sampler/engine/requests.py"),
        PurePosixPath("sampler/weights/engine_weights.py"),
        PurePosixPath("sampler/weights/merging.py"),
        PurePosixPath("sampler/weights/transfer.py"),
    ),
    "deepspeed": (PurePosixPath("learner/engine.py"),),
}
TENSOR_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
HEAVY = ("ray", "vllm", "deepspeed")

# From top to bottom: a room imports from itself and from what stands below it (docs/architecture.md, "Rooms"). Rooms on
# one line never import each other. A module belongs to the longest name that it begins with.
LAYERS = (
    (
        ("deploy.cli",),
        ("deploy.commands",),
        ("deploy.evaluate",),
        ("deploy.api", "deploy.compare", "deploy.lab"),
        ("deploy.pipeline",),
        ("deploy.report",),
        ("deploy.monitor",),
        ("deploy.conductor",),
        ("deploy.services",),
        ("deploy.run",),
        ("deploy.worlds", "deploy.demo"),
        ("deploy.actors", "deploy.schedule", "deploy.pages", "deploy.plotting", "deploy.console"),
    ),
    (
        ("common.store.maintenance",),
        ("common.store.commit_queue", "common.store.training_batch"),
        ("common.store.rewards",),
        ("common.store.overlay",),
        ("common.store.sample_store",),
        ("common.store.opened_store",),
        ("common.store.training_lock", "common.store.manifest"),
        ("common.store.table",),
        ("common.store.files",),
        ("common.store.format",),
    ),
    (
        ("deploy.compare.compare",),
        ("deploy.compare.reading",),
        ("deploy.compare.report", "deploy.compare.train"),
        ("deploy.compare.results",),
        ("deploy.compare.examine",),
        ("deploy.compare.plan",),
    ),
    (
        ("deploy.evaluate.stored_run",),
        ("deploy.evaluate.evaluate",),
        ("deploy.evaluate.job", "deploy.evaluate.generation", "deploy.evaluate.samplers"),
        ("deploy.evaluate.prompts", "deploy.evaluate.output", "deploy.evaluate.report"),
        ("deploy.evaluate.outcomes",),
        ("deploy.evaluate.plan", "deploy.evaluate.figures"),
        ("deploy.evaluate.candidates", "deploy.evaluate.length_control", "deploy.evaluate.text_figures"),
        ("deploy.evaluate.published",),
        ("deploy.evaluate.settings",),
    ),
    (("sampler.service",), ("sampler.sampler",), ("sampler.generation",), ("sampler.weights",), ("sampler.engine",)),
    (("scorer.service",), ("scorer.catalogue",), ("scorer.kinds",), ("scorer.text_models",), ("scorer.scorer",)),
    (
        ("learner.service",),
        ("learner.trainer",),
        ("learner.checkpoints",),
        ("learner.steps",),
        ("learner.objectives", "learner.publishing", "learner.engine"),
        ("learner.engine_protocol",),
    ),
)
ONE_ROOM = ({"deploy.worlds", "deploy.demo"},)  # the demo is one of the worlds, made with their parts


def sources() -> list[PurePosixPath]:
    return sorted(PurePosixPath(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(source: str, path: PurePosixPath) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that `source` imports at any depth, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                inside = (PACKAGE, *path.parts)
                base = list(inside[: len(inside) - level]) if level else []
                prefix = ".".join(base + ([module] if module else []))
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def broken_rule(path: PurePosixPath, name: str) -> str | None:
    """The rule that the file at `path` breaks by importing `name`, if any."""
    room = path.parts[0]
    inside = name.startswith(f"{PACKAGE}.")
    name = name.removeprefix(f"{PACKAGE}.")
    target = name.split(".")[0]
    in_common = room == "common" and path.parts[1] != "nn"
    rules = {
        f"the project is imported as {PACKAGE}.…, never by the bare names of its rooms": target in ROOMS and not inside,
        "the product never imports its tests": target == "tests",
        "nothing imports deploy": target == "deploy" and room != "deploy",
        "sampler, scorer and learner never import each other, nor common any of them": (
            target in STAGES and room not in (target, "deploy")
        ),
        f"{target} is imported only in {', '.join(map(str, ENGINES.get(target, ())))}": (
            target in ENGINES and path not in ENGINES[target]
        ),
        "ray is imported only in deploy and in the stages' service.py": (
            target == "ray" and room != "deploy" and not (room in STAGES and path.name == "service.py")
        ),
        "common outside of common.nn imports no tensor library": in_common and target in TENSOR_LIBRARIES,
        "datasets is imported only in deploy": target == "datasets" and room != "deploy",
        "common does not import common.nn": in_common and f"{name}.".startswith("common.nn."),
        "a room imports only from rooms below it": inside and is_above(".".join(path.with_suffix("").parts), name),
    }
    return next((rule for rule, broken in rules.items() if broken), None)


def is_above(importing: str, imported: str) -> bool:
    """Whether a module stands in a room above, or beside, that of the module that imports it."""
    for layers in LAYERS:
        here, there = layer_of(importing, layers), layer_of(imported, layers)
        if here and there and here[1] != there[1] and {here[1], there[1]} not in ONE_ROOM:
            return there[0] <= here[0]
    return False


def layer_of(module: str, layers: tuple[tuple[str, ...], ...]) -> tuple[int, str] | None:
    """The number of the layer in which a module stands, and its room, if any."""
    rooms = {room: number for number, layer in enumerate(layers) for room in layer}
    found = max((room for room in rooms if f"{module}.".startswith(f"{room}.")), key=len, default=None)
    return None if found is None else (rooms[found], found)


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
        ("common/store/sample_store.py", "import torch.nn as nn"),
        ("common/store/sample_store.py", "def f():\n    from transformers import AutoModel"),
        ("common/data/row_files.py", "from datasets import load_dataset"),
        ("common/store/sample_store.py", "from brain_align.common import nn"),
        ("common/schemas.py", "from .nn import logprobs"),
        ("common/config/recipe.py", "from ..nn.logprobs import f"),
        ("common/store/sample_store.py", "import brain_align.learner.engine"),
        ("common/nn/load.py", "import ray"),
        ("sampler/engine/engine.py", "from brain_align.scorer import rewards"),
        ("sampler/prompts.py", "import vllm"),
        ("sampler/weights/receiving.py", "from vllm.distributed import weight_transfer"),
        ("sampler/engine/failures.py", "from vllm.v1.engine.exceptions import EngineDeadError"),
        ("learner/service.py", "from deepspeed import zero"),
        ("learner/engine.py", "import ray"),
        ("deploy/commands/doctor.py", "import importlib\nimportlib.import_module('vllm')"),
        ("scorer/pool.py", "if True:\n    import ray"),
        ("scorer/service.py", "from brain_align.deploy.cli import main"),
        ("deploy/cli.py", "from tests.bench import harness"),
        ("deploy/cli.py", "from deploy.run.directory import RunDirectory"),
        ("scorer/service.py", "import common.store"),
        ("deploy/run/directory.py", "from brain_align.deploy.conductor.conductor import Conductor"),
        ("deploy/schedule/rounds.py", "from brain_align.deploy.actors.pool import Pool"),
        ("common/store/table/row_index.py", "from ..sample_store import SampleStore"),
        ("learner/objectives/brain.py", "from brain_align.learner.steps.gradients import x"),
        ("learner/publishing/publisher.py", "from brain_align.learner.engine import DeepSpeedEngine"),
        ("sampler/engine/engine.py", "from brain_align.sampler.weights.engine_weights import EngineWeights"),
    ],
)
def test_a_planted_breach_is_found(path, source):
    path = PurePosixPath(path)
    assert any(broken_rule(path, name) for _, name in imported(source, path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/nn/load.py", "import torch, transformers\nfrom brain_align.common.store.sample_store import Store"),
        ("common/policies.py", "from . import schemas\nfrom .nncache import x"),
        ("sampler/engine/engine.py", "import vllm"),
        ("sampler/weights/transfer.py", "from vllm.config import VllmConfig"),
        ("learner/engine.py", "import deepspeed\nfrom .policy import elements"),
        ("scorer/service.py", "import ray"),
        (
            "deploy/conductor/conductor.py",
            "import ray\nfrom brain_align.learner.service import Learner\nfrom . import sampling",
        ),
    ],
)
def test_what_is_allowed_passes(path, source):
    path = PurePosixPath(path)
    assert not [name for _, name in imported(source, path) if broken_rule(path, name)]


def loaded_after_importing(paths: list[PurePosixPath]) -> set[str]:
    """Imports the modules at `paths` in a process of their own; the top-level packages that it then holds."""
    names = [f"{PACKAGE}." + ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
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
    rooms = {f"{PACKAGE}." + ".".join(path.parent.parts) for path in sources() if path.name == "__init__.py"}
    assert shipped == {PACKAGE, *rooms}


def test_the_links_of_the_package_are_relative_and_lead_to_the_rooms():
    links = {path.name: path.readlink() for path in (ROOT / PACKAGE).iterdir() if path.is_symlink()}
    assert links == {room: Path("..") / room for room in ROOMS}
