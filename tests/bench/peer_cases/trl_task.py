"""What TRL's process of a cell is given: the cell, the recipe, and the training prompts as texts."""

from dataclasses import dataclass

from brain_align.common.config.recipe import Recipe
from tests.bench.peer_cases.cases import Cell, prompts, resolved


@dataclass(frozen=True)
class Task:
    """A cell of TRL with everything that it reads, so that its process checks nothing and starts as a user's would."""

    cell: Cell
    recipe: Recipe
    texts: list[str]


def read(cell: Cell) -> Task:
    """Read a cell's recipe and prompts; refuse prompts that TRL would encode otherwise than our sampler gets them."""
    from transformers import AutoTokenizer

    recipe, found = resolved(cell).recipe, prompts(cell).train
    texts = [prompt.text for prompt in found]
    encoded = AutoTokenizer.from_pretrained(recipe.policy.model)(texts)["input_ids"]
    if any(tuple(ids) != prompt.token_ids for ids, prompt in zip(encoded, found, strict=True)):
        raise SystemExit("TRL would encode the prompts otherwise than our sampler gets them")
    return Task(cell, recipe, texts)
