"""answers.md: outputs of the prior and of all methods on a few test prompts, for a person to read without bias.

The prompts are drawn by a fixed seed, so that nobody has chosen them by their outputs. The outputs to a prompt stand in
random order under letters; a key at the end tells whose they are, with rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brain_align.common.printable import fenced
from brain_align.deploy.compare.plan.request import READ_SEED
from brain_align.deploy.pages.text_table import TextTable, number

NEAR = 5.0
"""Nats: outputs are read of the largest KL budget up to this, or else of the smallest."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Answer:
    """One output to a prompt."""

    text: str
    values: dict[str, float | None]  # `reward`, and each judge's by its name


@dataclass(frozen=True)
class ReadPrompt:
    """A test prompt with its reference and the outputs to it, by method."""

    prompt: str
    gold: str | None
    answers: dict[str, Answer]


def drawn_prompts(count: int, prompts: int) -> list[int]:
    """Return the places of the test prompts that are read; of a larger number, these are the first."""
    return np.random.default_rng(READ_SEED).permutation(prompts)[:count].tolist()


def reading_budget(budgets: tuple[float, ...]) -> float:
    """Return the KL budget whose versions are read."""
    return max((budget for budget in budgets if budget <= NEAR), default=min(budgets))


def answers_document(name: str, prompts: Sequence[ReadPrompt], compared: str, missing: Mapping[str, str]) -> str:
    """Return the document: all prompts with their outputs in random order, then the key.

    `compared` says which versions the outputs are of; `missing` why a method has none, by its label.
    """
    generator = np.random.default_rng(READ_SEED)
    orders = [list(generator.permutation(list(one.answers))) for one in prompts]
    lines = [
        f"# {name}: outputs to read",
        "",
        "**Warning.** Prompts and outputs are shown as data and models have them; they may be offensive or disturbing.",
        "",
        f"{len(prompts)} test prompts, drawn at random (seed {READ_SEED}) without regard to their outputs. {compared} "
        "The outputs to each prompt stand in random order; the key at the end tells whose they are.",
        *(f"{label}: {reason}." for label, reason in missing.items()),
        "",
    ]
    for number_, (prompt, order) in enumerate(zip(prompts, orders, strict=True), start=1):
        lines += _prompt_lines(number_, prompt, order)
    return "\n".join([*lines, _key(prompts, orders).for_markdown()])


def _prompt_lines(number_: int, prompt: ReadPrompt, order: Sequence[str]) -> list[str]:
    lines = [f"## {number_}", "", *fenced(prompt.prompt.strip()), ""]
    if prompt.gold is not None:
        lines += ["Reference:", "", *fenced(prompt.gold.strip()), ""]
    for letter, label in zip(_LETTERS, order, strict=False):
        lines += [f"**{letter}**", "", *fenced(prompt.answers[label].text.strip()), ""]
    return lines


def _key(prompts: Sequence[ReadPrompt], orders: Sequence[Sequence[str]]) -> TextTable:
    scorers = list(dict.fromkeys(name for one in prompts for each in one.answers.values() for name in each.values))
    rows = [
        [
            f"{number_}{letter}",
            label,
            *(number(prompt.answers[label].values.get(name), 3) for name in scorers),
        ]
        for number_, (prompt, order) in enumerate(zip(prompts, orders, strict=True), start=1)
        for letter, label in zip(_LETTERS, order, strict=False)
    ]
    return TextTable("Key", ["output", "method", *scorers], rows)
