"""The command on hundreds of recipes, data files and stores that nobody makes in good faith (`BRAIN_FUZZ`: more).

Each ends in status 0 or 2 and a sentence: never in a traceback, never with the interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.locations import ROOT
from tests.unit.fuzz.command import examples

KINDS = {"recipes": 300, "data_files": 100, "damaged_stores": 100}
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
_AT_ONCE = 1000  # examples in one process


EXAMPLES = [(kind, seed) for kind, count in KINDS.items() for seed in range(1 + (examples(count) - 1) // _AT_ONCE)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "seed"), EXAMPLES)
def test_whatever_is_given_to_a_command_it_ends_in_a_sentence(kind: str, seed: int, tmp_path: Path) -> None:
    record = tmp_path / "example.txt"
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.unit.fuzz.child", kind, str(record), str(seed)]
    count = min(_AT_ONCE, examples(KINDS[kind]) - seed * _AT_ONCE)
    process = subprocess.run(
        [*command, str(count)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False
    )
    last = record.read_text() if record.exists() else "the start"
    assert process.returncode == 0, f"status {process.returncode}, at {last}:\n{process.stderr[-8000:]}"
