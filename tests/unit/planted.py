"""A copy of the product with planted changes, used in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.locations import ROOT

_ROOMS = ("common", "sampler", "scorer", "learner", "deploy")


def run_planted(directory: Path, files: dict[str, str], code: str) -> str:
    """Copy the product, append `files` (path -> source) to it, and run `code` there; returns what it printed."""
    for room in _ROOMS:
        shutil.copytree(ROOT / room, directory / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "brain_align", directory / "brain_align", symlinks=True)
    (directory / "tests").symlink_to(ROOT / "tests")  # its stand-ins, in code that imports the copy
    for path, source in files.items():
        with (directory / path).open("a", encoding="utf-8") as file:
            file.write(source)
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
