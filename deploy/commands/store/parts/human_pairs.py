"""Human preference pairs as groups of two outputs: the chosen one and the rejected one."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.prompts import Encode, RefusedPromptError
from brain_align.common.data.row_files import read_rows
from brain_align.common.data.text_groups import text_group
from brain_align.common.errors import UserError
from brain_align.common.identity import digest, group_id
from brain_align.common.schemas import GROUPS, HUMAN, PRIOR, SCORES, batch_from_rows


@dataclass(frozen=True)
class Pair:
    """Two outputs for one prompt, as texts and as token ids."""

    prompt_id: str  # a digest of the row's number and the prompt
    prompt: str
    prompt_ids: list[int]
    texts: tuple[str, str]  # chosen, rejected
    outputs: tuple[list[int], list[int]]  # their tokens, with the end of text


@dataclass
class Pairs:
    """The usable pairs of a file, and the number of those left out, by reason."""

    usable: list[Pair] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read_pairs(
    path: Path, recipe: Recipe, encode_prompts: Encode, encode_completion: Callable[[str], list[int]]
) -> Pairs:
    """Read a file with the columns prompt, chosen and rejected, and put the pairs into the order of training.

    Raises:
        UserError: the file is missing or damaged, lacks a column, holds a prompt that the chat template refuses, or
            has too few usable pairs.
    """
    columns = (recipe.data.prompt_column, "chosen", "rejected")
    pairs = Pairs()
    for number, row in enumerate(read_rows(path, columns)):
        prompt, *texts = (_text(path, number, row, column) for column in columns)
        prompt_ids = _prompt_ids(path, number, prompt, encode_prompts)
        chosen, rejected = map(encode_completion, texts)
        if not prompt_ids or len(prompt_ids) > recipe.data.max_prompt_tokens:
            pairs.skipped["prompt empty or over data.max_prompt_tokens"] += 1
        elif max(len(chosen), len(rejected)) > recipe.sampling.max_tokens:
            pairs.skipped["output over sampling.max_tokens"] += 1
        elif chosen == rejected:
            pairs.skipped["both outputs are the same"] += 1
        else:
            name = digest("pair", number, prompt)[:16]
            pairs.usable.append(Pair(name, prompt, prompt_ids, (texts[0], texts[1]), (chosen, rejected)))
    if len(pairs.usable) < recipe.algorithm.batch_prompts:
        raise UserError(
            f"{path} has {len(pairs.usable)} usable pairs, fewer than algorithm.batch_prompts="
            f"{recipe.algorithm.batch_prompts} ({reasons(pairs.skipped)}); check the file and these limits."
        )
    Random(recipe.seed).shuffle(pairs.usable)
    return pairs


def groups_of(
    pairs: Sequence[Pair], logprobs: Iterable[list[list[float]]], run_id: str, recipe: Recipe
) -> pa.RecordBatch:
    """Make GROUPS rows of pairs: rounds of `algorithm.prompts_per_round`, of version 0.

    `logprobs` has, for each pair, log p of each token of each output: the prior stands for the unknown proposal.
    """
    rounds = max(1, len(pairs) // recipe.algorithm.prompts_per_round)
    rows = []
    for number, (pair, tokens) in enumerate(zip(pairs, logprobs, strict=True)):
        round_ = min(number // recipe.algorithm.prompts_per_round, rounds - 1)  # what is left over joins the last
        row = text_group(
            group_id(run_id, pair.prompt_id, round_, 0),
            pair.prompt,
            pair.texts,
            prompt_token_ids=pair.prompt_ids,
            output_token_ids=pair.outputs,
        )
        for output, values in zip(row["outputs"], tokens, strict=True):
            output["token_logprobs"] = values
        rows.append(row | {"prompt_id": pair.prompt_id, "round": round_, "max_tokens": recipe.sampling.max_tokens})
    return batch_from_rows(GROUPS, rows)


def choices(groups: pa.RecordBatch) -> pa.RecordBatch:
    """Make SCORES rows of the scorer `human`: 1 for the chosen output, which comes first, 0 for the rejected one."""
    return _scores(groups, HUMAN, digest(HUMAN), [[1.0, 0.0]] * groups.num_rows)


def prior_scores(groups: pa.RecordBatch, scorer_digest: str) -> pa.RecordBatch:
    """Make SCORES rows of the prior from the log-probabilities that the groups were given."""
    rows = groups["outputs"].to_pylist()
    return _scores(groups, PRIOR, scorer_digest, [[sum(one["token_logprobs"]) for one in row] for row in rows])


def _scores(groups: pa.RecordBatch, name: str, scorer_digest: str, values: list[list[float]]) -> pa.RecordBatch:
    shared: dict[str, Any] = {"scorer": name, "scorer_digest": scorer_digest, "gold_value": None, "error": None}
    shared["scored_at"] = time.time()
    ids = groups["group_id"].to_pylist()
    return batch_from_rows(
        SCORES, [shared | {"group_id": id_, "values": row} for id_, row in zip(ids, values, strict=True)]
    )


def _prompt_ids(path: Path, number: int, prompt: str, encode: Encode) -> list[int]:
    if not prompt.strip():
        return []
    try:
        return encode([prompt])[0]
    except RefusedPromptError as error:
        raise UserError(
            f"{path}, row {number + 1}, cannot be encoded ({error}); fix or remove the row, or set data.chat_template."
        ) from None


def _text(path: Path, number: int, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(
            f"{path}, row {number + 1}, has no text in column {column!r} (its columns: {', '.join(row)}); pairs need "
            f"a prompt (data.prompt_column), chosen and rejected."
        )
    return value


def reasons(skipped: Counter[str]) -> str:
    """List the numbers of pairs that were left out."""
    return "; ".join(f"{count} × {reason}" for reason, count in skipped.items()) or "none was left out"
