"""vLLM's failures as the project's errors, which tell whether settings, version, moment or engine is to blame."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from brain_align.common.errors import DeliveryError, EngineLostError, UserError, first_line

_PASSING = ("out of memory", "cuda error", "cublas", "nccl", "[errno ", "no such file", "i/o error", "timed out")
"""Parts of vLLM's messages that mean a reason that may pass; the errors' types are lost between its processes."""


@contextmanager
def saying_if_it_died(llm: Any) -> Iterator[None]:
    """Turn any error in the block into an EngineLostError if the engine (vLLM's `AsyncLLM`) has died."""
    try:
        yield
    except Exception as error:
        if llm.errored:
            raise EngineLostError(f"vLLM's engine has died: {first_line(error)}") from error
        raise


def not_started(model: str, error: Exception) -> UserError:
    """Make the error for a model, or settings, that vLLM refuses to start with."""
    reason = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else first_line(error)
    return UserError(f"vLLM does not load policy.model={model}: {reason}")


def not_loaded(what: str, error: Exception) -> UserError | DeliveryError:
    """Make the error for weights that vLLM did not load, which blames either the version or the moment."""
    kind = DeliveryError if may_pass(str(error)) else UserError
    return kind(f"vLLM does not load {what}: {first_line(error)}")


def may_pass(message: str) -> bool:
    """Return whether an error of vLLM, which is known by its message only, has a reason that may pass."""
    return any(sign in message.lower() for sign in _PASSING)
