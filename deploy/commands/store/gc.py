"""Remove old groups, and parts that compaction has replaced.

Removes groups by age or proposal version, with their scores. The newest round that was trained, later rounds, and
groups that no step has trained are kept. Without --delete nothing is changed. Safe for finished runs, and for live
runs with algorithm.buffer=latest.

Examples:
  brain store gc runs/demo --older-than 30d
  brain store gc runs/demo --below-version 4 --delete
"""

import argparse

from brain_align.common.store.maintenance.removal import Criterion, plan_removal, remove
from brain_align.common.store.table.compaction import remove_superseded
from brain_align.deploy.commands.store.parts.terminal import add_grace, add_store, age, opened_for_maintenance
from brain_align.deploy.console import say

GROUP = "Maintain"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_store(parser)
    parser.add_argument("--below-version", type=int, metavar="V", help="groups of proposal versions before V")
    parser.add_argument("--older-than", type=age, metavar="AGE", help="groups finished longer ago: 30d, 12h, 2w")
    parser.add_argument("--untrained", action="store_true", help="also untrained groups of earlier rounds")
    parser.add_argument("--delete", action="store_true", help="delete, instead of showing what would be deleted")
    add_grace(parser)


def run(options: argparse.Namespace) -> None:
    """Remove, or show what would be removed."""
    store = opened_for_maintenance(options.place, read_only=not options.delete)
    criterion = Criterion(options.below_version, options.older_than, options.untrained)
    if criterion.below_version is None and criterion.older_than is None:
        say("groups: none, as neither --below-version nor --older-than is given")
    else:
        plan = plan_removal(store, criterion)
        commits = ", ".join(f"{len(names)} commits of {kind}" for kind, names in plan.commits.items())
        say(f"groups: {len(plan.group_ids)} ({commits})")
        say(f"kept: {plan.kept_untrained} groups that match, but are untrained or belong to the newest round")
        if options.delete:
            say(f"deleted {remove(store, plan)} parts")
    superseded = {kind: len(catalogue.part_map.superseded()) for kind, catalogue in store.kinds.items()}
    say(f"parts that compaction has replaced: {sum(superseded.values())}")
    if options.delete:
        removed = [remove_superseded(store.backend, catalogue, options.grace) for catalogue in store.kinds.values()]
        say(f"deleted {sum(map(len, removed))} of them; the others are younger than --grace")
    else:
        say("nothing was deleted; run it with --delete to do so")
