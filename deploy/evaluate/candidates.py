"""What is evaluated: a run's version, an exported adapter or model, or a hub id, as published versions for samplers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.policies import ADAPTER_CONFIG, ProposalVersion
from brain_align.deploy.evaluate.published import Published, publish_adapter, publish_model
from brain_align.deploy.evaluate.settings import with_adapter, with_model, with_policy_of
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import resolve, run_directory
from brain_align.deploy.run.versions import find_version

Kind = Literal["run", "adapter", "model"]

MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Named:
    """A WHAT as it was written, and what it turned out to be."""

    what: str  # as written
    kind: Kind
    place: str  # the directory, or a hub id
    version: str | None = None  # of a run

    @property
    def run(self) -> Path | None:
        """The run directory, if it is one."""
        return Path(self.place) if self.kind == "run" else None


@dataclass(frozen=True)
class Candidate:
    """A distribution of outputs that is evaluated."""

    label: str  # in tables and files
    kind: Kind
    place: str
    recipe: Recipe  # its policy is what samplers load; the prompts, sampling and scorers are the evaluation's
    published: ProposalVersion
    run: RunDirectory | None  # whose version it is

    @property
    def policies(self) -> Path:
        """The registry that its version is in."""
        return self.published.path.parent


def parse(what: str) -> Named:
    """Find out what a WHAT is, without reading weights.

    Raises:
        UserError: it is a directory of another kind, or a path that does not exist.
    """
    path = Path(what).expanduser()
    before, at, version = what.rpartition("@")
    if at and version and not path.exists() and Path(before).expanduser().is_dir():
        found = parse(before)
        if found.kind != "run":
            raise UserError(f"{what}: {before} is not a run directory, so that it has no versions; remove @{version}.")
        return Named(what, "run", found.place, version)
    if path.is_dir():
        return Named(what, _kind_of(path), str(path.absolute()), None)
    from brain_align.common.nn.models.sources import find_source  # transformers' hub library

    find_source(what, "WHAT")
    return Named(what, _kind_on_hub(what), what)


def recipe_name(whats: Sequence[Named], recipe: str | None) -> str:
    """Return where prompts, sampling and scorers come from: the recipe that is named, else the first run's."""
    run = next((what.place for what in whats if what.kind == "run"), None)
    if recipe is None and run is None:
        raise UserError(
            f"{whats[0].what} is not a run, so that its prompts, sampling and scorers are not known; name a recipe, or "
            f"a run, that has them: --recipe RECIPE."
        )
    return recipe or str(run)


def _kind_of(path: Path) -> Kind:
    if RunDirectory(path).config.is_file():
        return "run"
    if (path / ADAPTER_CONFIG).is_file():
        return "adapter"
    if (path / MODEL_CONFIG).is_file():
        return "model"
    raise UserError(
        f"{path} is neither a run (it has no config.yaml) nor an adapter (no {ADAPTER_CONFIG}) nor a model (no "
        f"{MODEL_CONFIG}); name one of these, or a hub id."
    )


def _kind_on_hub(name: str) -> Kind:
    from brain_align.common.nn.models.adapters import find_adapter  # torch and peft
    from brain_align.common.nn.models.sources import find_source

    try:
        return "adapter" if (find_adapter(name) / ADAPTER_CONFIG).exists() else "model"
    except UserError as error:
        raise find_source(name, "WHAT").failure("adapter or model", error.__cause__ or error) from None


def candidate(named: Named, recipe: Recipe, published: Path) -> Candidate:
    """Find the weights of a WHAT, and publish them below a directory where no run has.

    Raises:
        UserError: a run has no such version, or weights are missing, damaged or of a kind that cannot be sampled from.
    """
    if named.run is not None:
        return _of_run(named, recipe)
    made = _adapter(named, recipe, published) if named.kind == "adapter" else _model(named, recipe, published)
    return Candidate(named.what, named.kind, named.place, made.recipe, made.version, None)


def _of_run(named: Named, recipe: Recipe) -> Candidate:
    assert named.run is not None
    own = load_recipe(named.run)
    directory = run_directory(own, named.run)
    found = find_version(
        directory, named.version or "best", named.what, f"name one: {named.place}@newest, or {named.place}@N"
    )
    resolved = resolve(own, None, begun=directory).recipe
    name = named.what if named.version is None else named.what.rpartition("@")[0]
    label = f"{name.rstrip('/')}@{found.version}"
    return Candidate(label, "run", named.place, with_policy_of(recipe, resolved), found, directory)


def _adapter(named: Named, recipe: Recipe, published: Path) -> Published:
    from brain_align.common.nn.models.adapters import find_adapter, read_adapter_config  # torch and peft

    directory = find_adapter(named.place)
    read_adapter_config(directory)
    settings = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if base and not Path(base).is_absolute() and revision:
        base = f"{base}@{revision}"
    return publish_adapter(with_adapter(recipe, _base(base, recipe), directory), directory, published)


def _base(written: str | None, recipe: Recipe) -> str:
    """Return the model that an adapter belongs to: what it says itself, unless that is a directory of elsewhere."""
    if not written or (Path(written).is_absolute() and not Path(written).is_dir()):
        return recipe.policy.model
    return written


def _model(named: Named, recipe: Recipe, published: Path) -> Published:
    return publish_model(with_model(recipe, named.place), published)


def refuse_repeated(candidates: Sequence[Candidate]) -> None:
    """Refuse two WHATs that are called the same: their figures could not be told apart."""
    seen: set[str] = set()
    for one in candidates:
        if one.label in seen:
            raise UserError(f"{one.label} is named twice; name each version once.")
        seen.add(one.label)
