"""Import human preference pairs for dpo.

Reads a file with the columns prompt, chosen and rejected (.jsonl, .jsonl.gz or .parquet) into a new store, with the
prior's log-probabilities.

Examples:
  brain store import-pairs my.yaml --input pairs.jsonl --output pairs
  brain run my.yaml sampler.replicas=0 store.uri=pairs objective.name=dpo
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import track

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.row_files import require_file
from brain_align.common.durable import new_directory
from brain_align.common.errors import UserError
from brain_align.common.identity import digest
from brain_align.common.schemas import PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.commands.store.parts.human_pairs import (
    Pair,
    Pairs,
    choices,
    groups_of,
    prior_scores,
    read_pairs,
    reasons,
)
from brain_align.deploy.commands.store.parts.terminal import terminal
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.start import reporter

GROUP = "Use"


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
    pairs = _read(options.input, recipe)
    run_id = digest("pairs", recipe.policy.model_dump(mode="json"), [pair.prompt_id for pair in pairs.usable])
    logprobs = track(_logprobs(pairs.usable, recipe), "prior", total=len(pairs.usable), console=console)
    groups = groups_of(pairs.usable, logprobs, run_id, recipe)
    with new_directory(target) as directory:
        store = SampleStore(directory, run_id)
        store.append_groups(groups)
        store.append_scores(choices(groups))
        store.append_scores(prior_scores(groups, logprobs_digest(PRIOR, recipe.policy, MAX_TOKENS)))
    rounds = len(set(groups["round"].to_pylist()))
    left_out = f"\nleft out: {reasons(pairs.skipped)}" if pairs.skipped else ""
    terminal().print(f"{target}: {groups.num_rows} pairs in {rounds} rounds{left_out}", soft_wrap=True)


def _read(path: Path, recipe: Recipe) -> Pairs:
    from brain_align.common.nn.models.causal_lm import check_tokenizer, load_config, load_tokenizer
    from brain_align.common.nn.prompt_encoding import completion_encoding, prompt_encoding

    source = recipe.policy.tokenizer or recipe.policy.model
    tokenizer = load_tokenizer(source)
    check_tokenizer(tokenizer, load_config(recipe.policy.model), source)
    encode_prompts = prompt_encoding(tokenizer, recipe.data.chat_template)
    return read_pairs(path, recipe, encode_prompts, completion_encoding(tokenizer))


def _logprobs(pairs: Sequence[Pair], recipe: Recipe) -> Iterator[list[list[float]]]:
    """Yield log p of each token of each output, with the prior's numerics."""
    import torch

    from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
    from brain_align.common.nn.models.policy_model import load_prior_model

    device = "cuda" if recipe.prior.gpus and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(recipe.prior.threads)
    model = SequenceLogprobs(load_prior_model(recipe.policy, device))
    model.decoder.pad_unless_exact()
    for pair in pairs:
        with torch.no_grad():
            found = model.token_logprobs([request_of(pair.prompt_ids, pair.outputs)])
        yield [tokens.tolist() for tokens in found]
