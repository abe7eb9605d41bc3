"""What is asked for: which methods, learning rates, seeds and group sizes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.recipe import Recipe
from common.errors import UserError
from deploy.compare.methods import Method, parse_method

DEFAULT_OBJECTIVES = (
    "dpo-sft",
    "dpo-sft+iw",
    "dpo-sft+iw+n",
    "rso",
    "brain",
    "brain-no-baseline",
    "brain-fixed-proposal",
)
"""The paper's methods that need nothing but sampled groups."""

GRID = (1 / 3, 1.0, 3.0)
"""The learning rates that every method is tried at, as multiples of the recipe's."""

SWEPT = ("dpo-sft", "brain")
"""Whose win rate is shown against n, as in the paper's figure 2."""


@dataclass(frozen=True)
class Request:
    """A comparison.

    Attributes:
        methods: in the order in which they are shown.
        seeds: of prompts, samples and adapters; learning rates are chosen on the first.
        learning_rates: the grid, the same for every method, in increasing order.
        group_sizes: n below the recipe's at which the swept methods are trained too.
        swept: labels of the methods that are trained at those.
        pairs: a store of pairs that people chose between.
    """

    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    group_sizes: tuple[int, ...] = ()
    swept: tuple[str, ...] = ()
    pairs: str | None = None


def parse_request(
    recipe: Recipe,
    *,
    objectives: str | None,
    seeds: str,
    learning_rates: str | None,
    group_sizes: str | None,
    swept: str | None,
    pairs: str | None,
) -> Request:
    """Read the options of the command line, each a list with commas; None where one was not given.

    Raises:
        UserError: a value is not what its option takes, or stands there twice.
    """
    paper = DEFAULT_OBJECTIVES if pairs is None else ("dpo", *DEFAULT_OBJECTIVES)
    names = paper if objectives is None else _listed(objectives)
    methods = tuple(parse_method(name) for name in names)
    _refuse_repeated("--objectives", [method.slug for method in methods])
    if learning_rates is None:
        rates = [float(f"{recipe.learner.learning_rate * factor:.3g}") for factor in GRID]
    else:
        rates = _numbers("--learning-rates", learning_rates, float)
        _refuse_repeated("--learning-rates", [f"{rate:g}" for rate in rates])  # as cells are named
    sizes = _numbers("--n", group_sizes, int) if group_sizes is not None else []
    wrong = [size for size in sizes if not 2 <= size < recipe.sampling.n]
    if wrong:
        raise UserError(
            f"--n {wrong[0]}: the groups have n={recipe.sampling.n} outputs (sampling.n), and the first are taken; "
            f"name numbers from 2 to {recipe.sampling.n - 1}."
        )
    _refuse_idle_sweep(methods, group_sizes, swept)
    return Request(
        methods=methods,
        seeds=tuple(_numbers("--seeds", seeds, int)),
        learning_rates=tuple(sorted(rates)),
        group_sizes=tuple(sorted(sizes)),
        swept=_swept(methods, swept),
        pairs=pairs if pairs is None or "://" in pairs else str(Path(pairs).expanduser().absolute()),
    )


def _swept(methods: Sequence[Method], asked: str | None) -> tuple[str, ...]:
    labels = [method.label for method in methods]
    if asked is None:
        return tuple(label for label in labels if label in SWEPT)
    unknown = [name for name in _listed(asked) if name not in labels]
    if unknown:
        raise UserError(f"--n-objectives: {unknown[0]!r} is not among --objectives ({', '.join(labels)}).")
    return tuple(_listed(asked))


def _refuse_idle_sweep(methods: Sequence[Method], sizes: str | None, asked: str | None) -> None:
    """Group sizes at which nothing would be trained, and methods without a size to train them at."""
    if asked is not None:
        _refuse_repeated("--n-objectives", _listed(asked))
        if sizes is None:
            raise UserError(
                f"--n-objectives {asked}: --n names no group sizes to train these at; add --n 2,4 or the like, or "
                f"leave --n-objectives out."
            )
    elif sizes is not None and not _swept(methods, None):
        raise UserError(
            f"--n {sizes} is for {' and '.join(SWEPT)}, and neither is among --objectives, so that nothing would be "
            f"trained; name the objectives that it is for with --n-objectives."
        )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    try:
        numbers = [kind(part) for part in _listed(text)]
    except ValueError:
        raise UserError(f"{option} {text}: write numbers with commas between them.") from None
    if not numbers or min(numbers) < 0 or (kind is float and min(numbers) == 0):
        raise UserError(f"{option} {text}: name at least one number, and none that is negative or a rate of 0.")
    endless = [number for number in numbers if not math.isfinite(number)]
    if endless:
        raise UserError(f"{option} {text}: {endless[0]} is no number to train with; name finite ones.")
    _refuse_repeated(option, [str(number) for number in numbers])
    return numbers


def _refuse_repeated(option: str, values: list[str]) -> None:
    if not values:
        raise UserError(f"{option} names nothing.")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise UserError(f"{option} names {repeated[0]} twice.")
