import gc
import weakref
from collections.abc import Iterator

import pytest

from brain_align.deploy.conductor.group_pipeline import gc_frozen


class Node:
    """Refers to itself, so that only the garbage collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_garbage_before_the_block_does_not_stay() -> None:
    garbage = weakref.ref(Node())
    with gc_frozen():
        assert garbage() is None


def test_what_is_there_is_left_out_until_the_last_of_overlapping_blocks_ends() -> None:
    first, second = gc_frozen(), gc_frozen()
    first.__enter__()
    second.__enter__()
    assert gc.get_freeze_count() > 0
    first.__exit__(None, None, None)
    assert gc.get_freeze_count() > 0
    second.__exit__(None, None, None)
    assert gc.get_freeze_count() == 0


def test_a_block_that_fails_ends_like_any_other() -> None:
    with pytest.raises(ValueError, match="failed"), gc_frozen():
        raise ValueError("failed")
    assert gc.get_freeze_count() == 0
