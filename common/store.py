"""The sample store: append-only Arrow parts that are the source of truth of a run.

    <store>/store.json            the run that it belongs to, schema version
    <store>/groups/*.arrow        GROUPS: what was sampled
    <store>/scores/*.arrow        SCORES: what the scorers said of it
    <store>/steps/*.arrow         STEPS:  which groups trained which step
    <store>/damaged/              what was set aside because it could not be read

Rows are keyed (groups by id; scores by group and scorer; steps by number). Appending a row whose key is there already
is harmless: the first one stays, the second is dropped before it is written.
"""

import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common import parts
from common.durable import is_temporary, remove_leftovers, write_file
from common.errors import DamagedPartError, UserError
from common.schemas import KINDS, SCHEMA_VERSION, batch_from_rows

_LOG = logging.getLogger(__name__)
_FACTS = "store.json"

ScoreKey = tuple[str, str]
"""(group_id, scorer name)"""


INDEX = pa.schema(
    [
        ("group_id", pa.string()),
        ("prompt_id", pa.string()),
        ("round", pa.int32()),
        ("proposal_version", pa.int32()),
        ("outputs", pa.int32()),
        ("tokens", pa.int64()),
        ("started_at", pa.float64()),
        ("finished_at", pa.float64()),
    ]
)


@dataclass(frozen=True)
class ScorerFacts:
    """What one scorer, under one digest, has said in a store."""

    name: str
    digest: str
    groups: int
    nulls: int
    mean: float | None
    min: float | None
    max: float | None


