"""Scorers: groups in, one annotation per group out; and what each kind of scorer must declare."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from brain_align.common.config.scorers import ScorerPool
from brain_align.common.errors import ScorerAwayError, without_secrets
from brain_align.common.schemas import SCORES, batch_from_rows

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127

Group = dict[str, Any]
"""One GROUPS row as Python values (common/schemas.py)."""

Settings = TypeVar("Settings", bound=ScorerPool)

EXACT = 1e-6
"""The tolerance of values that involve no model."""

ROUNDING = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}
"""The tolerance of a model's values, by the type of its weights."""


class Scorer(Protocol):
    """The interface of every scorer: it annotates groups with one value per output."""

    name: str  # in the recipe and in SCORES
    digest: str  # of everything that its values depend on: two scorers with the same digest give the same values

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return SCORES rows for GROUPS rows, one each, in the same order.

        A group's values do not depend on the other groups in the batch, except for rounding if the scorer computes
        groups together. A text that has no value, whenever it is asked for, has a null one, and the row's `error` gives
        the reason.

        Raises:
            ScorerAwayError: the scorer itself is away or fails, so that nothing is known about some groups' values.
        """
        ...


@dataclass(frozen=True)
class Resources:
    """The devices and the token budget of a scorer."""

    devices: Sequence[str]  # "cpu", or GPUs; the layers of a model may be spread over several
    max_tokens: int  # tokens per forward pass, padding included
    together: bool  # whether a reward model computes the groups of a call together, see `annotate_texts`


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Settings]):
    """One kind of scorer: an entry of the table of kinds, the `KIND` of its file in scorer/kinds.

    No field has a default, so that a new kind must answer every question.
    """

    section: type[Settings]  # of the recipe (common/config/scorers.py)
    # From name and settings, a scorer that is ready; raises UserError where something is missing.
    load: Callable[[str, Settings, Resources], Scorer]
    # Raises UserError if files, function or token are missing or do not fit; called before anything starts.
    check: Callable[[str, Settings], object]
    tolerance: Callable[[Settings], float | None]  # of a golden value, relative to 1 + |value|; None: not repeatable
    must_answer: bool  # the start fails if no golden text gets a value, as when a service cannot be reached
    reads_turns: Callable[[Settings], bool]  # if not, prompts that are conversations are refused
    # A check of a prompt's text, which raises a NoValueError where no output of it could be read; None: any text can.
    reading: Callable[[Settings], Callable[[str], object] | None]
    source: Callable[[Settings], str]  # of the values, for messages: a path, function or URL


class NoValueError(Exception):
    """A text has no value, whenever it is asked for: its value is null, and the message is the reason."""


@dataclass(frozen=True)
class Annotation:
    """A scorer's values for one group: one per output, and one for gold if there is any."""

    values: list[float | None]
    gold_value: float | None = None
    errors: tuple[str, ...] = ()  # why texts have no value
    away: tuple[str, ...] = ()  # why values are missing although the texts may have some: the scorer is away, or fails


def texts_of(group: Group) -> list[str]:
    """Return the texts of a group's outputs, followed by that of gold if there is one."""
    gold = group["gold_text"]
    return [output["text"] for output in group["outputs"]] + ([] if gold is None else [gold])


def annotation_of_texts(
    group: Group, values: Sequence[float | None], errors: Iterable[str], away: Iterable[str] = ()
) -> Annotation:
    """Return the annotation of a group from the values of `texts_of`."""
    if group["gold_text"] is None:
        return Annotation(list(values), None, tuple(errors), tuple(away))
    return Annotation(list(values[:-1]), values[-1], tuple(errors), tuple(away))


def annotate(scorer: Scorer, batch: pa.RecordBatch, score_group: Callable[[Group], Annotation]) -> pa.RecordBatch:
    """Apply a function of one group to each group of a batch; after one that finds the scorer away, none is asked."""
    annotations: list[Annotation] = []
    for group in batch.to_pylist():
        if annotations and annotations[-1].away:
            annotations.append(Annotation([None] * len(group["outputs"]), away=annotations[-1].away))
        else:
            annotations.append(score_group(group))
    return scores_of(scorer, batch, annotations)


def scores_of(scorer: Scorer, batch: pa.RecordBatch, annotations: Sequence[Annotation]) -> pa.RecordBatch:
    """Return SCORES rows for the groups of a batch from a scorer's annotation of each.

    Raises:
        ScorerAwayError: an annotation says so; the error has the rows of all groups.
    """
    ids = batch["group_id"].to_pylist()
    rows = [
        {
            "group_id": group_id,
            "scorer": scorer.name,
            "scorer_digest": scorer.digest,
            "values": annotation.values,
            "gold_value": annotation.gold_value,
            "error": _sentence(dict.fromkeys((*annotation.away, *annotation.errors))),
            "scored_at": time.time(),
        }
        for group_id, annotation in zip(ids, annotations, strict=True)
    ]
    scores = batch_from_rows(SCORES, rows)
    away = {group_id: one.away[0] for group_id, one in zip(ids, annotations, strict=True) if one.away}
    if away:
        raise ScorerAwayError(next(iter(away.values())), scores, frozenset(away))
    return scores


def _sentence(reasons: Iterable[str]) -> str | None:
    """Return the reasons as one text that may be stored: they quote what users' code, services and models say."""
    return without_secrets("; ".join(reasons)).encode(errors="backslashreplace").decode() or None


def finite_or_null(values: Sequence[float | NoValueError | None], what: str) -> tuple[list[float | None], list[str]]:
    """Replace values that are not finite in float32 by None; returns all values, and an error for each replaced."""
    # NaN fails every comparison.
    kept: list[float | None] = [
        value if isinstance(value, int | float) and abs(value) <= _FLOAT32_MAX else None for value in values
    ]
    errors = [
        f"{what} {index} has no value: {value}"
        if isinstance(value, NoValueError)
        else f"{what} {index} has the value {value}"
        for index, (value, valid) in enumerate(zip(values, kept, strict=True))
        if valid is None
    ]
    return kept, errors


def numbers_or_null(
    result: object, count: int, who: str, what: str, *, nulls: bool = False
) -> tuple[list[float | None], list[str]]:
    """Check values from foreign code: all are null unless the result has as many numbers as requested.

    Single values may be missing if `nulls`. Returns the values, None where one is missing or not finite, and the
    errors, which name the origin of the values (`who`) and what a value belongs to (`what`, e.g. "output").
    """
    nothing: list[float | None] = [None] * count
    if not isinstance(result, list | tuple):
        return nothing, [f"{who} returned a {type(result).__name__}, not a list of numbers"]
    if len(result) != count:
        return nothing, [f"{who} returned {len(result)} values for {count} outputs"]
    strange = [value for value in result if not isinstance(value, Real) and not (nulls and value is None)]
    if strange:
        return nothing, [f"{who} returned {strange[0]!r:.80}, which is not a number"]
    return finite_or_null([None if value is None else _as_float(value) for value in result], what)


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer too large for any float
        return float("inf")
