"""Prompts from data sets of Hugging Face's `datasets`; the hub itself is stood in for, as tests have no network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from brain_align.common.config.inputs import DataSection
from brain_align.common.data.prompt_set import PromptSet
from brain_align.common.errors import UserError
from brain_align.deploy.run.prompt_data import read_prompts

ROWS = [{"prompt": f"prompt {number}", "label": f"gold {number}", "other": number} for number in range(20)]


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [list(range(len(text.split()))) for text in texts]


def read(train: Any, **settings: Any) -> PromptSet:
    data = DataSection.model_validate({"train": train, "validation": "v", "test": "t"} | settings)
    return read_prompts(data, data.train, encode)


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).filter(lambda row: row["other"] % 2 == 0).save_to_disk(str(tmp_path / "whole"))
    found = read(str(tmp_path / "whole"))
    assert [prompt.text for prompt in found] == [f"prompt {number}" for number in range(0, 20, 2)]
    assert found[1].gold_text == "gold 2"


def test_of_a_saved_data_set_with_splits_one_is_named(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_list(ROWS[:15]), "test": Dataset.from_list(ROWS[15:])}
    DatasetDict(parts).save_to_disk(str(tmp_path / "all"))
    assert len(read({"path": str(tmp_path / "all"), "split": "test"})) == 5
    assert len(read(str(tmp_path / "all" / "train"))) == 15
    for split in (None, "valid"):
        with pytest.raises(UserError, match="has the splits train, test; set `split` to one of them"):
            read({"path": str(tmp_path / "all"), "split": split})
    with pytest.raises(UserError, match="has no splits; remove `split`"):
        read({"path": str(tmp_path / "all" / "train"), "split": "train"})
    with pytest.raises(UserError, match="has no config"):
        read({"path": str(tmp_path / "all"), "config": "plain"})


def test_conversations_and_wrong_columns_of_a_data_set(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": row["prompt"]}] for row in ROWS]
    Dataset.from_dict({"messages": turns}).save_to_disk(str(tmp_path / "talks"))
    found = read(str(tmp_path / "talks"), prompt_column="messages", gold_column=None, chat_template="model")
    assert found[3].text == "prompt 3"
    with pytest.raises(UserError, match=r"talks, row 1, has no text in column 'prompt' \(its columns: messages\)"):
        read(str(tmp_path / "talks"))


def test_the_hub_is_asked_for_config_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str | None, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        return Dataset.from_list(ROWS).select(range(3, 9)) if split else DatasetDict({"train": None, "valid": None})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = read({"path": "owner/name@v1", "config": "plain", "split": "train[:95%]"})
    assert [prompt.text for prompt in found] == [f"prompt {number}" for number in range(3, 9)]
    with pytest.raises(UserError, match=r"owner/name: the data set has the splits train, valid; set `split`"):
        read("owner/name")
    assert asked == [("owner/name", "plain", "train[:95%]", "v1"), ("owner/name", None, None, None)]


def test_a_data_set_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub\nand pages more")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("brain_align.common.nn.models.sources.hub_failure", lambda: None)
    with pytest.raises(UserError, match=r"owner/name \(train\) could not be fetched from the hub: Couldn't .* hub$"):
        read({"path": "owner/name", "split": "train"})


def test_what_is_neither_file_nor_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a data set that `save_to_disk` wrote"):
        read(str(tmp_path))
    with pytest.raises(UserError, match=r"There is no file some/prompts\.jsonl"):
        read("some/prompts.jsonl")
    with pytest.raises(UserError, match="does not exist"):
        read(str(tmp_path / "absent"))
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(ROWS[0]))
    assert len(read(str(file))) == 1
    with pytest.raises(UserError, match="a file has neither config nor split"):
        read({"path": str(file), "split": "train"})
