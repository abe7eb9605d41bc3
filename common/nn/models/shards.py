"""Safetensors files of bounded size: written from a stream of tensors, read one tensor at a time.

Neither writing nor reading ever holds a whole model in memory. Tensors that fit into one file are in
`STEM.safetensors`; otherwise in `STEM-00001-of-00003.safetensors` and so on, with `STEM.safetensors.index.json` as
their index: the layout that transformers and vLLM read.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from brain_align.common.errors import UserError, first_line, refuse_unreadable

SHARD_BYTES = 2**30

INDEX = ".index.json"
"""Suffix of a weights file's name in the name of its index of shards."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of transformers' own files of weights, in the order in which it looks for them."""


def listed_shards(index: Path) -> list[str]:
    """Return the names of the files that an index of shards lists, which need not be there yet.

    Raises:
        UserError: it is not such an index, or names files elsewhere.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        refuse_unreadable(index, error)
        raise UserError(f"{index} is not an index of sharded weights ({first_line(error)}); restore it.") from None
    elsewhere = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if elsewhere or not names:
        named = f"the file {elsewhere[0]!r}" if elsewhere else "no files"
        raise UserError(f"{index} names {named}, where an index of sharded weights names files beside it; restore it.")
    return names


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index of shards lists; all lie beside the index.

    Raises:
        UserError: it is not such an index, or names files elsewhere, or files that are missing.
    """
    names = listed_shards(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index} names {len(names)} files of weights, of which {len(missing)} are missing "
            f"({', '.join(missing[:3])}); restore them."
        )
    return names


def check_shards(source: str) -> None:
    """Check the index of the weights that transformers would load from a directory, if there is one.

    Raises:
        UserError: as for `shard_names`.
    """
    for name in WEIGHTS:
        if (Path(source) / name).is_file():
            return
        if (index := Path(source) / f"{name}{INDEX}").is_file():
            shard_names(index)
            return


def write_shards(
    tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, stem: str, max_bytes: int = SHARD_BYTES
) -> None:
    """Write named tensors, in their order, into an existing directory.

    Args:
        tensors: on any device; at most `max_bytes` of them are held at once, on the CPU.
        directory: for the files.
        stem: prefix of the files' names.
        max_bytes: of a file's tensors; a larger tensor gets a file of its own.
    """
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    held_bytes = total = 0

    def flush() -> None:
        shards.append(list(held))
        save_file(held, directory / f"{stem}-{len(shards):05d}", metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_bytes:
            flush()
            held_bytes = 0
        held[name] = tensor.detach().cpu().contiguous()
        held_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    _name_files(directory, stem, shards, total)


def _name_files(directory: Path, stem: str, shards: list[list[str]], total: int) -> None:
    count = len(shards)
    final = [f"{stem}-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
    if count == 1:
        final = [f"{stem}.safetensors"]
    for index, file in enumerate(final, start=1):
        (directory / f"{stem}-{index:05d}").rename(directory / file)
    if count > 1:
        weight_map = {name: file for names, file in zip(shards, final, strict=True) for name in names}
        index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / f"{stem}.safetensors{INDEX}").write_text(json.dumps(index_file, indent=1) + "\n", encoding="utf-8")


class ShardReader:
    """Reads the files of `write_shards`, which are memory-mapped, so that unread tensors take no memory."""

    def __init__(self, directory: Path, stem: str) -> None:
        index = directory / f"{stem}.safetensors{INDEX}"
        files = shard_names(index) if index.exists() else [f"{stem}.safetensors"]
        opened = [safe_open(directory / file, framework="pt") for file in files]
        self._file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, onto the CPU."""
        return self._file_of[name].get_tensor(name)