class SampleStore:
    """Groups, scores and steps of one run, durable as soon as an append returns.

    One process writes (the conductor). Opening a store for writing removes what interrupted writers left, and sets
    damaged parts aside with a message; it costs nothing but their own rows. A reader leaves all as it is.
    """

    def __init__(self, uri: str | Path, run_id: str | None = None, *, read_only: bool = False) -> None:
        self.root = Path(uri)
        self._read_only = read_only
        self.run_id = run_id or ""
        self.damaged: list[str] = []
        self._writer = f"{socket.gethostname()}:{os.getpid()}"
        self._tables: dict[str, list[pa.Table]] = {kind: [] for kind in KINDS}
        self._next_sequence = dict.fromkeys(KINDS, 0)
        self._groups: dict[str, tuple[int, int]] = {}  # group_id -> (table index, row)
        self._scores: dict[ScoreKey, tuple[int, int]] = {}
        self._steps: dict[int, tuple[int, int]] = {}
        self._open()

    # -- writing -----------------------------------------------------------------------------------------------------

    def append_groups(self, batch: pa.RecordBatch) -> int:
        """Commit groups; returns how many were new."""
        return self._append("groups", batch)

    def append_scores(self, batch: pa.RecordBatch) -> int:
        """Commit scores; returns how many were new."""
        return self._append("scores", batch)

    def append_step(self, row: Mapping[str, Any]) -> int:
        """Commit one STEPS row; returns 1, or 0 where the step was recorded before (a replay after a crash)."""
        metrics = list(row["metrics"].items())
        return self._append("steps", batch_from_rows(KINDS["steps"], [{**row, "metrics": metrics}]))

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def group_ids(self) -> Iterable[str]:
        """Ids of all committed groups, in the order of commitment."""
        return self._groups.keys()

    def has_group(self, group_id: str) -> bool:
        """Whether a group is committed."""
        return group_id in self._groups

    def has_score(self, group_id: str, scorer: str) -> bool:
        """Whether a scorer's values for a group are committed."""
        return (group_id, scorer) in self._scores

    def group_batches(self) -> Iterable[pa.RecordBatch]:
        """All groups, in batches as they were committed: one lease each."""
        for table in self._tables["groups"]:
            yield from table.to_batches()

    def groups(self, group_ids: Sequence[str]) -> pa.Table:
        """The GROUPS rows of the given ids, in the given order."""
        return self._take("groups", [self._groups[name] for name in group_ids])

    def scores(self, group_ids: Sequence[str], scorer: str) -> pa.Table:
        """The SCORES rows of one scorer for the given groups, in the given order."""
        return self._take("scores", [self._scores[(name, scorer)] for name in group_ids])

    def steps(self) -> list[dict[str, Any]]:
        """All STEPS rows, by step."""
        rows = self._take("steps", [self._steps[step] for step in sorted(self._steps)]).to_pylist()
        return [{**row, "metrics": dict(row["metrics"])} for row in rows]

    def step_groups(self, step: int) -> list[str] | None:
        """The groups that trained a step, or None if that step is not recorded."""
        place = self._steps.get(step)
        return None if place is None else self._take("steps", [place])["group_ids"][0].as_py()

    def index(self) -> pa.Table:
        """One light row a group, in order of commitment."""
        rows = [
            {
                **{name: row[name] for name in ("group_id", "prompt_id", "round", "proposal_version")},
                "outputs": len(row["outputs"]),
                "tokens": len(row["prompt_token_ids"]) + sum(len(output["token_ids"]) for output in row["outputs"]),
                "started_at": row["started_at"],
                "finished_at": row["finished_at"],
            }
            for batch in self.group_batches()
            for row in batch.to_pylist()
        ]
        return pa.Table.from_pylist(rows, schema=INDEX)

    def unscored(self, scorer: str, *, digest: str | None = None) -> list[str]:
        """Ids of the groups without that scorer's values."""
        missing = [name for name in self._groups if (name, scorer) not in self._scores]
        if digest is None:
            return missing
        scored = [name for name in self._groups if (name, scorer) in self._scores]
        digests = self.scores(scored, scorer)["scorer_digest"].to_pylist() if scored else []
        other = {name for name, found in zip(scored, digests, strict=True) if found != digest}
        return [name for name in self._groups if name in other or (name, scorer) not in self._scores]

    def scorers(self) -> list[ScorerFacts]:
        """What each scorer has said."""
        facts = []
        table = self._take("scores", list(self._scores.values()))
        for key in pc.unique(pc.binary_join_element_wise(table["scorer"], table["scorer_digest"], "\0")).to_pylist():
            name, digest = key.split("\0")
            mine = pc.and_(pc.equal(table["scorer"], name), pc.equal(table["scorer_digest"], digest))
            values = pc.list_flatten(table.filter(mine)["values"])
            bounds = pc.min_max(values).as_py()
            groups = table.filter(mine).num_rows
            facts.append(
                ScorerFacts(
                    name, digest, groups, values.null_count, pc.mean(values).as_py(), bounds["min"], bounds["max"]
                )
            )
        return facts

    def batches(
        self,
        *,
        round_: int | None = None,
        version: int | None = None,
        group_ids: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """GROUPS rows in order of commitment."""
        wanted = None if group_ids is None else pa.array(list(group_ids), pa.string())
        for batch in self.group_batches():
            if round_ is not None:
                batch = batch.filter(pc.equal(batch["round"], round_))
            if version is not None:
                batch = batch.filter(pc.equal(batch["proposal_version"], version))
            if wanted is not None:
                batch = batch.filter(pc.is_in(batch["group_id"], value_set=wanted))
            if batch.num_rows:
                yield batch.select(list(columns)) if columns else batch

    def counts(self) -> dict[str, int]:
        """How many groups, scores and steps are committed."""
        return {"groups": len(self._groups), "scores": len(self._scores), "steps": len(self._steps)}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._claim()
        for kind in KINDS:
            directory = self.root / kind
            if not self._read_only:
                directory.mkdir(parents=True, exist_ok=True)
                remove_leftovers(directory)
            for path in sorted(directory.glob("*")):
                if not is_temporary(path):
                    self._load(kind, path)

    def _claim(self) -> None:
        facts_path = self.root / _FACTS
        if not facts_path.exists():
            if self._read_only:
                raise UserError(f"There is no sample store at {self.root}; check the path.")
            self.root.mkdir(parents=True, exist_ok=True)
            write_file(facts_path, json.dumps({"run_id": self.run_id, "schema_version": SCHEMA_VERSION}))
            return
        try:
            facts = json.loads(facts_path.read_text())
            run_id, version = facts["run_id"], int(facts["schema_version"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{facts_path} cannot be read ({error}); restore it from a copy.") from None
        if version > SCHEMA_VERSION:
            raise UserError(f"The sample store {self.root} was written by a newer brain-align; upgrade to read it.")
        if not self.run_id:
            self.run_id = run_id
        if run_id != self.run_id:
            raise UserError(
                f"The sample store {self.root} belongs to run {run_id}, not to {self.run_id}: choose another "
                f"run directory, or remove the store."
            )

    def _load(self, kind: str, path: Path) -> None:
        try:
            table = parts.read_part(path, kind, KINDS[kind])
        except (DamagedPartError, pa.ArrowInvalid) as error:
            self._set_aside(path, str(error))
            return
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}; nothing was changed.") from error
        name = parts.parse_name(path)
        assert name is not None  # read_part has checked it
        self._next_sequence[kind] = max(self._next_sequence[kind], name.sequence + 1)
        self._index(kind, table)

    def _set_aside(self, path: Path, reason: str) -> None:
        if self._read_only:
            self.damaged.append(reason)
            return
        target = self.root / "damaged" / f"{path.parent.name}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        message = f"{reason} It was moved to {target}."
        self.damaged.append(message)
        _LOG.warning(message)

    def _append(self, kind: str, batch: pa.RecordBatch) -> int:
        known = self._keys(kind)
        fresh = [row for row, key in enumerate(_row_keys(kind, batch)) if key not in known]
        if not fresh:
            return 0
        batch = batch if len(fresh) == batch.num_rows else batch.take(pa.array(fresh))
        directory = self.root / kind
        parts.write_part(directory, self._next_sequence[kind], kind, self._writer, batch)
        self._next_sequence[kind] += 1
        self._index(kind, pa.Table.from_batches([batch]))
        return len(fresh)

    def _index(self, kind: str, table: pa.Table) -> None:
        known = self._keys(kind)
        for row, key in enumerate(_row_keys(kind, table)):
            known.setdefault(key, (len(self._tables[kind]), row))
        self._tables[kind].append(table)

    def _keys(self, kind: str) -> dict[Any, tuple[int, int]]:
        keys: dict[str, dict[Any, tuple[int, int]]]
        keys = {"groups": self._groups, "scores": self._scores, "steps": self._steps}
        return keys[kind]

    def _take(self, kind: str, places: Sequence[tuple[int, int]]) -> pa.Table:
        tables = self._tables[kind]
        rows = [tables[table].slice(row, 1) for table, row in places]
        return pa.concat_tables(rows) if rows else KINDS[kind].empty_table()


def _row_keys(kind: str, table: pa.RecordBatch | pa.Table) -> list[Any]:
    if kind == "scores":
        return list(zip(table["group_id"].to_pylist(), table["scorer"].to_pylist(), strict=True))
    return table["group_id" if kind == "groups" else "step"].to_pylist()
