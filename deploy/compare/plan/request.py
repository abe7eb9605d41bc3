"""What is asked for: which methods, learning rates, seeds and group sizes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.deploy.compare.plan.methods import Method, any_on_pairs, parse_method

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

SEEDS = (0, 1, 2)

GRID = (1 / 3, 1.0, 3.0)
"""The learning rates that every method is tried at, as multiples of the recipe's."""

SWEPT = ("dpo-sft", "brain")
"""Whose win rate the paper's figure 2 shows against n."""


_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Request:
    """A comparison: everything that its directory was asked for so far.

    Attributes:
        methods: in the order in which they are shown.
        seeds: of prompts, samples and adapters; learning rates are chosen on the first.
        learning_rates: the grid, the same for every method, in increasing order.
        group_sizes: n below the recipe's at which the swept methods are trained too, in increasing order.
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
    objectives: str | None = None,
    seeds: str | None = None,
    learning_rates: str | None = None,
    group_sizes: str | None = None,
    swept: str | None = None,
    pairs: str | None = None,
    begun: Request | None = None,
) -> Request:
    """Read the options of the command line, each a list with commas, and add them to what was asked for before.

    Args:
        recipe: that is compared on.
        objectives: of --objectives. It and all others are None where the option was not given: then what was asked for
            before stays, and in a new comparison the default is taken.
        seeds: of --seeds.
        learning_rates: of --learning-rates.
        group_sizes: of --n.
        swept: of --n-objectives.
        pairs: of --pairs.
        begun: what was asked for before.

    Raises:
        UserError: a value is not what its option takes, stands there twice, or would be of no use.
    """
    before = begun or Request((), (), ())
    methods = _methods(objectives, pairs, before)
    _refuse_idle_pairs(recipe, methods, pairs)
    sizes = tuple(sorted(_joined(before.group_sizes, _sizes(group_sizes, recipe))))
    labels = _swept(methods, swept, before)
    _refuse_idle_sweep(sizes, labels, swept)
    return Request(
        methods=methods,
        seeds=(before.seeds or SEEDS) if seeds is None else _joined(before.seeds, _numbers("--seeds", seeds, int)),
        learning_rates=_rates(learning_rates, recipe, before),
        group_sizes=sizes,
        swept=labels,
        pairs=before.pairs if pairs is None else _address(pairs),
    )


def _methods(objectives: str | None, pairs: str | None, before: Request) -> tuple[Method, ...]:
    names: Sequence[str] = () if before.methods else DEFAULT_OBJECTIVES
    if objectives is not None:
        names = _listed(objectives)
    elif pairs is not None:
        names = ("dpo", *names)
    asked = [parse_method(name) for name in names]
    if objectives is not None:
        _refuse_repeated("--objectives", [method.slug for method in asked])
    return _joined(before.methods, asked, name=lambda method: method.slug)


def _rates(learning_rates: str | None, recipe: Recipe, before: Request) -> tuple[float, ...]:
    if learning_rates is not None:
        rates: list[float] = _numbers("--learning-rates", learning_rates, float)
        _refuse_repeated("--learning-rates", [f"{rate:g}" for rate in rates])
    elif before.learning_rates:
        return before.learning_rates
    else:
        rates = [float(f"{recipe.learner.learning_rate * factor:.3g}") for factor in GRID]
    return tuple(sorted(_joined(before.learning_rates, rates, name=lambda rate: f"{rate:g}")))


def _sizes(group_sizes: str | None, recipe: Recipe) -> list[int]:
    sizes: list[int] = _numbers("--n", group_sizes, int) if group_sizes is not None else []
    wrong = [size for size in sizes if not 2 <= size < recipe.sampling.n]
    if wrong:
        raise UserError(
            f"--n {wrong[0]}: the groups have n={recipe.sampling.n} outputs (sampling.n), and the first are taken; "
            f"name numbers from 2 to {recipe.sampling.n - 1}."
        )
    return sizes


def _swept(methods: Sequence[Method], asked: str | None, before: Request) -> tuple[str, ...]:
    labels = [method.label for method in methods]
    swept, decided = (before.swept, before.methods) if before.group_sizes else ((), ())
    if asked is None:
        return (*swept, *(method.label for method in methods if method.label in SWEPT and method not in decided))
    unknown = [name for name in _listed(asked) if name not in labels]
    if unknown:
        raise UserError(f"--n-objectives: {unknown[0]!r} is not among --objectives ({', '.join(labels)}).")
    return _joined(swept, _listed(asked))


def _refuse_idle_pairs(recipe: Recipe, methods: Sequence[Method], pairs: str | None) -> None:
    if pairs is not None and not any_on_pairs(recipe, methods):
        raise UserError(
            f"--pairs {pairs}: none of --objectives ({', '.join(method.label for method in methods)}) trains on pairs "
            f"that people chose between; add dpo, or leave --pairs out."
        )


def _joined(
    before: Sequence[_Item], asked: Sequence[_Item], name: Callable[[_Item], object] = lambda item: item
) -> tuple[_Item, ...]:
    """What was there before, and what is new after it; of two with one name, as runs are named, the first."""
    named: dict[object, _Item] = {}
    for item in (*before, *asked):
        named.setdefault(name(item), item)
    return tuple(named.values())


def _address(pairs: str) -> str:
    return pairs if "://" in pairs else str(Path(pairs).expanduser().absolute())


def _refuse_idle_sweep(sizes: Sequence[int], labels: Sequence[str], asked: str | None) -> None:
    """Group sizes at which nothing would be trained, and methods without a size to train them at."""
    if asked is not None:
        _refuse_repeated("--n-objectives", _listed(asked))
        if not sizes:
            raise UserError(
                f"--n-objectives {asked}: --n names no group sizes to train these at; add --n 2,4 or the like, or "
                f"leave --n-objectives out."
            )
    if sizes and not labels:
        raise UserError(
            f"--n {','.join(map(str, sizes))} is for {' and '.join(SWEPT)}, and neither is among --objectives, so that "
            f"nothing would be trained; name the objectives that it is for with --n-objectives."
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
