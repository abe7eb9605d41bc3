"""Pairs that people chose between, as groups of two outputs: the chosen one and the rejected one."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Two outputs for one prompt, as token ids, and what they say.

    Attributes:
        prompt_id: of place and text.
        texts: the chosen and the rejected output.
        outputs: their tokens, with the end of text.
    """

    prompt_id: str
    prompt: str
    prompt_ids: list[int]
    texts: tuple[str, str]
    outputs: tuple[list[int], list[int]]


@dataclass
class Pairs:
    """The usable pairs of a file, and how many were left out, by the reason."""

    usable: list[Pair] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read_pairs(
    path: Path, recipe: Recipe, encode_prompts: Encode, encode_completion: Callable[[str], list[int]]
) -> Pairs:
    """Read a file of the columns prompt, chosen and rejected, and put the pairs into the order of training.

    Args:
        path: .jsonl, .jsonl.gz or .parquet.
        recipe: names the prompts' column, and says how long prompts and outputs may be, and the seed of the order.
        encode_prompts: prompts' token ids, as a run encodes them.
        encode_completion: an output's token ids, with the end of text.

    Raises:
        UserError: the file is missing, damaged, lacks a column, holds a prompt that the chat template refuses, or no
            usable pair.
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
            f"{recipe.algorithm.batch_prompts} ({_reasons(pairs.skipped)}); check the file and these limits."
        )
    Random(recipe.seed).shuffle(pairs.usable)
    return pairs


def groups_of(
    pairs: Sequence[Pair], logprobs: Iterable[list[list[float]]], run_id: str, recipe: Recipe
) -> pa.RecordBatch:
    """GROUPS rows of pairs: rounds of `algorithm.prompts_per_round`, of version 0.

    Args:
        pairs: in the order of training.
        logprobs: for each pair, log p of each token of each output: the prior stands for the unknown proposal.
        run_id: of the store.
        recipe: says how many prompts a round has.
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
    """SCORES rows of the scorer `human`: 1 for the chosen output, which comes first, 0 for the rejected one."""
    return _scores(groups, HUMAN, digest(HUMAN), [[1.0, 0.0]] * groups.num_rows)


def prior_scores(groups: pa.RecordBatch, scorer_digest: str) -> pa.RecordBatch:
    """SCORES rows of the prior, from the log-probabilities that the groups were given."""
    rows = groups["outputs"].to_pylist()
    return _scores(groups, PRIOR, scorer_digest, [[sum(one["token_logprobs"]) for one in row] for row in rows])


def summary(pairs: Pairs, groups: pa.RecordBatch) -> Iterator[str]:
    """What came of a file, in sentences."""
    rounds = len(set(groups["round"].to_pylist()))
    yield f"{groups.num_rows} pairs in {rounds} rounds"
    if pairs.skipped:
        yield f"left out: {_reasons(pairs.skipped)}"


def _scores(groups: pa.RecordBatch, name: str, scorer_digest: str, values: list[list[float]]) -> pa.RecordBatch:
    shared = {"scorer": name, "scorer_digest": scorer_digest, "gold_value": None, "error": None}
    ids = groups["group_id"].to_pylist()
    now = time.time()
    return batch_from_rows(
        SCORES,
        [shared | {"group_id": id_, "values": row, "scored_at": now} for id_, row in zip(ids, values, strict=True)],
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


def _reasons(skipped: Counter[str]) -> str:
    return "; ".join(f"{count} × {reason}" for reason, count in skipped.items()) or "none was left out"
