"""Damaged parts, as tools that only look meet them: the store names them, and the rest is shown."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from brain_align.common.errors import DamagedPartError


def readable(read: Callable[[Sequence[str]], pa.Table], group_ids: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of those of the groups whose parts are good, in the given order, in one or more tables.

    A store verifies a part when it first reads it, refuses to read it if it is damaged, and names it in its `damaged`.

    Args:
        read: gives the rows of some groups.
        group_ids: of the rows that are wanted.
    """
    if not group_ids:
        return
    try:
        yield read(group_ids)
    except DamagedPartError:
        if len(group_ids) == 1:
            return
        half = len(group_ids) // 2
        yield from readable(read, group_ids[:half])
        yield from readable(read, group_ids[half:])
