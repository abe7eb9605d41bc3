"""Marks tests by their folder, skips those that need a GPU where there is none, and lends a module an event loop."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BY_FOLDER = ("unit", "integration", "gpu")


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
    if needs_gpu:
        import torch  # seconds, so only for those

        if not torch.cuda.is_available():
            for item in needs_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
