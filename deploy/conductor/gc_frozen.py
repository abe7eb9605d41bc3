"""What stays in memory for as long as a run takes, and the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_blocks: list[object] = []  # those of this process that have begun and not ended


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Leave the objects that are there now out of garbage collection until the block ends.

    Modules, prompts and services are hundreds of thousands of objects that stay. To look at them all holds the process
    up for a tenth of a second each time. What is garbage already is collected first, as it would stay, too. Of several
    blocks that overlap, as where runs go side by side, the last that ends has everything looked at again.
    """
    block = object()
    gc.collect()
    gc.freeze()
    _blocks.append(block)
    try:
        yield
    finally:
        _blocks.remove(block)
        if not _blocks:
            gc.unfreeze()
