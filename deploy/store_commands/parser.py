"""`brain store`: the commands that work on a sample store."""

import argparse

from deploy.store_commands.export import add_export
from deploy.store_commands.ls import add_ls
from deploy.store_commands.maintenance import add_maintenance_commands
from deploy.store_commands.replay import add_replay
from deploy.store_commands.rescore import add_rescore
from deploy.store_commands.show import add_show


def add_store_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `brain store` with its sub-commands."""
    parser = commands.add_parser(
        "store",
        help="look at, export, keep in order and train again from stored samples",
        description="Work on a sample store: what a run has sampled, scored and trained.",
    )
    store_commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_ls, add_show, add_export, add_replay, add_rescore, add_maintenance_commands):
        add(store_commands)
