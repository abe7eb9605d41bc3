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

SHARD_BYTES = 2**30


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
        (directory / f"{stem}.safetensors.index.json").write_text(
            json.dumps(index_file, indent=1) + "\n", encoding="utf-8"
        )


class ShardReader:
    """Reads the files of `write_shards`, which are memory-mapped, so that unread tensors take no memory."""

    def __init__(self, directory: Path, stem: str) -> None:
        index = directory / f"{stem}.safetensors.index.json"
        if index.exists():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            files = [f"{stem}.safetensors"]
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
