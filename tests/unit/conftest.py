"""Unit tests run where no engine is installed, and are quick because none is loaded. This watches over it."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads only slow models this small down

FORBIDDEN = ("ray", "vllm", "deepspeed")
HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def no_engine_is_loaded(request):
    yield
    # In a session with other tests too, those may have loaded them.
    if all(HERE in item.path.parents for item in request.session.items):
        loaded = [name for name in FORBIDDEN if name in sys.modules]
        assert not loaded, f"the unit tests imported {', '.join(loaded)}: see the rules in CONTRIBUTING.md"
