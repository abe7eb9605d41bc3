"""Marks tests by their folder, skips those that need a GPU where there is none, and lends a module an event loop.

The files with the longest tests come first, so that no worker of `make test` is alone with one of them in the end.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BY_FOLDER = ("unit", "integration", "gpu")
LONGEST = (
    "integration/compare/test_compare.py",
    "integration/deploy/test_pipeline.py",
    "integration/deploy/test_policy_kinds.py",
    "integration/deploy/test_training_without_vllm.py",
    "integration/deploy/test_elastic_vllm.py",
    "integration/sampler",
    "integration/learner",
    "integration/deploy",
    "integration/store",
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def pytest_collection_modifyitems(items):
    needs_gpu = []
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in BY_FOLDER:
            item.add_marker(folder)
        if item.get_closest_marker("gpu"):
            needs_gpu.append(item)
    items.sort(key=lambda item: rank(str(item.path.relative_to(HERE))))
    if needs_gpu:
        import torch  # seconds, so only for those

        if not torch.cuda.is_available():
            for item in needs_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def rank(path: str) -> int:
    """The place of a file among the longest; stable sorting keeps the order of all others."""
    return next((place for place, start in enumerate(LONGEST) if path.startswith(start)), len(LONGEST))
