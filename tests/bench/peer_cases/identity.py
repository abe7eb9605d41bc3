"""What a finished cell is a result of: a digest of recipe, case and data, and what becomes of cells of other ones."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brain_align.common.identity import digest, digest_files
from brain_align.deploy.run.recipe_files import load_recipe
from tests.bench.peer_cases.cases import (
    DEMO,
    FOLDER,
    STRICT,
    WORK,
    Case,
    Cell,
    model_digest,
    place_settings,
    posts_folder,
    recipe_file,
    resolved,
    smollm_place,
)


def digest_of(cell: Cell) -> str:
    """Return the digest of everything that decides a cell's figures, apart from the code; places do not count."""
    case = cell.case
    places = {"run.dir", *place_settings(case)}
    return digest(
        "peer cell",
        load_recipe(recipe_file(case)).model_dump(mode="json", exclude_unset=True),
        {name: value for name, value in cell.overrides().items() if name not in places},
        [case.prompts, case.micro_batch, case.every, case.test_prompts, case.outputs, cell.trl_steps],
        _settings(cell),
        _data_digest(case),
    )


def _settings(cell: Cell) -> dict[str, object]:
    return {name: getattr(cell, name) for name in ("method", "learning_rate", "seed", "steps", "smoke")}


def _data_digest(case: Case) -> str:
    """Return what identifies prompts, models and reward of a case, which is prepared."""
    if case.name == DEMO.name:
        return digest(resolved(Cell(case, STRICT, None, 0)).facts())
    posts = digest_files(posts_folder(), [f"{split}.jsonl" for split in ("train", "validation", "test")])
    return digest(posts, model_digest(smollm_place()), digest_files(Path(__file__).parent, ["summary_reward.py"]))


@contextmanager
def stamped(cell: Cell) -> Iterator[None]:
    """Train the cell in the block: trained.json gets the digest of what there was at its beginning."""
    stamp = {"digest": digest_of(cell), "cell": _settings(cell)}
    yield
    trained = cell.work / "trained.json"
    figures = json.loads(trained.read_text(encoding="utf-8"))
    trained.write_text(json.dumps({**figures, **stamp}, indent=1), encoding="utf-8")


def set_aside(case: Case) -> None:
    """Move those cells of a prepared case out of the way that are of another recipe, case or data, and say so."""
    results = [*FOLDER.glob(f"{case.name}-*.json"), *WORK.glob(f"{case.name}-*.json")]
    for stored in [*results, *WORK.glob(f"{case.name}-*/trained.json")]:
        if _is_current(case, stored):
            continue
        place = stored.parent if stored.name == "trained.json" else stored
        target = _free(place.parent / "aside" / place.name)
        target.parent.mkdir(exist_ok=True)
        place.rename(target)
        print(f"{place.name}: of another recipe, case or data; it is {target} now", flush=True)


def _is_current(case: Case, stored: Path) -> bool:
    try:
        found = json.loads(stored.read_text(encoding="utf-8"))
        return bool(found["digest"] == digest_of(Cell(case, **found["cell"])))
    except (ValueError, KeyError, TypeError):  # half written, or of a time without digests
        return False


def _free(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free
