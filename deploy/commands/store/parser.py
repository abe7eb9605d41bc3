"""`brain store`: the commands that work on a sample store."""

import argparse
from pathlib import Path

from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.commands.store.export import add_export
from brain_align.deploy.commands.store.ls import add_ls
from brain_align.deploy.commands.store.maintenance import add_maintenance_commands
from brain_align.deploy.commands.store.replay import add_replay
from brain_align.deploy.commands.store.rescore import add_rescore
from brain_align.deploy.commands.store.show import add_show


def add_store_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `brain store` with its sub-commands."""
    parser = commands.add_parser(
        "store",
        help="look at, export, keep in order and train again from stored samples",
        description="Work on a sample store: what a run has sampled, scored and trained.",
    )
    store_commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_ls, add_show, add_export, add_replay, add_rescore, add_import_pairs, add_maintenance_commands):
        add(store_commands)


def add_import_pairs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `brain store import-pairs`."""
    parser = commands.add_parser(
        "import-pairs",
        help="a store of pairs that people chose between, to train dpo on",
        description="Read a file of the columns prompt, chosen and rejected (.jsonl, .jsonl.gz or .parquet) into a new "
        "store, with the prior's log-probabilities. Train on it with brain run RECIPE sampler.replicas=0 "
        "store.uri=STORE objective.name=dpo",
    )
    add_recipe(parser, "whose policy and limits of length are used")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="the pairs")
    parser.add_argument("--output", type=Path, required=True, metavar="STORE", help="a directory that does not exist")
    add_overrides(parser)
    parser.set_defaults(command=_import_pairs)


def _import_pairs(options: argparse.Namespace) -> int:
    from brain_align.deploy.commands.store.import_pairs import import_pairs  # torch and transformers

    return import_pairs(options)
