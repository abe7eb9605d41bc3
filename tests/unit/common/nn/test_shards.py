import json

import pytest
import torch
from safetensors.torch import load_file

from brain_align.common.nn.models.shards import ShardReader, write_shards

TENSORS = {name: torch.full((10,), index, dtype=torch.float32) for index, name in enumerate("abcde")}  # 40 bytes each


@pytest.mark.parametrize(("max_bytes", "files"), [(1000, 1), (200, 1), (199, 2), (80, 3), (40, 5), (1, 5)])
def test_tensors_come_back_from_as_many_files_as_their_size_asks_for(tmp_path, max_bytes, files):
    write_shards(TENSORS.items(), tmp_path, "model", max_bytes)
    names = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    if files == 1:
        assert names == ["model.safetensors"]
    else:
        assert names == [f"model-{index:05d}-of-{files:05d}.safetensors" for index in range(1, files + 1)]
        index_file = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index_file["metadata"]["total_size"] == 200
        assert {name for file in names for name in load_file(tmp_path / file)} == index_file["weight_map"].keys()
    assert len(list(tmp_path.iterdir())) == files + (files > 1)
    reader = ShardReader(tmp_path, "model")
    assert sorted(reader.names()) == list(TENSORS)
    assert all(torch.equal(reader.read(name), value) for name, value in TENSORS.items())
    assert "a" in reader
    assert "f" not in reader


def test_no_more_than_a_file_is_held_at_once(tmp_path):
    alive = []

    def stream():
        for index in range(6):
            tensor = torch.zeros(10)
            alive.append(tensor.untyped_storage()._weak_ref())
            yield str(index), tensor
            del tensor
            held = sum(not torch.UntypedStorage._expired(reference) for reference in alive)
            assert held <= 3  # two in the file, and the one that was just made

    write_shards(stream(), tmp_path, "model", max_bytes=80)
    assert len(alive) == 6


def test_no_tensors_are_an_empty_file(tmp_path):
    write_shards([], tmp_path, "parameters")
    assert ShardReader(tmp_path, "parameters").names() == []
