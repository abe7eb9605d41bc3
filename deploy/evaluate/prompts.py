"""The prompts of an evaluation, encoded for each policy; none of them may be one that was trained on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.prompt_set import PromptSet
from brain_align.common.errors import UserError
from brain_align.common.requests import Prompt
from brain_align.deploy.run.preflight import checked_encoding, read_split
from brain_align.deploy.run.prompt_data import named, read_prompts
from brain_align.deploy.run.stored_source import open_source
from brain_align.deploy.schedule.evaluation import Split

_QUOTED = 60  # characters


@dataclass(frozen=True)
class Encoded:
    """The usable prompts of a split in one policy's tokens."""

    prompts: PromptSet
    tokens: str  # the digest of the vocabulary and of what ends a text: policies with equal ones share token ids


def encode(recipe: Recipe, split: Split, moment: datetime, notes: list[str]) -> Encoded:
    """Read a split of the recipe's data, and check that policy and scorers can read it; add notes for the user.

    Raises:
        UserError: the data, the tokenizer or the chat template do not fit.
    """
    encoding = checked_encoding(recipe, moment)
    prompts = read_split(recipe, split, getattr(recipe.data, split), encoding, notes)
    notes += encoding.notes()
    return Encoded(prompts, encoding.digest())


def chosen(first: PromptSet, others: Iterable[PromptSet], count: int) -> list[str]:
    """Return the ids of the first `count` prompts that every policy can read, in the order of the data."""
    usable = [{prompt_id for prompt_id, _ in other.identities()} for other in others]
    common = (one for one, _ in first.identities() if all(one in other for other in usable))
    return [one for one, _ in zip(common, range(count), strict=False)]


def select(prompts: PromptSet, ids: Sequence[str]) -> list[Prompt]:
    """Return the prompts of these ids, in this order."""
    place = {prompt_id: number for number, (prompt_id, _) in enumerate(prompts.identities())}
    return [prompts[place[one]] for one in ids]


def refuse_trained_on(run: Path, prompts: Sequence[Prompt], recipe: Recipe, split: Split) -> None:
    """Refuse prompts that a run's store has groups of; white space and case make no difference.

    Raises:
        UserError: saying how many there are.
    """
    texts = {_key(prompt.text): prompt for prompt in prompts}
    found: dict[str, Prompt] = {}
    for batch in open_source(str(run)).store.batches(columns=["prompt_text"]):
        for text in batch["prompt_text"].to_pylist():
            if (prompt := texts.get(_key(text))) is not None:
                found[prompt.prompt_id] = prompt
    if found:
        raise UserError(
            f"{run} was trained on {len(found)} of the {len(prompts)} prompts of {named(getattr(recipe.data, split))} "
            f"(such as {_quoted(next(iter(found.values())).text)}), so that its outputs there say nothing about "
            f"others; give prompts that it has not seen: data.{split}=FILE."
        )


def also_in_training_data(recipe: Recipe, prompts: Sequence[Prompt]) -> str | None:
    """Return a warning if prompts also stand in the recipe's training data: no run's store can tell what was used."""
    keys = {_key(prompt.text) for prompt in prompts}
    try:
        trained = read_prompts(recipe.data, recipe.data.train, lambda texts: [[0]] * len(texts))
    except UserError as error:
        return f"note: {named(recipe.data.train)} cannot be read, so these prompts may be in it: {error}"
    both = keys & {_key(text) for _, text in trained.texts()}
    if not both:
        return None
    return (
        f"WARNING: {len(both)} of the {len(prompts)} prompts also stand in {named(recipe.data.train)}; a model that "
        f"was trained on them looks better here than it is"
    )


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")
