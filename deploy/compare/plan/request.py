"""The request of a comparison: its methods, learning rates, seeds, group sizes and KL budgets."""

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
"""The paper's methods that need only sampled groups."""

SEEDS = (0, 1, 2)

GRID = (1 / 3, 1.0, 3.0)
"""The learning rates of every method's grid, as multiples of the recipe's."""

KL_BUDGETS = (1.0, 2.0, 5.0, 10.0)
"""Nats of KL(q‖p) on validation prompts up to which methods are compared at matched distances from the prior."""

READ_SEED = 0
"""The seed that draws the test prompts whose outputs a person reads, whatever their outputs are."""

SWEPT = ("dpo-sft", "brain")
"""The methods whose win rate the paper's figure 2 shows against n."""


_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Request:
    """Everything that a comparison's directory was asked for so far."""

    methods: tuple[Method, ...]  # in the order in which they are shown
    seeds: tuple[int, ...]  # of prompts, samples and adapters; learning rates are chosen on the first
    learning_rates: tuple[float, ...]  # the grid, the same for every method, in increasing order
    # values of n below the recipe's with which the swept methods are also trained, in increasing order.
    group_sizes: tuple[int, ...] = ()
    swept: tuple[str, ...] = ()  # labels of these methods
    pairs: str | None = None  # a store of human preference pairs
    kl_budgets: tuple[float, ...] = ()  # nats, in increasing order
    read: int = 0  # the number of test prompts whose outputs a person reads


@dataclass(frozen=True)
class Options:
    """The options of the command line as they were given; None where one was omitted. Lists are comma-separated."""

    objectives: str | None = None
    seeds: str | None = None
    learning_rates: str | None = None
    group_sizes: str | None = None  # --n
    swept: str | None = None  # --n-objectives
    pairs: str | None = None
    kl_budgets: str | None = None
    read: int | None = None


def parse_request(recipe: Recipe, options: Options, begun: Request | None = None) -> Request:
    """Parse the options of the command line, and add them to an earlier request.

    For an option that was not given, the value of the earlier request (`begun`) stays, and a new comparison takes the
    default.

    Raises:
        UserError: a value is invalid, is given twice, or would have no effect.
    """
    before = begun or Request((), (), ())
    pairs, seeds, swept = options.pairs, options.seeds, options.swept
    methods = _methods(options.objectives, pairs, before)
    _refuse_idle_pairs(recipe, methods, pairs)
    sizes = tuple(sorted(_joined(before.group_sizes, _sizes(options.group_sizes, recipe))))
    labels = _swept(methods, swept, before)
    _refuse_idle_sweep(sizes, labels, swept)
    budgets = _budgets(options.kl_budgets, begun)
    if pairs is not None and "://" not in pairs:
        pairs = str(Path(pairs).expanduser().absolute())
    return Request(
        methods=methods,
        seeds=(before.seeds or SEEDS) if seeds is None else _joined(before.seeds, _numbers("--seeds", seeds, int)),
        learning_rates=_rates(options.learning_rates, recipe, before),
        group_sizes=sizes,
        swept=labels,
        pairs=before.pairs if pairs is None else pairs,
        kl_budgets=budgets,
        read=_read(options.read, recipe, before, budgets),
    )


def _budgets(asked: str | None, begun: Request | None) -> tuple[float, ...]:
    before = () if begun is None else begun.kl_budgets
    if asked is None:
        return before if begun else KL_BUDGETS
    if asked.strip() == "none":
        if before:
            raise UserError(
                f"--kl-budgets none: this comparison has the budgets {', '.join(f'{one:g}' for one in before)}; omit "
                f"the option, or choose another directory with --out."
            )
        return ()
    budgets: list[float] = _numbers("--kl-budgets", asked, float)
    return tuple(sorted(_joined(before, budgets, name=lambda budget: f"{budget:g}")))


def _read(asked: int | None, recipe: Recipe, before: Request, budgets: Sequence[float]) -> int:
    if asked is None:
        return before.read
    if not budgets:
        raise UserError(
            f"--read {asked}: the outputs to read are those of the best versions within a KL budget; add --kl-budgets, "
            f"such as --kl-budgets 5."
        )
    most = recipe.evaluation.test_prompts
    if not 1 <= asked <= most:
        raise UserError(
            f"--read {asked}: the outputs of 1 to {most} test prompts (evaluation.test_prompts) can be read; 20 are a "
            f"good number."
        )
    return max(asked, before.read)


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
            f"--n {wrong[0]}: groups have n={recipe.sampling.n} outputs (sampling.n), of which the first are taken; "
            f"choose numbers from 2 to {recipe.sampling.n - 1}."
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
            f"--pairs {pairs}: none of --objectives ({', '.join(method.label for method in methods)}) trains on human "
            f"preference pairs; add dpo, or omit --pairs."
        )


def _joined(
    before: Sequence[_Item], asked: Sequence[_Item], name: Callable[[_Item], object] = lambda item: item
) -> tuple[_Item, ...]:
    """Return the earlier items, then the new ones; of two with the same name, the first."""
    named: dict[object, _Item] = {}
    for item in (*before, *asked):
        named.setdefault(name(item), item)
    return tuple(named.values())


def _refuse_idle_sweep(sizes: Sequence[int], labels: Sequence[str], asked: str | None) -> None:
    """Refuse group sizes at which no method would be trained, and methods without a group size."""
    if asked is not None:
        _refuse_repeated("--n-objectives", _listed(asked))
        if not sizes:
            raise UserError(
                f"--n-objectives {asked}: no group sizes are given to train these with; add --n, such as --n 2,4, or "
                f"omit --n-objectives."
            )
    if sizes and not labels:
        raise UserError(
            f"--n {','.join(map(str, sizes))} applies to {' and '.join(SWEPT)}, and neither is among --objectives, so "
            f"that nothing would be trained; name the objectives that it applies to with --n-objectives."
        )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    try:
        numbers = [kind(part) for part in _listed(text)]
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers separated by commas.") from None
    if not numbers or min(numbers) < 0 or (kind is float and min(numbers) == 0):
        least = "all of them above 0" if kind is float else "none of them negative"
        raise UserError(f"{option} {text}: expected one or more numbers, {least}.")
    endless = [number for number in numbers if not math.isfinite(number)]
    if endless:
        raise UserError(f"{option} {text}: {endless[0]} is not a finite number; choose finite ones.")
    _refuse_repeated(option, [str(number) for number in numbers])
    return numbers


def _refuse_repeated(option: str, values: list[str]) -> None:
    if not values:
        raise UserError(f"{option} is empty.")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise UserError(f"{option} names {repeated[0]} twice.")
