"""The command as a user calls it, whatever it is given: it ends in a sentence and an expected status."""

import contextlib
import io
import os
import re
from pathlib import Path

from brain_align.deploy.cli import main

EXAMPLES = float(os.environ.get("BRAIN_FUZZ", "1"))
"""How many times as many examples as usual are tried: `BRAIN_FUZZ=100 pytest tests/unit/fuzz` for hours."""

_ESCAPES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LONGEST = 200_000  # characters of a refusal


def examples(number: int) -> int:
    return max(1, round(number * EXAMPLES))


def ended(*arguments: str, statuses: tuple[int, ...] = (0, 2)) -> tuple[int, str, str]:
    """Status, output and errors of a command that ends as it should, or an AssertionError."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as exit_:  # argparse
            status = int(exit_.code or 0)
    said, failed = out.getvalue(), err.getvalue()
    assert status in statuses, f"status {status} of {arguments}: {failed}{_traceback(failed)}"
    assert "Traceback" not in said + failed and "brain: Unexpected " not in failed, f"{arguments}: {failed}"
    assert status == 0 or failed.startswith("brain") or said, f"{arguments} failed without a sentence"
    assert len(failed) < _LONGEST, f"{arguments}: {len(failed)} characters"
    assert not _ESCAPES.search(said + failed), f"{arguments} prints control characters: {said + failed!a}"
    return status, said, failed


def _traceback(message: str) -> str:
    kept = re.search(r"traceback is in (\S+)\.", message)
    return Path(kept[1]).read_text()[-3000:] if kept else ""
