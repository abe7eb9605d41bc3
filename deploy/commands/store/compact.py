"""Merge many small parts into few large ones.

Rewrites small parts as large ones beside them; a run may continue meanwhile. A later compact or gc removes the small
ones, when nobody reads them any more.

Examples:
  brain store compact runs/demo
"""

import argparse

from brain_align.common.store.table.compaction import LARGE, Sizes, compact, remove_superseded
from brain_align.deploy.commands.store.parts.terminal import add_grace, add_store, opened_for_maintenance
from brain_align.deploy.console import say

GROUP = "Maintain"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_store(parser)
    parser.add_argument(
        "--target-mb", type=_megabytes, default=LARGE.target >> 20, metavar="MB", help="size of a large part"
    )
    add_grace(parser)


def run(options: argparse.Namespace) -> None:
    """Compact the store."""
    store = opened_for_maintenance(options.place, read_only=False)
    target = options.target_mb << 20
    for kind, catalogue in store.kinds.items():
        before = len(catalogue.part_map.sizes)
        replaced = compact(store.backend, catalogue, store.author, Sizes(target // 2, target, LARGE.fewest))
        removed = remove_superseded(store.backend, catalogue, options.grace)
        catalogue.write_index(at_least=1)
        say(f"{kind}: {replaced} of {before} parts compacted, {len(removed)} removed (replaced earlier)")


def _megabytes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1 to 1024 MB")
    return int(text)
