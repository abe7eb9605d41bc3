"""Unit tests run where no engine is installed, and are quick because none is loaded. This watches over it."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads only slow models this small down

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, which the commands respect
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

FORBIDDEN = ("ray", "vllm", "deepspeed")
HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def no_engine_is_loaded(request):
    yield
    # In a session with other tests too, those may have loaded them.
    if all(HERE in item.path.parents for item in request.session.items):
        loaded = [name for name in FORBIDDEN if name in sys.modules]
        assert not loaded, f"the unit tests imported {', '.join(loaded)}: see the rules in CONTRIBUTING.md"


@pytest.fixture
def another_user(tmp_path) -> Callable[[], AbstractContextManager[None]]:
    """A context in which this process has the rights of a user who owns nothing; root may read everything."""

    @contextmanager
    def become() -> Iterator[None]:
        if os.geteuid():
            yield
            return
        temporary = Path(tempfile.gettempdir())
        for folder in (tmp_path, *tmp_path.parents):
            if temporary in folder.parents:
                folder.chmod(0o755)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return become
