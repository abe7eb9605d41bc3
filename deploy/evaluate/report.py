"""What an evaluation found: one JSON document, and the tables that are shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.evaluate.figures import Texts, duel, own_figures, text_figures
from brain_align.deploy.evaluate.outcomes import Outcome
from brain_align.deploy.pages.text_table import TextTable, number, p_value, with_interval
from brain_align.deploy.run.prompt_data import named
from brain_align.deploy.schedule.evaluation import Split


@dataclass(frozen=True)
class Opponent:
    """What every output is compared with: the reference column, or a model's outputs in its place."""

    name: str
    is_column: bool


def document(
    recipe: Recipe, split: Split, outcomes: Sequence[Outcome], opponent: Opponent, notes: Sequence[str]
) -> dict[str, Any]:
    """Return all figures, as plain values for JSON; docs/evaluate.md explains each."""
    first = outcomes[0]
    measures = list(first.outputs.values)
    trained = set(recipe.reward_scorers())
    opponents = {way: _opponent(opponent, outcomes, way) for way in _ways(outcomes)}
    return _plain(
        {
            "name": recipe.name,
            "split": split,
            "data": named(getattr(recipe.data, split)),
            "prompts": len(first.outputs.texts),
            "sampling": recipe.sampling.model_dump(mode="json", exclude={"n"}),
            "seed": recipe.seed,
            "reward": measures[0],
            "measures": {name: {"trained_on": name == recipe.objective.reward or name in trained} for name in measures},
            "opponent": {
                "name": opponent.name,
                "kind": "column" if opponent.is_column else "model",
                **({"figures": _reference(first.references)} if opponent.is_column else {}),
            },
            "outputs": [_entry(one, opponents[one.series.decoding], opponent) for one in outcomes],
            "pairs": [
                _pair(one, other, measures)
                for one, other in combinations(outcomes, 2)
                if one.series.decoding == other.series.decoding
            ],
            "notes": list(notes),
        }
    )


def _ways(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(one.series.decoding for one in outcomes))


def _opponent(opponent: Opponent, outcomes: Sequence[Outcome], way: str) -> Texts:
    if opponent.is_column:
        return outcomes[0].references
    return next(
        one.outputs for one in outcomes if one.series.candidate.label == opponent.name and one.series.decoding == way
    )


def _reference(references: Texts) -> dict[str, Any]:
    mean = {name: _mean(values.tolist()) for name, values in references.values.items()}
    return {"mean": mean, **text_figures(references)}


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _entry(outcome: Outcome, theirs: Texts, opponent: Opponent) -> dict[str, Any]:
    series = outcome.series
    found = series.candidate
    itself = not opponent.is_column and found.label == opponent.name
    against = {} if itself else {name: duel(outcome.outputs, theirs, name) for name in outcome.outputs.values}
    return {
        "what": found.label,
        "kind": found.kind,
        "place": found.place,
        "version": found.published.version if found.run else None,
        "step": found.published.step if found.run else None,
        "digest": found.published.digest,
        "decoding": series.decoding,
        **own_figures(outcome.outputs),
        "against_opponent": against,
    }


def _pair(one: Outcome, other: Outcome, measures: Sequence[str]) -> dict[str, Any]:
    return {
        "first": one.series.candidate.label,
        "second": other.series.candidate.label,
        "decoding": one.series.decoding,
        "measures": {name: duel(one.outputs, other.outputs, name) for name in measures},
    }


def _plain(value: Any) -> Any:
    """Return nested values without NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tables(found: Mapping[str, Any]) -> list[TextTable]:
    """Return the tables of a document, by way of decoding: figures of each WHAT, and each two of them compared."""
    names = short_names([one["what"] for one in found["outputs"]])
    shown = []
    for way in dict.fromkeys(one["decoding"] for one in found["outputs"]):
        shown.append(_figures(found, way, names))
        if pairs := [pair for pair in found["pairs"] if pair["decoding"] == way]:
            shown.append(_pairs(pairs, way, names))
    return shown


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last parts of names that are paths, where these tell them apart; otherwise the names."""
    short = {name: name.rstrip("/").rpartition("/")[2] for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _figures(found: Mapping[str, Any], way: str, names: Mapping[str, str]) -> TextTable:
    entries = [one for one in found["outputs"] if one["decoding"] == way]
    rows = []
    for measure, facts in found["measures"].items():
        unseen = "" if facts["trained_on"] else " (unseen)"
        rows.append([f"{measure}{unseen}: mean", *(_with(one["mean"][measure], 3) for one in entries)])
        duels = [one["against_opponent"].get(measure) for one in entries]
        if any(duels):
            rows += [[label, *(form(one) if one else "–" for one in duels)] for label, form in _DUEL]
    rows += [[label, *(form(one) for one in entries)] for label, form in _OWN]
    opponent = names.get(found["opponent"]["name"], found["opponent"]["name"])
    title = f"{found['name']}: {found['prompts']} {found['split']} prompts, {way}, against {opponent}"
    return TextTable(title, ["", *(names[one["what"]] for one in entries)], rows)


def _pairs(pairs: Sequence[Mapping[str, Any]], way: str, names: Mapping[str, str]) -> TextTable:
    rows = []
    for pair in pairs:
        rows.append([f"{names[pair['first']]} – {names[pair['second']]}", *[""] * 4])
        rows += [
            [
                f"  {measure}",
                f"{one['wins']:.1f} / {one['ties']:.1f} / {one['losses']:.1f}",
                _between(one["length_controlled"], "rate", 1),
                _between(one["difference"], "mean", 3),
                p_value(one["difference"]["p_value"]),
            ]
            for measure, one in pair["measures"].items()
            if one is not None
        ]
    columns = ["", "won / tied / lost, %", "at equal length, %", "difference", "p"]
    return TextTable(f"The first against the second, {way}", columns, rows)


def _with(one: Mapping[str, Any] | None, digits: int) -> str:
    return with_interval(None, None) if one is None else with_interval(one["mean"], one["half_width"], digits)


def _between(one: Mapping[str, Any], name: str, digits: int) -> str:
    return f"{one[name]:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


_DUEL = (
    ("  won / tied / lost, %", lambda one: f"{one['wins']:.1f} / {one['ties']:.1f} / {one['losses']:.1f}"),
    ("  win rate, %", lambda one: _with(one["win_rate"], 1)),
    ("  at equal length, %", lambda one: _between(one["length_controlled"], "rate", 1)),
    ("  difference", lambda one: _between(one["difference"], "mean", 3)),
    ("  p", lambda one: p_value(one["difference"]["p_value"])),
)
_OWN = (
    ("KL to the prior, nats", lambda one: _with(one["kl_to_prior"], 2)),
    ("tokens", lambda one: _with(one["tokens"], 1)),
    ("finished (EOS), %", lambda one: _with(one["finished"], 1)),
    ("distinct-1 / -2 / -3", lambda one: " / ".join(number(one[f"distinct_{n}"], 2) for n in (1, 2, 3))),
    ("repeated 4-grams, %", lambda one: _with(one["repetition_4"], 1)),
    ("prompts", lambda one: f"{one['prompts']}" + (f" ({one['failed']} failed)" if one["failed"] else "")),
)
