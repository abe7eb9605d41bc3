"""A hundred damaged stores: no command crashes, and `verify` calls nothing whole that reads otherwise than before."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.locations import ROOT
from tests.unit.fuzz.command import examples

PER_PROCESS = 50


@pytest.mark.parametrize("seed", range(examples(100) // PER_PROCESS))
def test_no_damaged_store_ends_the_interpreter_or_in_a_traceback(seed: int, tmp_path: Path) -> None:
    record = tmp_path / "damage.json"
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.unit.fuzz.damaged_stores"]
    process = subprocess.run(
        [*command, str(record), str(seed), str(PER_PROCESS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, f"status {process.returncode} at {record.read_text()}:\n{process.stderr[-6000:]}"
