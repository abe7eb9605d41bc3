"""What a comparison's directory was asked for, kept with it, so that every start completes and shows all of it."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.deploy.compare.plan.methods import parse_method
from brain_align.deploy.compare.plan.request import Request


class _Saved(BaseModel):
    """The options of the command line, with methods by their labels."""

    model_config = ConfigDict(strict=True, extra="forbid")

    objectives: list[str]
    seeds: list[int]
    learning_rates: list[float]
    n: list[int]
    n_objectives: list[str]
    pairs: str | None


def save_request(path: Path, request: Request) -> None:
    """Write it."""
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
    """What `save_request` has written; None for a comparison that was not begun.

    Raises:
        UserError: the file is none of these.
    """
    try:
        saved = _Saved.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError:
        raise UserError(
            f"{path} is not what brain compare writes; remove it and give all options of the comparison again, the "
            f"seeds in the same order, or name another directory with --out."
        ) from None
    return Request(
        methods=tuple(map(parse_method, saved.objectives)),
        seeds=tuple(saved.seeds),
        learning_rates=tuple(saved.learning_rates),
        group_sizes=tuple(saved.n),
        swept=tuple(saved.n_objectives),
        pairs=saved.pairs,
    )
