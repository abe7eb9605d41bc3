"""The file that keeps a comparison's request."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.deploy.compare.plan.methods import parse_method
from brain_align.deploy.compare.plan.request import READ_SEED, Request


class _Saved(BaseModel):
    """The contents of request.json: the options of the command line, with methods by their labels."""

    model_config = ConfigDict(strict=True, extra="forbid")

    objectives: list[str]
    seeds: list[int]
    learning_rates: list[float]
    n: list[int]
    n_objectives: list[str]
    pairs: str | None
    # later than the others: a comparison that was begun without them has none.
    kl_budgets: list[float] = []
    read: int = 0
    read_seed: int = READ_SEED


def save_request(path: Path, request: Request) -> None:
    """Write a request to a file."""
    saved = _Saved(
        objectives=[method.label for method in request.methods],
        seeds=list(request.seeds),
        learning_rates=list(request.learning_rates),
        n=list(request.group_sizes),
        n_objectives=list(request.swept),
        pairs=request.pairs,
        kl_budgets=list(request.kl_budgets),
        read=request.read,
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
        kl_budgets=tuple(saved.kl_budgets),
        read=saved.read,
    )
