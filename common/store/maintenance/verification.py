"""Verification of a whole store: every byte of every part, and the consistency of the rows."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.schemas import KINDS
from brain_align.common.store.maintenance.removal import removed_group_ids
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.catalogue import Catalogue
from brain_align.common.store.table.summary_rows import KEYS, SUMMARY_SCHEMAS

_NAMED = 5  # rows per problem that are listed individually
_OF_THE_CALL = {"started_at", "finished_at", "scored_at", "sampler_id", "lease_id"}  # differ if a call is repeated


@dataclass
class Findings:
    """The result of a verification: a sentence for each problem, and for everything notable that is not damage."""

    uri: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # rows of each kind
    parts: int = 0  # number of parts that were read
    size: int = 0  # and their bytes


def verify(uri: str | Path) -> Findings:
    """Read and check every part of a store; change nothing.

    The checks are: checksum, kind, schema and version of each part; the index files against the parts; every score has
    its group, and as many values as the group has outputs, none of them NaN or infinite; every step has its groups;
    rows that the store has twice.

    Raises:
        UserError: there is no store, its store.json is damaged, or it has another version.
    """
    store = OpenedStore(uri, None, read_only=True, use_index=False)
    found = Findings(store.backend.uri, problems=list(store.damaged))
    for kind, catalogue in store.kinds.items():
        found.counts[kind] = len(catalogue.rows)
        found.parts += len(catalogue.part_map.sizes)
        found.size += sum(catalogue.part_map.sizes.values())
        _check_duplicates(catalogue, found)
    _check_index(store, uri, found)
    _check_scores(store.kinds["scores"], store.kinds["groups"], found)
    _check_references(store, found)
    return found


def _check_duplicates(catalogue: Catalogue, found: Findings) -> None:
    """Count the rows whose key another row has: harmless, unless their content differs."""
    hidden = catalogue.rows.hidden_numbers()
    if not len(hidden):
        return
    keys = catalogue.rows.table().take(pa.array(hidden))
    first = catalogue.find(*(keys[name].combine_chunks() for name in KEYS[catalogue.kind]))
    columns = [name for name in KINDS[catalogue.kind].names if name not in _OF_THE_CALL]
    others, kept = catalogue.take(hidden).select(columns), catalogue.take(first).select(columns)
    differing = sum(not others.slice(row, 1).equals(kept.slice(row, 1)) for row in range(len(hidden)))
    found.notes.append(
        f"{catalogue.kind}: {len(hidden)} rows repeat the key of another, {differing} of them with other content; the "
        f"row with fewer null values counts, of equal ones the earlier."
    )


def _check_index(store: OpenedStore, uri: str | Path, found: Findings) -> None:
    indexed = OpenedStore(uri, None, read_only=True)
    for kind, catalogue in store.kinds.items():
        openings = (catalogue, indexed.kinds[kind])
        known = set.intersection(*map(_commits, openings))  # other processes may append, compact and remove meanwhile
        ours, theirs = (_rows_of(one, known) for one in openings)
        if not ours.equals(theirs):
            found.problems.append(
                f"{store.backend.uri}/index: the index files of the {kind} do not match the parts; `brain store "
                f"repair` rebuilds them."
            )


def _commits(catalogue: Catalogue) -> set[str]:
    """Return the commits that the files of one opening hold."""
    part_map = catalogue.part_map
    return set(itertools.chain.from_iterable(map(part_map.commits, part_map.sizes)))


def _rows_of(catalogue: Catalogue, commits: set[str]) -> pa.Table:
    """Return all summary rows of these commits, even those that do not count, in the order of commitment.

    They are comparable: without dictionaries, and with null for NaN, which equals nothing.
    """
    table = catalogue.rows.table()
    names = pa.array(catalogue.rows.commits, pa.string()).take(table["commit"])
    rows = table.append_column("name", names).filter(pc.is_in(names, value_set=pa.array(commits, pa.string())))
    rows = rows.sort_by([("name", "ascending"), ("row", "ascending")])
    columns = []
    for name, type_ in zip(SUMMARY_SCHEMAS[catalogue.kind].names, SUMMARY_SCHEMAS[catalogue.kind].types, strict=True):
        column = rows[name].cast(type_.value_type) if pa.types.is_dictionary(type_) else rows[name]
        columns.append(pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(type_) else column)
    return pa.table(columns, names=SUMMARY_SCHEMAS[catalogue.kind].names)


def _check_scores(scores: Catalogue, groups: Catalogue, found: Findings) -> None:
    rows = scores.rows.listed()
    numbers = groups.find(rows["group_id"].to_pylist())
    known = np.flatnonzero(numbers >= 0)
    outputs = groups.rows.table()["outputs"].take(pa.array(numbers[known])).to_numpy()
    values = pc.add(rows["values"], rows["nulls"]).to_numpy()[known]
    _name(found, "scores do not have one value per output of their group", rows, known[values != outputs])
    wrong = ~np.isfinite(rows["sum"].to_numpy())
    _name(found, "scores have values that are NaN or infinite, where null belongs", rows, np.flatnonzero(wrong))


def _check_references(store: OpenedStore, found: Findings) -> None:
    groups = store.kinds["groups"]
    removed, problems = removed_group_ids(store.backend)
    found.problems.extend(problems)
    scored = pc.unique(store.kinds["scores"].rows.listed()["group_id"]).to_pylist()
    trained = pc.unique(pc.list_flatten(store.kinds["steps"].table()["group_ids"])).to_pylist()
    for what, names in (("scores", scored), ("steps", sorted(trained))):
        lost = [name for name, number in zip(names, groups.find(names), strict=True) if number < 0]
        unexplained = [name for name in lost if name not in removed]
        if unexplained:
            found.problems.append(
                f"{store.backend.uri}/{what}: {len(unexplained)} groups that they refer to are not in the store "
                f"({_listed(unexplained)})."
            )
        if len(lost) > len(unexplained):
            found.notes.append(f"{what} refer to {len(lost) - len(unexplained)} groups that `brain store gc` removed.")


def _name(found: Findings, problem: str, rows: pa.Table, wrong: "np.typing.NDArray[np.int64]") -> None:
    if len(wrong):
        named = rows.take(pa.array(wrong[: _NAMED + 1]))
        names = [f"{row['scorer']} of {row['group_id']}" for row in named.to_pylist()]
        found.problems.append(f"{len(wrong)} {problem} ({_listed(names)}).")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
