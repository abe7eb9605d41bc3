"""`brain store verify`, `repair`, `compact` and `gc`."""

import argparse
import re

from brain_align.common.store.maintenance.removal import Criterion, plan_removal, remove
from brain_align.common.store.maintenance.repair import repair
from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.compaction import GRACE_SECONDS, LARGE, Sizes, compact, remove_superseded
from brain_align.deploy.commands.store.terminal import PLACE
from brain_align.deploy.run.stored_source import locate

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_maintenance_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-commands that check a store and keep it in order."""
    parser = commands.add_parser(
        "verify",
        help="read every part and check it; status 1 if anything is damaged",
        description="Check checksums, schemas, the index, references between groups, scores and steps, and duplicates. "
        "Changes nothing. Exits with 1 if there is damage, and names it.",
    )
    _has_place(parser).set_defaults(command=_verify)
    parser = commands.add_parser(
        "repair",
        help="set damaged parts aside and make the index anew; deletes nothing",
        description="Move what is damaged or foreign to the store's `damaged` folder, and make store.json and the "
        "index files again where they need it. What the damaged parts held is sampled and scored again by the run.",
    )
    _has_place(parser).set_defaults(command=_repair)
    parser = commands.add_parser(
        "compact",
        help="make few large parts of many small ones",
        description="Rewrite small parts as large ones, beside them; a run may go on meanwhile. The small ones are "
        "removed by a later compact or gc, when nobody reads them any more.",
    )
    parser.add_argument(
        "--target-mb", type=_megabytes, default=LARGE.target >> 20, metavar="MB", help="size of a large part"
    )
    _has_grace(_has_place(parser)).set_defaults(command=_compact)
    parser = commands.add_parser(
        "gc",
        help="remove old groups, and parts that compaction has replaced; shows what it would do unless --delete",
        description="Remove groups by age or proposal version, with their scores. The newest round that was trained, "
        "later ones, and groups that no step has trained, stay. Without --delete nothing is changed. For finished "
        "runs, or such with algorithm.buffer=latest.",
    )
    parser.add_argument("--below-version", type=int, metavar="V", help="groups of proposal versions before V")
    parser.add_argument("--older-than", type=_seconds, metavar="AGE", help="groups finished so long ago: 30d, 12h, 2w")
    parser.add_argument("--untrained", action="store_true", help="also untrained groups of earlier rounds")
    parser.add_argument("--delete", action="store_true", help="do it")
    _has_grace(_has_place(parser)).set_defaults(command=_gc)


def _verify(options: argparse.Namespace) -> int:
    found = verify(locate(options.place).uri)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items())
    print(f"{found.uri}: {counts} in {found.parts:,} parts, {found.size / 2**20:,.1f} MiB read")
    for note in found.notes:
        print(f"note: {note}")
    for problem in found.problems:
        print(f"damaged: {problem}")
    print(f"{len(found.problems)} problems" if found.problems else "all is well")
    return 1 if found.problems else 0


def _repair(options: argparse.Namespace) -> int:
    done = repair(locate(options.place).uri)
    print("\n".join(done) if done else "nothing was damaged; the index was made again")
    return 0


def _compact(options: argparse.Namespace) -> int:
    store = _opened(options.place, read_only=False)
    target = options.target_mb << 20
    for kind, catalogue in store.kinds.items():
        before = len(catalogue.part_map.sizes)
        replaced = compact(store.backend, catalogue, store.author, Sizes(target // 2, target, LARGE.fewest))
        removed = remove_superseded(store.backend, catalogue, options.grace)
        catalogue.write_index(at_least=1)
        print(f"{kind}: {replaced} of {before} parts compacted, {len(removed)} removed that others have replaced")
    return 0


def _gc(options: argparse.Namespace) -> int:
    store = _opened(options.place, read_only=not options.delete)
    criterion = Criterion(options.below_version, options.older_than, options.untrained)
    if criterion.below_version is None and criterion.older_than is None:
        print("groups: none, as neither --below-version nor --older-than is given")
    else:
        plan = plan_removal(store, criterion)
        commits = ", ".join(f"{len(names)} commits of {kind}" for kind, names in plan.commits.items())
        print(f"groups: {len(plan.group_ids)} ({commits}); {plan.kept_untrained} old ones stay, not trained or newest")
        if options.delete:
            print(f"deleted {remove(store, plan)} parts")
    superseded = {kind: len(catalogue.part_map.superseded()) for kind, catalogue in store.kinds.items()}
    print(f"parts that compaction has replaced: {sum(superseded.values())}")
    if options.delete:
        removed = [remove_superseded(store.backend, catalogue, options.grace) for catalogue in store.kinds.values()]
        print(f"deleted {sum(map(len, removed))} of them, the others are not old enough")
    else:
        print("nothing was deleted; say --delete to do it")
    return 0


def _opened(place: str, *, read_only: bool) -> OpenedStore:
    store = OpenedStore(locate(place).uri, None, read_only=read_only)
    for message in store.damaged:
        print(f"damaged: {message}")
    return store


def _has_place(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("place", metavar="STORE", help=PLACE)
    return parser


def _has_grace(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=GRACE_SECONDS,
        metavar="AGE",
        help="how long a part stays that compaction has replaced (default 1h; 0s: nobody else has the store open)",
    )
    return parser


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; say for instance 30d, 12h or 90s")
    return float(match[1]) * _UNITS[match[2]]


def _megabytes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no size from 1 to 1024 MB")
    return int(text)
