"""Set damaged parts aside and rebuild the index; deletes nothing.

Moves what is damaged or foreign to the store's `damaged` folder, and rebuilds store.json and the index files where they
need it. The run samples and scores again what the damaged parts held.

Examples:
  brain store repair runs/demo
"""

import argparse

from brain_align.common.store.maintenance.repair import repair
from brain_align.deploy.commands.store.parts.terminal import add_store
from brain_align.deploy.console import say
from brain_align.deploy.run.stored_source import locate

GROUP = "Maintain"

add = add_store


def run(options: argparse.Namespace) -> None:
    """Repair the store."""
    done = repair(locate(options.place).uri)
    say("\n".join(done) if done else "nothing was damaged; the index was rebuilt")
