"""What can be found out before anything is started: files, tokenizer, context length, prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from common.config.recipe import Recipe
from common.config.scorers import ClassifierSection, FunctionSection, GPTJRewardSection, RemotePool, ScorerPool
from common.errors import UserError
from common.identity import digest
from common.leases import Prompt
from common.nn.causal_lm import check_tokenizer, context_length, load_config, load_tokenizer
from common.prompts import PromptFile, load_prompts
from common.schemas import HUMAN, PROPOSAL
from deploy.evaluation import Split
from deploy.run_directory import RunDirectory
from deploy.stored_inputs import StoredInputs, lacking_scores, read_stored_inputs
from deploy.work import Work, sampling_work
from learner.objectives.catalogue import make_objective
from scorer.checkpoints import find_checkpoint
from scorer.classifier import load_classifier_tokenizer
from scorer.client import bearer_token
from scorer.formats import FORMATS
from scorer.function import load_function


@dataclass(frozen=True)
class Inputs:
    """The run's prompts, and what the user should know about them."""

    train: list[Prompt]
    held_back: dict[Split, list[Prompt]]
    notes: list[str]

    def digest(self) -> str:
        """Of all prompts, by their ids, which hold place and text."""
        splits = [self.train, *self.held_back.values()]
        return digest([[(prompt.prompt_id, prompt.gold_text) for prompt in prompts] for prompts in splits])

    def facts(self) -> dict[str, str | None]:
        """What must be the same whenever the run is resumed."""
        return {"prompts": self.digest(), "source": None}

    def work(self, recipe: Recipe, run_id: str, directory: RunDirectory) -> Work:
        """Sampling, scoring, training and evaluation."""
        return sampling_work(recipe, run_id, directory, self.train, self.held_back)


def check_inputs(recipe: Recipe, directory: RunDirectory) -> Inputs | StoredInputs:
    """Check all that a run needs, and read its prompts, or the store that it trains from.

    Raises:
        UserError: something is missing or does not fit together.
    """
    make_objective(recipe.objective)
    return _check_prompts(recipe) if recipe.sampler.replicas else _check_store(recipe, directory)


def _check_store(recipe: Recipe, directory: RunDirectory) -> StoredInputs:
    inputs = read_stored_inputs(recipe, directory)
    _check_gold(recipe, inputs)
    for name, count in lacking_scores(recipe, inputs).items():
        need = f"{count} of the {inputs.index.num_rows} groups of {inputs.source.store.root} lack values of {name!r}"
        if name == HUMAN:
            raise UserError(
                f"{need}, people's choices, which objective.name={recipe.objective.name} trains on; make a store of "
                f"pairs from a file with the columns prompt, chosen and rejected (brain store import-pairs), or choose "
                f"dpo-sft, whose pairs the reward ranks."
            )
        if name == PROPOSAL:
            raise UserError(
                f"{need}, which only the run that published those versions can compute; set logprobs.proposal=sampler."
            )
        try:
            if name in recipe.scorers:
                check_scorer(name, recipe.scorers[name])
        except UserError as error:
            raise UserError(f"{need}, so that its scorer must run: {error}") from None
        inputs.notes.append(f"{need}; its scorer adds them to this run's own store")
    vocabulary = load_config(recipe.policy.model).vocab_size
    for batch in inputs.source.store.batches(group_ids=inputs.index["group_id"].slice(0, 1).to_pylist()):
        largest = pc.max(pc.list_flatten(batch["prompt_token_ids"])).as_py()
        if largest >= vocabulary:
            raise UserError(
                f"The store {inputs.source.store.root} has token id {largest}, but {recipe.policy.model} knows "
                f"{vocabulary} tokens: it was sampled with another tokenizer; set policy.model to one of the "
                f"store's tokenizer."
            )
    return inputs


def _check_gold(recipe: Recipe, inputs: StoredInputs) -> None:
    if not recipe.objective.needs_gold:
        return
    ids = inputs.index["group_id"].to_pylist()
    batches = inputs.source.store.batches(group_ids=ids, columns=["group_id", "gold_text"])
    lacking = sum(batch["gold_text"].null_count for batch in batches)
    if lacking:
        raise UserError(
            f"{lacking} of the {len(ids)} groups of {inputs.source.store.root} have no gold_text, which objective.name="
            f"{recipe.objective.name} with sft_on=gold trains on; sample them with data.gold_column set, or set "
            f"objective.sft_on=best."
        )


def _check_prompts(recipe: Recipe) -> Inputs:
    for name, scorer in recipe.scorers.items():
        check_scorer(name, scorer)
    model = recipe.policy.model
    tokenizer = load_tokenizer(recipe.policy.tokenizer or model)
    config = load_config(model)
    check_tokenizer(tokenizer, config, model)
    _check_context(recipe, context_length(config))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=True))

    notes = _notes_on_batches(recipe)
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


def check_scorer(name: str, scorer: ScorerPool) -> None:
    """Refuse a scorer whose function, checkpoint, tokenizer or token is not there or does not fit."""
    match scorer:
        case FunctionSection():
            load_function(name, scorer.function)
        case GPTJRewardSection():
            form = FORMATS[scorer.kind]
            tokenizer = find_checkpoint(scorer.path, form).tokenizer
            form.check_tokenizer(load_tokenizer(tokenizer), tokenizer)
        case ClassifierSection():
            load_classifier_tokenizer(scorer)
        case RemotePool():
            bearer_token(scorer)


def _notes_on_batches(recipe: Recipe) -> list[str]:
    """What the user should know where a round does not train each of its groups equally often."""
    algorithm = recipe.algorithm
    trained, sampled = algorithm.updates_per_round * algorithm.batch_prompts, algorithm.prompts_per_round
    if algorithm.buffer == "accumulate" or (trained % sampled == 0 and sampled % algorithm.batch_prompts == 0):
        return []
    return [
        f"note: a round samples {sampled} groups and trains {trained} (updates_per_round x batch_prompts), so that "
        f"some groups train more often than others, or never"
    ]
