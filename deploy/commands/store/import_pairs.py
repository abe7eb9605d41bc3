"""Import human preference pairs for dpo.

Reads a file with the columns prompt, chosen and rejected (.jsonl, .jsonl.gz or .parquet) into a new store, with the
prior's log-probabilities.

Examples:
  brain store import-pairs my.yaml --input pairs.jsonl --output pairs
  brain run my.yaml sampler.replicas=0 store.uri=pairs objective.name=dpo
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from rich.progress import track

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.prompts import Encode, PromptColumns, RefusedPromptError, prompt_text, reply_text
from brain_align.common.data.row_files import Row, read_rows, require_file
from brain_align.common.data.text_groups import text_group
from brain_align.common.durable import new_directory
from brain_align.common.errors import UserError
from brain_align.common.identity import digest, digest_of_many, group_id
from brain_align.common.schemas import GROUPS, HUMAN, PRIOR, SCORES, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.console import say, terminal
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.start import reporter

GROUP = "Use"

_OUTPUTS = ("chosen", "rejected")
_NEEDED = "data.prompt_column; pairs need a prompt, chosen and rejected"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_recipe(parser, "the recipe whose policy and length limits are used")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="the pairs")
    parser.add_argument("--output", type=Path, required=True, metavar="STORE", help="a directory that does not exist")
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Import the pairs."""
    from brain_align.scorer.catalogue import MAX_TOKENS  # torch and transformers
    from brain_align.scorer.kinds.prior import logprobs_digest

    target: Path = options.output.expanduser().absolute()
    if target.exists():
        raise UserError(f"{target} exists already; name another with --output.")
    require_file(options.input)
    console = terminal(stderr=True)
    recipe = resolve(load_recipe(options.recipe, options.overrides), reporter(console)).recipe
    pairs = _read(options.input, recipe, reporter(console))
    texts = digest_of_many((pair.prompt_id, pair.prompt_ids, pair.outputs) for pair in pairs.usable)
    run_id = digest("pairs", recipe.policy.model_dump(mode="json"), texts)
    logprobs = track(_logprobs(pairs.usable, recipe), "prior", total=len(pairs.usable), console=console)
    groups = groups_of(pairs.usable, logprobs, run_id, recipe)
    with new_directory(target) as directory:
        store = SampleStore(directory, run_id)
        store.append_groups(groups)
        store.append_scores(choices(groups))
        store.append_scores(prior_scores(groups, logprobs_digest(PRIOR, recipe.policy, MAX_TOKENS, recipe.window)))
    rounds = len(set(groups["round"].to_pylist()))
    left_out = f"\nskipped: {reasons(pairs.skipped)}" if pairs.skipped else ""
    say(f"{target}: {groups.num_rows} pairs in {rounds} rounds{left_out}")


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
        UserError: the file is missing or damaged, lacks a column, holds a text that cannot be encoded, or has too few
            usable pairs.
    """
    columns = PromptColumns(recipe.data.prompt_column, None, conversations=recipe.data.templated, settings=_NEEDED)
    pairs = Pairs()
    for number, row in enumerate(read_rows(path, (columns.prompt, *_OUTPUTS))):
        prompt, *texts = _texts(row, number + 1, columns, path)
        with _named(path, number + 1):
            prompt_ids = encode_prompts([prompt])[0] if prompt.strip() else []
            chosen, rejected = ([] if text is None else encode_completion(text) for text in texts)
        if not prompt_ids or len(prompt_ids) > recipe.data.max_prompt_tokens:
            pairs.skipped["prompt empty or over data.max_prompt_tokens"] += 1
        elif texts[0] is None or texts[1] is None:
            pairs.skipped["chosen or rejected is null"] += 1
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


def _texts(row: Row, number: int, columns: PromptColumns, path: Path) -> tuple[str, str | None, str | None]:
    """Return the texts of a row's prompt, chosen and rejected output; null outputs are None, a null prompt is empty.

    Without a column of prompts, chosen and rejected are whole conversations that differ in their last turn.
    """
    row = dict(row)
    if columns.conversations and columns.prompt not in row:
        before = [row[name][:-1] if isinstance(row.get(name), list) else None for name in _OUTPUTS]
        if before[0] and before[0] == before[1]:
            row[columns.prompt] = before[0]
    prompt = prompt_text(row, number, columns, str(path)) or ""
    chosen, rejected = (reply_text(row, number, name, prompt, columns, str(path)) for name in _OUTPUTS)
    return prompt, chosen, rejected


@contextmanager
def _named(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except RefusedPromptError as error:
        raise UserError(
            f"{path}, row {number}, cannot be encoded ({error}); fix or remove the row, or set another "
            f"data.chat_template."
        ) from None


def reasons(skipped: Counter[str]) -> str:
    """List the numbers of pairs that were left out."""
    return "; ".join(f"{count} × {reason}" for reason, count in skipped.items()) or "none was left out"


def _read(path: Path, recipe: Recipe, report: Callable[[str], None]) -> Pairs:
    from brain_align.common.nn.prompt_encoding import policy_encoding  # torch and transformers

    encoding = policy_encoding(recipe.policy, recipe.data)
    pairs = read_pairs(path, recipe, encoding.prompts, encoding.completion)
    for note in encoding.notes():
        report(note)
    return pairs


def _logprobs(pairs: Sequence[Pair], recipe: Recipe) -> Iterator[list[list[float]]]:
    """Yield log p of each token of each output, with the prior's numerics."""
    import torch

    from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
    from brain_align.common.nn.models.policy_model import load_prior_model

    device = "cuda" if recipe.prior.gpus and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(recipe.prior.threads)
    model = SequenceLogprobs(load_prior_model(recipe.policy, device, window=recipe.window))
    model.decoder.pad_unless_exact()
    for pair in pairs:
        with torch.no_grad():
            found = model.token_logprobs([request_of(pair.prompt_ids, pair.outputs)])
        yield [tokens.tolist() for tokens in found]
