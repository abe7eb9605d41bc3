"""What can be found out before anything is started: files, tokenizer, context length, prompts."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.config.recipe import Recipe
from common.errors import UserError
from common.leases import Prompt
from common.nn.causal_lm import check_tokenizer, context_length, load_config, load_tokenizer
from common.prompts import PromptFile, load_prompts
from deploy.evaluation import Split


@dataclass(frozen=True)
class Inputs:
    """The run's prompts, and what the user should know about them."""

    train: list[Prompt]
    held_back: dict[Split, list[Prompt]]
    notes: list[str]


def check_inputs(recipe: Recipe) -> Inputs:
    """Check all that a run needs, and read its prompts.

    Raises:
        UserError: something is missing or does not fit together.
    """
    _check_functions(recipe)
    model = recipe.policy.model
    tokenizer = load_tokenizer(recipe.policy.tokenizer or model)
    config = load_config(model)
    check_tokenizer(tokenizer, config, model)
    _check_context(recipe, context_length(config))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=True))

    notes: list[str] = []
    train = _read(recipe, "train", recipe.data.train, encode, notes)
    if recipe.algorithm.prompts_per_round > len(train):
        raise UserError(
            f"algorithm.prompts_per_round={recipe.algorithm.prompts_per_round} is more than the {len(train)} usable "
            f"prompts of {recipe.data.train}; lower it, or bring more prompts."
        )
    held_back: dict[Split, list[Prompt]] = {
        "validation": _read(recipe, "validation", recipe.data.validation, encode, notes),
        "test": _read(recipe, "test", recipe.data.test, encode, notes),
    }
    wanted = {"validation": recipe.evaluation.validation_prompts, "test": recipe.evaluation.test_prompts}
    for split, prompts in held_back.items():
        if len(prompts) < wanted[split]:
            notes.append(f"{split}: only {len(prompts)} prompts, evaluation.{split}_prompts asks for {wanted[split]}")
        held_back[split] = prompts[: wanted[split]]
    return Inputs(train, held_back, notes)


def _read(recipe: Recipe, split: str, path: str, encode: Callable[[str], list[int]], notes: list[str]) -> list[Prompt]:
    file = PromptFile(Path(path), recipe.data.prompt_column, recipe.data.gold_column)
    found = load_prompts(file, encode, recipe.data.max_prompt_tokens)
    if found.skipped:
        notes.append(
            f"{split}: skipped {found.too_long} prompts longer than {recipe.data.max_prompt_tokens} tokens and "
            f"{found.empty} empty ones, kept {len(found.prompts)}"
        )
    return found.prompts


def _check_context(recipe: Recipe, context: int) -> None:
    needed = recipe.data.max_prompt_tokens + recipe.sampling.max_tokens
    if needed > context:
        raise UserError(
            f"data.max_prompt_tokens + sampling.max_tokens = {needed} is more than the context of {recipe.policy.model}"
            f" ({context} tokens); lower one of them."
        )


def _check_functions(recipe: Recipe) -> None:
    for name, scorer in recipe.scorers.items():
        if scorer.function is None:
            continue
        module, _, attribute = scorer.function.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute, None) if attribute else None
        except ImportError as error:
            raise UserError(f"scorers.{name}.function={scorer.function!r} cannot be imported: {error}.") from None
        if not callable(found):
            raise UserError(
                f"scorers.{name}.function={scorer.function!r} names no function; write it as package.module:function."
            )
