"""A copy of the product with planted changes, used in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.locations import ROOT

_ROOMS = ("common", "sampler", "scorer", "learner", "deploy")


def run_planted(directory: Path, changed: dict[str, str], new: dict[str, str], code: str) -> str:
    """Copy the product, write sources into it (path -> source), and run `code` there; return what it printed."""
    for room in _ROOMS:
        shutil.copytree(ROOT / room, directory / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "brain_align", directory / "brain_align", symlinks=True)
    (directory / "tests").symlink_to(ROOT / "tests")  # its stand-ins, in code that imports the copy
    assert all((directory / path).exists() for path in changed), "these should be there"
    assert not any((directory / path).exists() for path in new), "these should be new"
    for path, source in {**changed, **new}.items():
        (directory / path).write_text(source, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
