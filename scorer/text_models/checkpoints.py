"""The files of a reward model, in a directory or on the Hugging Face hub, and their digest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedConfig

from brain_align.common.errors import UserError
from brain_align.common.identity import digest, digest_files
from brain_align.common.nn.models.shards import INDEX, listed_shards, shard_names
from brain_align.common.nn.models.sources import Source, find_source, hub_failure
from brain_align.scorer.text_models.formats import RewardFormat

SAFETENSORS = "model.safetensors"
"""Preferred over other files of the same weights: nothing in it can be executed."""

SHARDED_BIN = "pytorch_model.bin"

_CONFIG = "config.json"
_VOCABULARIES = ("tokenizer.json", "vocab.json")

_MORE_OF_TOKENIZERS = ("tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (*_VOCABULARIES, *_MORE_OF_TOKENIZERS)

_LOADED_WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, SHARDED_BIN, SHARDED_BIN + INDEX)  # in transformers' order
_TOKENIZERS = (*TOKENIZER_FILES, "vocab.txt", "*.model", "*.jinja")
_ADAPTER = ("adapter_config.json", "adapter_model.*")


@dataclass(frozen=True)
class Checkpoint:
    """The files of one reward model."""

    format: RewardFormat
    weights: tuple[Path, ...]  # one file, or its shards
    config: Path | None  # beside the weights; the original checkpoints have none
    tokenizer: str  # a directory, or a hub id

    @property
    def root(self) -> Path:
        """The directory of the files."""
        return self.weights[0].parent

    def digest(self) -> str:
        """Return the digest of the files that are read, and of no others beside them."""
        names = [file.name for file in (*self.weights, *([self.config] if self.config else []))]
        if not self.tokenizer_name():
            names += [name for name in TOKENIZER_FILES if (self.root / name).is_file()]
        return digest(self.format.name, self.tokenizer_name(), digest_files(self.root, names))

    def tokenizer_name(self) -> str:
        """Return the tokenizer's hub id; empty for one beside the weights, whose path means nothing elsewhere."""
        return "" if Path(self.tokenizer).is_dir() else self.tokenizer


def find_checkpoint(source: str, format: RewardFormat) -> Checkpoint:
    """Find a reward model's files.

    Args:
        source: a directory, or a hub id, followed by "@revision" unless the newest is meant.
        format: names the file of weights, and the tokenizer if there is none beside it.

    Raises:
        UserError: there is no such directory or repository, or no such file in it.
    """
    names = (SAFETENSORS, SAFETENSORS + INDEX, format.checkpoint_file, SHARDED_BIN + INDEX)
    place = find_source(source, "The reward model")
    directory = Path(source) if place.local else _download(place, names)
    weights = find_weights(directory, names)
    if weights is None:
        raise UserError(
            f"{source} holds neither {format.checkpoint_file}, the file of a {format.name} reward model, nor "
            f"{SAFETENSORS}, in one piece or in shards; set `path` to the directory that holds it, or `kind` to the "
            f"model's format."
        )
    config = directory / _CONFIG
    beside = any((directory / name).is_file() for name in _VOCABULARIES)
    tokenizer = str(directory) if beside else format.tokenizer
    return Checkpoint(format, weights, config if config.is_file() else None, tokenizer)


def find_weights(directory: Path, names: Sequence[str]) -> tuple[Path, ...] | None:
    """Return the file of a model's weights, or its shards; None if none of the names exists in the directory.

    The names are those of files of weights, or of indices of shards; the first that exists counts.

    Raises:
        UserError: an index cannot be read, or shards are missing.
    """
    found = next((directory / name for name in names if (directory / name).is_file()), None)
    if found is None:
        return None
    if not found.name.endswith(INDEX):
        return (found,)
    return tuple(directory / name for name in shard_names(found))


def _download(place: Source, weights: Sequence[str]) -> Path:
    """Return the directory of the hub's cache with the files of a reward model, fetching those that are missing."""
    hub_failure()  # asked once; a hub that does not answer is left alone from then on
    found = next((file for name in weights if (file := _fetched(place, name)) is not None), None)
    if found is None:
        raise place.failure("reward model", FileNotFoundError(f"it has none of {', '.join(weights)}"))
    for name in (*(listed_shards(found) if found.name.endswith(INDEX) else ()), _CONFIG, *TOKENIZER_FILES):
        _fetched(place, name)
    return found.parent


def _fetched(place: Source, name: str) -> Path | None:
    """Return a file of a repository in the hub's cache; None if it has none, or none can be fetched now."""
    try:
        return Path(hf_hub_download(place.name, name, revision=place.revision))
    except EntryNotFoundError:  # it has none, or the hub is offline and none was fetched before
        return None
    except Exception as error:  # of the hub, or of the network
        raise place.failure("reward model", error) from error


def digest_of_loaded(source: str, config: PreTrainedConfig, *, tokenizer: bool = False) -> str:
    """Return the digest of the files that transformers loads of a model, and of no others beside them.

    The source is a directory, or a hub id whose files have been fetched; the configuration was loaded from there.
    """
    root = Path(source)
    if not root.is_dir():  # all files of one commit are in one directory of the hub's cache
        place = find_source(source, "The reward model")
        place = Source(place.name, config._commit_hash or place.revision, local=False)
        if (file := _fetched(place, _CONFIG)) is None:
            raise place.failure("reward model", FileNotFoundError(f"it has no {_CONFIG}"))
        root = file.parent
    return digest_files(root, loaded_files(root, tokenizer=tokenizer))


def loaded_files(root: Path, *, tokenizer: bool = False) -> list[str]:
    """Return the names of the files that transformers loads of a model in a directory, in a fixed order."""
    weights = find_weights(root, _LOADED_WEIGHTS)
    if weights is None:  # the configuration gives them other names
        weights = (*root.glob("*.safetensors"), *root.glob("*.bin"))
    patterns = (_CONFIG, *_ADAPTER, *(_TOKENIZERS if tokenizer else ()))
    names = {file.name for file in weights} | {file.name for pattern in patterns for file in root.glob(pattern)}
    return sorted(names)
