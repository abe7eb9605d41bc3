"""Where a reward model's files are: in a directory, or on the Hugging Face hub."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from common.errors import UserError, first_line
from common.identity import digest, digest_files
from common.nn.sources import is_local
from scorer.formats import RewardFormat

SAFETENSORS = "model.safetensors"
"""The same weights in this form are preferred where both are there: nothing in it can be executed."""

_INDEX = ".index.json"
"""What a weights file's name is followed by in the name of the file that says how it is sharded."""

_SHARDED_BIN = "pytorch_model.bin"

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """The files of one reward model.

    Attributes:
        format: of its texts and its file.
        weights: the files of weights: one, or the shards of one.
        config: the configuration beside it; the real checkpoints have none.
        tokenizer: a directory, or a hub id.
    """

    format: RewardFormat
    weights: tuple[Path, ...]
    config: Path | None
    tokenizer: str

    @property
    def root(self) -> Path:
        """Where the files lie."""
        return self.weights[0].parent

    def digest(self) -> str:
        """The digest of everything that rewards depend on and that lies in files."""
        names = [*(file.name for file in self.weights), "config.json", *_TOKENIZER_FILES]
        present = [name for name in names if (self.root / name).is_file()]
        return digest(self.format.name, self.tokenizer_name(), digest_files(self.root, present))

    def tokenizer_name(self) -> str:
        """The tokenizer's hub id; one that lies beside the weights has no name that would hold elsewhere."""
        return "" if Path(self.tokenizer).is_dir() else self.tokenizer


def find_checkpoint(source: str, format: RewardFormat) -> Checkpoint:
    """Find a reward model's files.

    Args:
        source: a directory, or a hub id, with "@revision" after it where it is not the newest that is meant.
        format: says which file holds the weights, and where the tokenizer is if none lies beside them.

    Raises:
        UserError: there is no such directory or repository, or no such file in it.
    """
    if not is_local(source, "The reward model"):
        return Checkpoint(format, (_download(source, format.checkpoint_file),), None, format.tokenizer)
    directory = Path(source)
    config = directory / "config.json"
    beside = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return Checkpoint(
        format,
        _weights(directory, format),
        config if config.is_file() else None,
        str(directory) if beside else format.tokenizer,
    )


def _weights(directory: Path, format: RewardFormat) -> tuple[Path, ...]:
    names = (SAFETENSORS, SAFETENSORS + _INDEX, format.checkpoint_file, _SHARDED_BIN + _INDEX)
    found = next((directory / name for name in names if (directory / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{directory} holds no {format.checkpoint_file}, the file of a {format.name} reward model, and no "
            f"{SAFETENSORS}, in one piece or in shards; set `path` to the directory that holds it, or `kind` to the "
            f"model's format."
        )
    return _shards(found) if found.name.endswith(_INDEX) else (found,)


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of sharded weights ({first_line(error)}); restore it.") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{index} names {len(names)} files of weights, of which {len(missing)} are missing "
            f"({', '.join(missing[:3])}); bring them back."
        )
    return tuple(index.parent / name for name in names)


def _download(source: str, file: str) -> Path:
    repository, _, revision = source.partition("@")
    try:
        return Path(hf_hub_download(repository, file, revision=revision or None))
    except (OSError, ValueError) as error:
        raise UserError(f"The reward model {source} could not be fetched from the hub: {first_line(error)}") from error
