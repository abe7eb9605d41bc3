"""What tests of several files look at: finished runs, made once per session, and collections that cost nothing."""

import gc
import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.integration.deploy.pipeline_runs import FinishedRun, run


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Return one strict run from start to end, which the first worker that needs it makes for all."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a directory of its own below the session's
        shared = shared.parent
    return made_once(shared / "uninterrupted")


def made_once(place: Path) -> FinishedRun:
    """Run the small demo below a directory that several processes share, unless one of them has done it."""
    said = place / "said.txt"
    place.mkdir(exist_ok=True)
    with FileLock(place / "lock"):
        if not said.exists():
            said.write_text(run(place / "run").output)
    return FinishedRun(place / "run", said.read_text())


@pytest.fixture
def no_full_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare hundreds of short runs in one process the full garbage collection with which each of them begins."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
