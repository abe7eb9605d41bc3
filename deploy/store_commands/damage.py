"""Damaged parts, as tools that only look meet them: named, and the rest is shown."""

from collections.abc import Callable
from typing import TypeVar

from common.errors import DamagedPartError
from deploy.run_store import StoredSamples

T = TypeVar("T")


def despite_damage(store: StoredSamples, look: Callable[[], T]) -> T:
    """Look through a store, and again without the part each time that one turns out to be damaged.

    A store verifies a part when it first reads it, and no longer has its rows if it is damaged; `store.damaged` names
    it then.

    Raises:
        DamagedPartError: damage that the store did not take note of, so that looking again would find it again.
    """
    while True:
        known = len(store.damaged)
        try:
            return look()
        except DamagedPartError:
            if len(store.damaged) == known:
                raise
