import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from brain_align.common.data import row_files
from brain_align.common.data.row_files import read_rows
from brain_align.common.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"prompt": f"ß {number}", "turns": [{"role": "user", "content": "日本"}], "more": number} for number in range(2500)
]
WANTED = ("turns", "prompt")


def write_arrow(path: Path, make: Any) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


WRITERS: dict[str, Any] = {
    "a.jsonl": lambda path: path.write_text("\n\n".join(map(json.dumps, ROWS))),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=600),
    "file.arrow": lambda path: write_arrow(path, pa.ipc.new_file),
    "stream.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
    "a.feather": lambda path: pa.feather.write_feather(pa.Table.from_pylist(ROWS), str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    found = [{column: row[column] for column in WANTED} for row in read_rows(tmp_path / name, WANTED)]
    assert found == [{column: row[column] for column in WANTED} for row in ROWS]


@pytest.mark.parametrize("name", WRITERS)
def test_where_a_column_is_missing_the_others_are_there_to_be_named(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert set(next(read_rows(tmp_path / name, ("prompt", "label")))) == set(ROWS[0])


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name}(, line \d+, is not JSON| is damaged)"):
        list(read_rows(tmp_path / name, WANTED))


def test_what_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        list(read_rows(tmp_path / "none.jsonl", WANTED))
    (tmp_path / "p.csv").write_text("prompt\n")
    with pytest.raises(UserError, match=r"p\.csv has none of the suffixes \.jsonl, "):
        list(read_rows(tmp_path / "p.csv", WANTED))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a"}\n[1]')
    with pytest.raises(UserError, match=r"torn\.jsonl, line 2, is not a JSON object"):
        list(read_rows(tmp_path / "torn.jsonl", WANTED))


@pytest.mark.parametrize(
    ("value", "what"), [("9" * 5000, r"Exceeds the limit \(4300 digits\)"), ("[" * 200_000, "maximum recursion depth")]
)
def test_json_that_python_cannot_hold_is_named_with_its_line(tmp_path: Path, value: str, what: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "p"}}\n{{"prompt": {value}}}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2, cannot be read \({what}.*\); fix or remove the line\.$"):
        list(read_rows(tmp_path / "a.jsonl", WANTED))


@pytest.mark.parametrize("value", [-8, 2**31 - 1])
@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_with_a_wrong_offset_is_refused(tmp_path: Path, value: int, stream: bool) -> None:
    batch = pa.RecordBatch.from_pydict({"prompt": ["one", "two", "three"]})
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, batch.schema) as file:
        file.write_batch(batch)
    content = bytearray(sink.getvalue())
    offsets = batch["prompt"].buffers()[1].to_pybytes()[:16]
    place = content.index(offsets) + 8
    content[place : place + 4] = value.to_bytes(4, "little", signed=True)
    path = tmp_path / "rows.arrow"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        list(read_rows(path, ("prompt",)))


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "p", "turns": []}\r\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert list(read_rows(tmp_path / name, WANTED)) == [{"prompt": "p", "turns": []}]


@pytest.mark.parametrize("value", ['"so happy \\ud83d"', '[{"content": "\\uDE00"}]', '{"a": ["\\udc00"]}'])
def test_half_a_character_is_named_with_its_line(tmp_path: Path, value: str) -> None:
    whole = '{"prompt": "\\ud83d\\ude00 and \\\\ud83d", "turns": null, "other": "\\ud83d"}'
    (tmp_path / "a.jsonl").write_text(whole)
    assert next(read_rows(tmp_path / "a.jsonl", WANTED))["prompt"] == "😀 and \\ud83d"
    (tmp_path / "a.jsonl").write_text(f'{whole}\n{{"prompt": "p", "turns": {value}}}')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2, has '\\ud\w+', which is half of a character"):
        list(read_rows(tmp_path / "a.jsonl", WANTED))


def test_a_corrupt_archive_is_named(tmp_path: Path) -> None:
    WRITERS["a.jsonl.gz"](tmp_path / "a.jsonl.gz")
    whole = bytearray((tmp_path / "a.jsonl.gz").read_bytes())
    whole[len(whole) // 2 :] = bytes(byte ^ 0x5A for byte in whole[len(whole) // 2 :])
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz(, line \d+, is not JSON| is damaged)"):
        list(read_rows(tmp_path / "a.jsonl.gz", WANTED))


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.table([["a"], ["b"]], names=["prompt", "prompt"])
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        make = pa.ipc.new_file if name == "file.arrow" else pa.ipc.new_stream
        with pa.OSFile(str(tmp_path / name), "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match="column 'prompt' is there more than once"):
        list(read_rows(tmp_path / name, ("prompt",)))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet is damaged or of another kind"):
        list(read_rows(tmp_path / "a.parquet", ("prompt",)))


def test_a_line_without_end_is_refused_and_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_LONGEST_LINE", 1000)
    first, second = ('{"prompt": "p", "turns": "' + "x" * length + '"}' for length in (900, 1000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(f"{first}\n{second}".encode()))
    rows = read_rows(tmp_path / "a.jsonl.gz", WANTED)
    assert next(rows)["prompt"] == "p"
    with pytest.raises(UserError, match="line 2, is longer than 1,000 characters"):
        list(rows)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    tracemalloc.start()
    with pytest.raises(UserError, match="line 1, is longer"):
        list(read_rows(tmp_path / "bomb.jsonl.gz", WANTED))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
