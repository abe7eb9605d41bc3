"""What a comparison's directory was asked for, kept with it, so that every start completes and shows all of it."""

import json
from pathlib import Path

from common.durable import write_file
from common.errors import UserError
from deploy.compare.methods import parse_method
from deploy.compare.request import Request


def save_request(path: Path, request: Request) -> None:
    """Write it, with methods by their labels."""
    saved = {
        "objectives": [method.label for method in request.methods],
        "seeds": request.seeds,
        "learning_rates": request.learning_rates,
        "n": request.group_sizes,
        "n_objectives": request.swept,
        "pairs": request.pairs,
    }
    write_file(path, json.dumps(saved, indent=1))


def read_request(path: Path) -> Request | None:
    """What `save_request` has written; None for a comparison that was not begun.

    Raises:
        UserError: the file is none of these.
    """
    try:
        saved = json.loads(path.read_text())
        return Request(
            methods=tuple(map(parse_method, saved["objectives"])),
            seeds=tuple(saved["seeds"]),
            learning_rates=tuple(saved["learning_rates"]),
            group_sizes=tuple(saved["n"]),
            swept=tuple(saved["n_objectives"]),
            pairs=saved["pairs"],
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not what brain compare writes; remove it and name all --objectives, --seeds and "
            f"--learning-rates again, or name another directory with --out."
        ) from None
