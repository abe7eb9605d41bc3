"""Align language models with BRAIn (arXiv 2402.02479): the Python API.

    import brain_align

    result = brain_align.run("demo", sampling={"n": 8})
    rows = result.store.to_pandas()

docs/python.md describes it. A name is imported when it is first used, so that `import brain_align` costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from brain_align.common.user_code import DIRECTORY, add_to_path

if DIRECTORY in os.environ:  # an actor: Ray has put the directory before the libraries, which are imported only now
    add_to_path(os.environ[DIRECTORY])

if TYPE_CHECKING:
    from brain_align.common.errors import PipelineError, UserError
    from brain_align.common.nn.logprobs import sequence_logprobs
    from brain_align.deploy.api.losses import brain_loss
    from brain_align.deploy.api.running import RunResult, run
    from brain_align.deploy.api.samples import Samples, open_store
    from brain_align.deploy.api.scorers import load_scorer

_MODULES = {
    "PipelineError": "common.errors",
    "RunResult": "deploy.api.running",
    "Samples": "deploy.api.samples",
    "UserError": "common.errors",
    "brain_loss": "deploy.api.losses",
    "load_scorer": "deploy.api.scorers",
    "open_store": "deploy.api.samples",
    "run": "deploy.api.running",
    "sequence_logprobs": "common.nn.logprobs",
}

__all__ = [
    "PipelineError",
    "RunResult",
    "Samples",
    "UserError",
    "brain_loss",
    "load_scorer",
    "open_store",
    "run",
    "sequence_logprobs",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
