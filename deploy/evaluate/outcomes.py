"""Stored outputs and scores of an evaluation, as figures need them and as a table for others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import CombinationSection
from brain_align.common.durable import fsync_path, temporary_sibling
from brain_align.common.requests import Prompt
from brain_align.common.schemas import PRIOR
from brain_align.common.store.rewards import stored_rewards
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.evaluate.figures import Floats, Outputs, Texts
from brain_align.deploy.evaluate.plan import Series

Measures = Mapping[str, str | CombinationSection]
"""What outputs are judged by, the objective's reward first: scorers, and combinations of several."""


@dataclass(frozen=True)
class Outcome:
    """A series as it came out."""

    series: Series
    outputs: Outputs
    references: Texts  # values of the reference outputs, as the same scorers gave them
    rows: pa.Table  # one per prompt: the columns of docs/evaluate.md


def measures_of(recipe: Recipe) -> dict[str, str | CombinationSection]:
    """Return the measures of a recipe.

    Lexicographic combinations only rank the outputs of one prompt, so that their values are not comparable between
    groups: they are left out.
    """
    known: dict[str, str | CombinationSection] = {**{name: name for name in recipe.scorers}, **recipe.rewards}
    usable = {name: one for name, one in known.items() if isinstance(one, str) or one.kind != "lexicographic"}
    first = [recipe.objective.reward] if recipe.objective.reward in usable else []
    return {name: usable[name] for name in dict.fromkeys([*first, *usable])}


def read_outcome(series: Series, store: SampleStore, prompts: Sequence[Prompt], measures: Measures) -> Outcome:
    """Read the outputs of a series and their scores, one for each prompt; a prompt without an output has nulls."""
    ids = series.group_ids
    there = store.has_groups(ids)
    for name in series.scorers:
        there = there & store.has_scores(ids, name)
    known = [group for group, found in zip(ids, there, strict=True) if found]
    rows = store.groups(known, ["prompt_id", "outputs"]).to_pylist()
    outputs = {row["prompt_id"]: row["outputs"][0] for row in rows}
    place = {row["prompt_id"]: number for number, row in enumerate(rows)}
    values, gold = _values(store, known, measures, [place.get(prompt.prompt_id) for prompt in prompts])
    each = [outputs.get(prompt.prompt_id) for prompt in prompts]
    log_q = _floats([None if one is None else sum(one["token_logprobs"]) for one in each])
    log_p = _prior(series, store, known, place, prompts)
    own = Outputs(
        texts=[None if one is None else one["text"] for one in each],
        values=values,
        tokens=_floats([None if one is None else len(one["token_ids"]) for one in each]),
        finished=_floats([None if one is None else one["finish_reason"] == "stop" for one in each]),
        log_ratios=np.full(len(prompts), np.nan) if series.greedy else log_q - log_p,
    )
    references = Texts([prompt.gold_text for prompt in prompts], gold)
    reasons = [None if one is None else one["finish_reason"] for one in each]
    return Outcome(series, own, references, _table(series, prompts, own, references, log_q, log_p, reasons))


def write_rows(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write all outputs with their scores as a parquet file, which appears whole or not at all."""
    temporary = temporary_sibling(path)
    try:
        pq.write_table(pa.concat_tables([one.rows for one in outcomes]), temporary, compression="zstd")
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _values(
    store: SampleStore, known: list[str], measures: Measures, places: Sequence[int | None]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return the outputs' values and the references', by measure, in the order of the prompts."""
    values: dict[str, Floats] = {}
    gold: dict[str, Floats] = {}
    for name, reward in measures.items():
        scores = stored_rewards(store, known, reward)
        first, second = [row[0] for row in scores["values"].to_pylist()], scores["gold_value"].to_pylist()
        values[name] = _floats([None if place is None else first[place] for place in places])
        gold[name] = _floats([None if place is None else second[place] for place in places])
    return values, gold


def _prior(
    series: Series, store: SampleStore, known: list[str], place: Mapping[str, int], prompts: Sequence[Prompt]
) -> Floats:
    if PRIOR not in series.scorers:
        return np.full(len(prompts), np.nan)
    found = [row[0] for row in store.scores(known, PRIOR, ["values"])["values"].to_pylist()]
    places = [place.get(prompt.prompt_id) for prompt in prompts]
    return _floats([None if one is None else found[one] for one in places])


def _table(
    series: Series,
    prompts: Sequence[Prompt],
    own: Outputs,
    references: Texts,
    log_q: Floats,
    log_p: Floats,
    reasons: Sequence[str | None],
) -> pa.Table:
    count = len(prompts)
    columns: dict[str, pa.Array] = {
        "what": pa.array([series.candidate.label] * count, pa.string()),
        "decoding": pa.array([series.decoding] * count, pa.string()),
        "prompt_id": pa.array([prompt.prompt_id for prompt in prompts], pa.string()),
        "prompt": pa.array([prompt.text for prompt in prompts], pa.string()),
        "reference": pa.array(references.texts, pa.string()),
        "output": pa.array(own.texts, pa.string()),
        "tokens": pa.array([None if np.isnan(one) else int(one) for one in own.tokens], pa.int32()),
        "finish_reason": pa.array(reasons, pa.string()),
        "logprob": _numbers(log_q),
        "prior_logprob": _numbers(log_p),
    }
    for name, values in own.values.items():
        columns[f"scores.{name}"] = _numbers(values)
        columns[f"reference_scores.{name}"] = _numbers(references.values[name])
    return pa.table(columns)


def _numbers(values: Floats) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)  # NaN -> null


def _floats(values: Sequence[Any]) -> Floats:
    return np.array(values, dtype=np.float64)  # None -> NaN
