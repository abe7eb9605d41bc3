"""The examples of docs/store.md, run as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table.compaction import LARGE, compact
from tests.locations import ROOT
from tests.unit.factories import groups, scores

DOCUMENT = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
_CUT = "the example begins here"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the document's store, compacted: the replaced parts are there as well."""
    root: Path = tmp_path_factory.mktemp("document")
    store = SampleStore(root / "runs/demo/store", "run")
    for round_ in range(2):
        names = [f"{round_}-{number}" for number in range(3)]
        store.append_groups(groups(*names, round=round_))
        store.append_scores(scores("reward", {name: [float(round_), None] for name in names}))
    opened = OpenedStore(root / "runs/demo/store", None, read_only=False)
    for catalogue in opened.kinds.values():
        compact(opened.backend, catalogue, opened.author, LARGE)
    return root


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "shown"),
    [
        pytest.param(0, "{'groups': 6, 'scores': 6, 'steps': 0} 1", id="brain-align"),
        pytest.param(1, "3", id="pyarrow"),
        pytest.param(2, "reward", id="pandas"),
        pytest.param(3, "shape: (6, 2)", id="polars"),
        pytest.param(4, "0.5", id="duckdb"),
        pytest.param(5, "a prompt 2", id="datasets"),
    ],
)
def test_the_examples_do_what_they_say(folder: Path, number: int, shown: str) -> None:
    first, *others = EXAMPLES
    assert len(others) == 5
    code = first if number == 0 else f"{first}\nprint('{_CUT}')\n{others[number - 1]}"
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout.rpartition(_CUT)[2]
