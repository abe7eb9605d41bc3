"""What stays in memory for as long as a run takes, and the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_collected() -> Iterator[None]:
    """Leave the objects that are there now out of garbage collection until the block ends.

    Modules, prompts and services are hundreds of thousands of objects that stay. To look at them all holds the process
    up for a tenth of a second each time. Of several blocks in one process the first that ends has everything looked at
    again, which costs time and nothing else.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
