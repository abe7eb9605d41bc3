"""The learning curves of a run, from its metrics.jsonl: the figures as they are written there, by column."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Columns = dict[str, list[Any]]
"""Figures by name, one per row; None where a row has no such figure."""

_NUMBERED_BY = {"step": "step", "validation": "version", "test": "version"}


@dataclass(frozen=True)
class Metrics:
    """Everything that metrics.jsonl holds: a row per optimiser step, and per version evaluated on a split."""

    steps: Columns = field(default_factory=dict)  # by `step`, ascending
    validation: Columns = field(default_factory=dict)  # by `version`, ascending
    test: Columns = field(default_factory=dict)

    def evaluated(self, split: str, version: int) -> dict[str, Any] | None:
        """Return the figures of one version on a split, or None."""
        columns: Columns = getattr(self, split)
        if version not in columns.get("version", []):
            return None
        place = columns["version"].index(version)
        return {name: values[place] for name, values in columns.items() if values[place] is not None}


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; a run that has recorded nothing has none. A line that a crash has torn is passed over."""
    rows: dict[str, dict[int, Mapping[str, Any]]] = {kind: {} for kind in _NUMBERED_BY}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows[row["kind"]][row[_NUMBERED_BY[row["kind"]]]] = row  # the last one counts
        except (ValueError, KeyError, TypeError):
            continue
    steps, validation, test = (_columns(row for _, row in sorted(rows[kind].items())) for kind in _NUMBERED_BY)
    return Metrics(steps, validation, test)


def _columns(rows: Iterable[Mapping[str, Any]]) -> Columns:
    found = list(rows)
    names = dict.fromkeys(name for row in found for name in row if name != "kind")
    return {name: [row.get(name) for row in found] for name in names}
