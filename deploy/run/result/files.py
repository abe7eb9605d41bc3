"""A version of the policy as others use it: adapter or whole model, tokenizer, chat template, and a model card."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import first_line
from brain_align.common.nn.models.sources import hub_failure
from brain_align.common.policies import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ProposalVersion
from brain_align.deploy.run.directory import RunDirectory, used_template
from brain_align.deploy.run.result.card import Base, Card, model_card

_OF_TOKENIZERS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
_OF_MODELS = ("generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "Notice*", "USE_POLICY*")
_TEMPLATE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Result:
    """One version of a run's policy, which is written for others."""

    recipe: Recipe  # resolved
    directory: RunDirectory  # of the run
    version: ProposalVersion
    summary: dict[str, Any] | None  # None while the run has not ended

    @property
    def base(self) -> Base:
        """The model that was trained. A relative place was meant from where the run began, which the version knows."""
        config = self.version.path / ADAPTER_CONFIG
        written = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        return _found(self.recipe.policy.model, written.get("base_model_name_or_path"))

    def write_adapter(self, target: Path) -> list[str]:
        """Write the adapter into a new directory; return a note on each thing that could not be added to it."""
        shutil.copyfile(self.version.path / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
        settings = json.loads((self.version.path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        settings |= {"base_model_name_or_path": self.base.name, "revision": self.base.revision}
        _write(target / ADAPTER_CONFIG, json.dumps(settings, indent=2, sort_keys=True))
        rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
        return self._complete(target, rank)

    def complete_model(self, target: Path) -> list[str]:
        """Add what belongs to a whole model to its weights and configuration; return notes as `write_adapter` does."""
        notes = _add(self.base, _OF_MODELS, target, "generation_config.json")
        return notes + self._complete(target, None)

    def _complete(self, target: Path, rank: int | None) -> list[str]:
        tokenizer = self.recipe.policy.tokenizer
        notes = _add(_found(tokenizer, None) if tokenizer else self.base, _OF_TOKENIZERS, target, "tokenizer")
        if (template := used_template(self.directory)) is not None:
            _set_template(target, template)
        card = Card(self.recipe, self.version.version, self.version.step, self.summary, self.base, rank)
        _write(target / "README.md", model_card(card))
        return notes


def _found(source: str, known: str | None) -> Base:
    for place in (source, known):
        if place is not None and (path := Path(place).expanduser()).is_dir():
            return Base(str(path.absolute()), None, local=True)
    name, _, revision = source.partition("@")
    return Base(name, revision or None, local=False)


def _add(source: Base, patterns: tuple[str, ...], target: Path, what: str) -> list[str]:
    """Copy files as their authors wrote them; a result is not held up by what cannot be read any more."""
    try:
        copied = [_copy(file, target) for file in _files(source, patterns)]
    except (OSError, ValueError, RuntimeError) as error:
        return [f"without the {what} of {source.name}, which cannot be read: {first_line(error)}"]
    return [] if copied or patterns is not _OF_TOKENIZERS else [f"without a {what}: {source.name} has none"]


def _files(source: Base, patterns: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """Yield the files of a model that match, each with the directory that it lies in."""
    root = Path(source.name) if source.local else _snapshot(source, patterns)
    for pattern in patterns:
        for file in sorted(root.glob(pattern)):
            if file.is_file() and file.suffix != ".py":
                yield file, root


def _snapshot(source: Base, patterns: tuple[str, ...]) -> Path:
    """Return a hub model's directory in the cache, which the run has filled; the hub is asked where that lacks more."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(snapshot_download, source.name, revision=source.revision, allow_patterns=list(patterns))
    with contextlib.suppress(LocalEntryNotFoundError):
        cached = Path(fetch(local_files_only=True))
        if patterns is _OF_MODELS or any(next(cached.glob(pattern), None) for pattern in patterns):
            return cached
    if failure := hub_failure():
        raise OSError(failure)
    return Path(fetch(local_files_only=False))


def _copy(found: tuple[Path, Path], target: Path) -> Path:
    file, root = found
    place = target / file.relative_to(root)
    place.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, place)  # follows the links of the hub's cache
    return place


def _set_template(target: Path, template: str) -> None:
    """Make a template the tokenizer's own, also for readers that know only its configuration."""
    _write(target / _TEMPLATE, template)
    config = target / _TOKENIZER_CONFIG
    settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    if settings.get("chat_template") not in (None, template):
        settings["chat_template"] = template
        _write(config, json.dumps(settings, indent=2, ensure_ascii=False))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
