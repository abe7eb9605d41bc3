"""The request of a comparison: its methods, learning rates, seeds and group sizes, and the file that keeps them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import write_file
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
    """Parse the options of the command line, comma-separated lists, and add them to an earlier request.

    An option that was not given is None: the value of the earlier request (`begun`) stays, and a new comparison takes
    the default. `group_sizes` is the value of --n, `swept` that of --n-objectives.

    Raises:
        UserError: a value is invalid, is given twice, or would have no effect.
    """
    before = begun or Request((), (), ())
    methods = _methods(objectives, pairs, before)
    _refuse_idle_pairs(recipe, methods, pairs)
    sizes = tuple(sorted(_joined(before.group_sizes, _sizes(group_sizes, recipe))))
    labels = _swept(methods, swept, before)
    _refuse_idle_sweep(sizes, labels, swept)
    if pairs is not None and "://" not in pairs:
        pairs = str(Path(pairs).expanduser().absolute())
    return Request(
        methods=methods,
        seeds=(before.seeds or SEEDS) if seeds is None else _joined(before.seeds, _numbers("--seeds", seeds, int)),
        learning_rates=_rates(learning_rates, recipe, before),
        group_sizes=sizes,
        swept=labels,
        pairs=before.pairs if pairs is None else pairs,
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
        raise UserError(f"{option} {text}: expected one or more numbers, none of them negative, and no rate of 0.")
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


class _Saved(BaseModel):
    """The contents of request.json: the options of the command line, with methods by their labels."""

    model_config = ConfigDict(strict=True, extra="forbid")

    objectives: list[str]
    seeds: list[int]
    learning_rates: list[float]
    n: list[int]
    n_objectives: list[str]
    pairs: str | None


def save_request(path: Path, request: Request) -> None:
    """Write a request to a file."""
    saved = _Saved(
        objectives=[method.label for method in request.methods],
        seeds=list(request.seeds),
        learning_rates=list(request.learning_rates),
        n=list(request.group_sizes),
        n_objectives=list(request.swept),
        pairs=request.pairs,
    )
    write_file(path, saved.model_dump_json(indent=1))


def read_request(path: Path) -> Request | None:
    """Read the request that `save_request` wrote; None if there is no such file.

    Raises:
        UserError: `save_request` did not write the file.
    """
    try:
        saved = _Saved.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError:
        raise UserError(
            f"{path} was not written by brain compare; remove it and give all options of the comparison again, the "
            f"seeds in the same order, or choose another directory with --out."
        ) from None
    return Request(
        methods=tuple(map(parse_method, saved.objectives)),
        seeds=tuple(saved.seeds),
        learning_rates=tuple(saved.learning_rates),
        group_sizes=tuple(saved.n),
        swept=tuple(saved.n_objectives),
        pairs=saved.pairs,
    )
