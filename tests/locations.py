"""Where the repository and the data that the team shares lie, and where syncing files costs nothing."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
_MEMORY = Path("/dev/shm")


@contextmanager
def memory_directory(otherwise: Path) -> Iterator[Path]:
    """Yield a temporary directory in memory, or the given one where there is no file system in memory."""
    if not os.access(_MEMORY, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="brain-test-", dir=_MEMORY) as name:
        yield Path(name)
