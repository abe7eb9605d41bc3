"""The store commands' arguments, and how they open a store."""

import argparse
import re

from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.compaction import GRACE_SECONDS
from brain_align.deploy.console import say
from brain_align.deploy.run.stored_source import Source, locate, open_source

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add STORE."""
    parser.add_argument("place", metavar="STORE", help="a run directory, a store directory, or a store's URI")


def opened(place: str) -> Source:
    """Open the store that `place` names; print a note on stderr if its run's recipe cannot be used."""
    source = open_source(place)
    if source.location.problem is not None:
        say(f"note: {source.location.problem} The store is shown without it.", stderr=True)
    return source


def opened_for_maintenance(place: str, *, read_only: bool) -> OpenedStore:
    """Open a store, and print what is damaged."""
    store = OpenedStore(locate(place).uri, None, read_only=read_only)
    for message in store.damaged:
        say(f"damaged: {message}")
    return store


def add_grace(parser: argparse.ArgumentParser) -> None:
    """Add --grace."""
    parser.add_argument(
        "--grace",
        type=age,
        default=GRACE_SECONDS,
        metavar="AGE",
        help="how long a replaced part is kept (default 1h; 0s if nobody else has the store open)",
    )


def age(text: str) -> float:
    """Read a duration such as 30d, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write for instance 30d, 12h or 90s")
    return float(match[1]) * _UNITS[match[2]]
