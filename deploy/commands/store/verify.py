"""Check every part of a store; status 1 if anything is damaged.

Reads every part and checks checksums, schemas, the index, references between groups, scores and steps, and duplicates.
Changes nothing. Names the damage, if there is any.

Examples:
  brain store verify runs/demo
"""

import argparse

from brain_align.common.store.maintenance.verification import verify
from brain_align.deploy.commands.store.parts.terminal import add_store
from brain_align.deploy.console import say
from brain_align.deploy.run.stored_source import locate

GROUP = "Inspect"

add = add_store


def run(options: argparse.Namespace) -> int:
    """Verify the store."""
    found = verify(locate(options.place).uri)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items())
    say(f"{found.uri}: {counts} in {found.parts:,} parts, {found.size / 2**20:,.1f} MiB read")
    for note in found.notes:
        say(f"note: {note}")
    for problem in found.problems:
        say(f"damaged: {problem}")
    say(f"{len(found.problems)} problems" if found.problems else "nothing is damaged")
    return 1 if found.problems else 0
