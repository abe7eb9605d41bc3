"""Parts of the commands that maintain a store."""

import argparse
import re

from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.compaction import GRACE_SECONDS
from brain_align.deploy.run.stored_source import locate

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def opened(place: str, *, read_only: bool) -> OpenedStore:
    """Open a store, and name what is damaged."""
    store = OpenedStore(locate(place).uri, None, read_only=read_only)
    for message in store.damaged:
        print(f"damaged: {message}")
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
