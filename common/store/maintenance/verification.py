"""Verification of a whole store: every byte of every part, and the consistency of the rows."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.store.maintenance.removal import removed_group_ids
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.catalogue import Catalogue
from brain_align.common.store.table.summary_rows import KEYS, SUMMARY_SCHEMAS

_NAMED = 5  # rows per problem that are listed individually


@dataclass
class Findings:
    """The result of a verification.

    Attributes:
        uri: of the store, for messages.
        problems: a sentence for everything that is damaged or inconsistent.
        notes: a sentence for everything notable that is not damage.
        counts: number of rows of each kind.
        parts, size: number of parts that were read, and their bytes.
    """

    uri: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    parts: int = 0
    size: int = 0


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
    """Count the rows whose key an earlier commit has: harmless, unless their content differs."""
    hidden = catalogue.rows.hidden_numbers()
    if not len(hidden):
        return
    keys = catalogue.rows.table().take(pa.array(hidden))
    plain = [
        keys[name].cast(pa.string() if name != "step" else pa.int64()).to_pylist() for name in KEYS[catalogue.kind]
    ]
    first = catalogue.find(*plain)
    times = {name for name in ("started_at", "finished_at", "scored_at", "sampler_id", "lease_id")}
    columns = [name for name in catalogue.take(hidden[:1]).column_names if name not in times]
    others, kept = catalogue.take(hidden).select(columns), catalogue.take(first).select(columns)
    differing = sum(not others.slice(row, 1).equals(kept.slice(row, 1)) for row in range(len(hidden)))
    found.notes.append(
        f"{catalogue.kind}: {len(hidden)} rows repeat the key of an earlier one, {differing} of them with other "
        f"content; the earlier row counts."
    )


def _check_index(store: OpenedStore, uri: str | Path, found: Findings) -> None:
    indexed = OpenedStore(uri, None, read_only=True)
    for kind, catalogue in store.kinds.items():
        openings = (catalogue, indexed.kinds[kind])
        known = set.intersection(*map(_commits, openings))  # other processes may append, compact and remove meanwhile
        ours, theirs = (_comparable(_rows_of(one, known), kind) for one in openings)
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
    """Return all summary rows of these commits, even those that do not count, in the order of commitment."""
    order = {commit: position for position, commit in enumerate(sorted(commits))}
    positions = np.array([order.get(commit, -1) for commit in catalogue.rows.commits], dtype=np.int64)
    table = catalogue.rows.table()
    of = positions[table["commit"].to_numpy()] if len(positions) else np.zeros(0, dtype=np.int64)
    sorted_rows = np.lexsort((table["row"].to_numpy(), of))
    return table.take(pa.array(sorted_rows[of[sorted_rows] >= 0]))


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
    trained: set[str] = set()
    for batch in store.kinds["steps"].batches():
        trained.update(itertools.chain.from_iterable(batch["group_ids"].to_pylist()))
    for what, names in (("scores", scored), ("steps", sorted(trained))):
        lost = [name for name, number in zip(names, groups.find(names), strict=True) if number < 0]
        unexplained = [name for name in lost if name not in removed]
        if unexplained:
            found.problems.append(
                f"{store.backend.uri}/{what}: {len(unexplained)} groups that they refer to are not in the store "
                f"({', '.join(unexplained[:_NAMED])}{', …' if len(unexplained) > _NAMED else ''})."
            )
        if len(lost) > len(unexplained):
            found.notes.append(f"{what} refer to {len(lost) - len(unexplained)} groups that `brain store gc` removed.")


def _name(found: Findings, problem: str, rows: pa.Table, wrong: "np.typing.NDArray[np.int64]") -> None:
    if len(wrong):
        named = rows.take(pa.array(wrong[:_NAMED]))
        names = zip(named["group_id"].to_pylist(), named["scorer"].to_pylist(), strict=True)
        listed = ", ".join(f"{scorer} of {group}" for group, scorer in names)
        found.problems.append(f"{len(wrong)} {problem} ({listed}{', …' if len(wrong) > _NAMED else ''}).")


def _comparable(rows: pa.Table, kind: str) -> pa.Table:
    """Return summary rows in comparable form: without dictionaries and NaN, which equals nothing."""
    columns = []
    for column_field in SUMMARY_SCHEMAS[kind]:
        column = rows[column_field.name]
        if pa.types.is_dictionary(column_field.type):
            column = column.cast(column_field.type.value_type)
        if pa.types.is_floating(column_field.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        columns.append(column)
    return pa.table(columns, names=SUMMARY_SCHEMAS[kind].names)
