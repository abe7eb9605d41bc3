from pathlib import Path

import pytest

from tests.integration.deploy.pipeline_runs import FinishedRun, run


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One strict run from start to end, which several tests look at."""
    directory: Path = tmp_path_factory.mktemp("uninterrupted") / "run"
    return run(directory)
