"""What a sample store holds of its scorers, from the light columns of SCORES rows."""

from dataclasses import dataclass

import pyarrow as pa

_TOTALS = [
    ("group_id", "count"),
    ("values", "sum"),
    ("nulls", "sum"),
    ("sum", "sum"),
    ("min", "min"),
    ("max", "max"),
]


@dataclass(frozen=True)
class ScorerFacts:
    """What a store holds of one scorer.

    Attributes:
        name, digest: of the scorer; one name may stand there with several digests.
        groups: how many groups it has scored.
        nulls: how many outputs it could not score.
        mean, min, max: over the values that are not null; None if all are.
    """

    name: str
    digest: str
    groups: int
    nulls: int
    mean: float | None
    min: float | None
    max: float | None


def scorer_facts(rows: pa.Table) -> list[ScorerFacts]:
    """The scorers of some light SCORES rows, by name and digest."""
    for name in ("scorer", "scorer_digest"):
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(pa.string()))
    table = (
        rows.group_by(["scorer", "scorer_digest"])
        .aggregate(_TOTALS)
        .sort_by([("scorer", "ascending"), ("scorer_digest", "ascending")])
    )
    return [
        ScorerFacts(
            name=row["scorer"],
            digest=row["scorer_digest"],
            groups=row["group_id_count"],
            nulls=row["nulls_sum"],
            mean=row["sum_sum"] / row["values_sum"] if row["values_sum"] else None,
            min=row["min_min"],
            max=row["max_max"],
        )
        for row in table.to_pylist()
    ]
