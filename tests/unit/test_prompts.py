import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.prompts import PromptFile, PromptOrder, load_prompts

ROWS = [
    {"prompt": "one two", "label": "gold"},
    {"prompt": "", "label": "x"},
    {"prompt": "a b c d", "label": "y"},
]


def encode(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def write(path: Path, rows: list[dict[str, str]]) -> PromptFile:
    lines = "\n".join(json.dumps(row) for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(lines)
    return PromptFile(path, "prompt", "label")


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
def test_prompts_are_read_and_what_does_not_fit_is_counted(tmp_path: Path, name: str) -> None:
    found = load_prompts(write(tmp_path / name, ROWS), encode, max_tokens=3)
    assert [(prompt.text, prompt.token_ids, prompt.gold_text) for prompt in found.prompts] == [
        ("one two", (3, 3), "gold")
    ]
    assert (found.too_long, found.empty, found.skipped) == (1, 1, 2)


def test_a_file_without_a_usable_prompt_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", ROWS)
    with pytest.raises(UserError, match="1 are empty and 2 are longer than 1 tokens"):
        load_prompts(file, encode, max_tokens=1)
    with pytest.raises(UserError, match="no usable prompt"):
        load_prompts(write(tmp_path / "e.jsonl", []), encode, max_tokens=1)


def test_missing_files_columns_and_torn_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        load_prompts(PromptFile(tmp_path / "none.jsonl", "prompt", None), encode, 9)
    with pytest.raises(UserError, match=r"row 1, has no text in column 'text' \(its columns: prompt, label\)"):
        load_prompts(PromptFile(write(tmp_path / "p.jsonl", ROWS).path, "text", None), encode, 9)
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a"}\n{"prom')
    with pytest.raises(UserError, match=r"torn\.jsonl, line 2, is not JSON"):
        load_prompts(PromptFile(tmp_path / "torn.jsonl", "prompt", None), encode, 9)
    (tmp_path / "p.csv").write_text("prompt\n")
    with pytest.raises(UserError, match=r"neither \.jsonl"):
        load_prompts(PromptFile(tmp_path / "p.csv", "prompt", None), encode, 9)


def test_more_prompts_a_round_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="prompts_per_round=5 is more than the 4"):
        PromptOrder(4, 5, 0)
