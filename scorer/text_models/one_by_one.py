"""Values of many items at once, of which one that cannot be read leaves the others their values."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from brain_align.common.errors import first_line
from brain_align.scorer.scorer import NoValueError

Item = TypeVar("Item")

_MEMORY = (MemoryError, torch.OutOfMemoryError)
_OF_DEVICES = ("CUDA", "cuDNN", "NCCL", "out of memory", "can't allocate memory")


def values_or_reasons(
    compute: Callable[[Sequence[Item]], Sequence[float]], items: Sequence[Item]
) -> list[float | NoValueError]:
    """Return the value of each item, or the reason why it has none.

    `compute` takes any number of items. Where it raises, it is called for the halves, until it raises for one alone.
    Failures of a device, and of memory for a single item, are raised: no item is to blame.
    """
    if not items:
        return []
    try:
        return list(compute(items))
    except Exception as error:
        if len(items) == 1 and not _is_of_devices(error):
            return [NoValueError(f"{type(error).__name__}: {first_line(error)}")]
        if len(items) == 1 or (_is_of_devices(error) and not isinstance(error, _MEMORY)):
            raise
    half = len(items) // 2
    return values_or_reasons(compute, items[:half]) + values_or_reasons(compute, items[half:])


def _is_of_devices(error: Exception) -> bool:
    return isinstance(error, (*_MEMORY, torch.AcceleratorError)) or any(word in str(error) for word in _OF_DEVICES)
