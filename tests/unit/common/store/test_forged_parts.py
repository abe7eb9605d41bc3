"""Parts, index files and lists that carry a right checksum and were still not written by a store."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from brain_align.common.errors import DamagedPartError
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.format.names import checksum, commit_name, compacted_file, plain_file
from brain_align.common.store.format.part_files import decode_part, encode_part, encode_table
from brain_align.common.store.maintenance.repair import repair
from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from tests.unit.factories import group, groups, scores, step


def put(root: Path, kind: str, content: pa.Buffer | bytes) -> str:
    """Write a part as a store would, whatever it holds."""
    buffer = pa.py_buffer(content)
    file = plain_file(commit_name(7, "abcdef01", checksum(buffer)))
    (root / kind / file).write_bytes(buffer)
    return file


def store(root: Path) -> SampleStore:
    made = SampleStore(root, "run")
    made.append_groups(groups("a"))
    made.append_scores(scores("reward", {"a": [1.0, 2.0]}))
    with made.training():
        made.append_step(step(1, ["a"]))
    return made


def with_offset(batch: pa.RecordBatch, column: str, value: int) -> bytes:
    """A part whose column has a wrong second offset."""
    content = encode_part("groups", batch, "host", "run")
    array = pa.ipc.open_file(content).get_batch(0)[column]
    place = array.buffers()[1].address - content.address + 4
    forged = bytearray(content)
    forged[place : place + 4] = value.to_bytes(4, "little", signed=True)
    return bytes(forged)


def nested_null() -> pa.Buffer:
    rows = [group("b", prompt_token_ids=[1, None])]
    return encode_part("groups", batch_from_rows(GROUPS, rows), "host", "run")


def null_key() -> pa.Buffer:
    batch = groups("b")
    ids = pa.array([None], pa.string())
    forged = pa.RecordBatch.from_arrays([ids, *batch.columns[1:]], schema=GROUPS)
    return encode_part("groups", forged, "host", "run")


def missing_logprob() -> pa.Buffer:
    outputs = [{"token_ids": [1, 2], "token_logprobs": [-1.0], "text": "x", "finish_reason": "stop"}]
    return encode_part("groups", groups("b", outputs=outputs), "host", "run")


def not_utf8() -> bytes:
    content = bytearray(encode_part("groups", groups("b", prompt_text="QQQQQQQQ"), "host", "run"))
    place = content.index(b"QQQQQQQQ")
    content[place] = 0xFF
    return bytes(content)


def metadata(**changes: bytes) -> pa.Buffer:
    facts = {"schema_version": b"3", "kind": b"groups", "writer": b"w", "run_id": b"run", **changes}
    return encode_table(groups("b"), {f"brain.{name}".encode(): value for name, value in facts.items()})  # type: ignore[misc]


FORGED = {
    "offset beyond the text": with_offset(groups("b"), "prompt_text", 2**31 - 1),
    "negative offset": with_offset(groups("b"), "group_id", -4),
    "offset of a list": with_offset(groups("b"), "outputs", 100_000),
    "null key": null_key(),
    "null token": nested_null(),
    "missing log-probability": missing_logprob(),
    "not UTF-8": not_utf8(),
    "odd version": metadata(schema_version=b"three"),
    "odd bytes": metadata(schema_version=b"\xff", run_id=b"\xff\xfe"),
    "odd run": metadata(run_id=b"\xff\xfe"),
    "no file": b"ARROW1\0\0" + b"\xff" * 64 + b"ARROW1",
    "empty": b"",
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
def test_a_forged_part_is_set_aside_and_costs_nothing_else(tmp_path: Path, content: pa.Buffer | bytes) -> None:
    store(tmp_path)
    file = put(tmp_path, "groups", content)
    assert any(file in problem for problem in verify(tmp_path).problems)
    reader = SampleStore(tmp_path, None, read_only=True)
    assert list(reader.group_ids) == ["a"] and any(file in reason for reason in reader.damaged)
    writer = SampleStore(tmp_path, "run")
    assert list(writer.group_ids) == ["a"] and not (tmp_path / "groups" / file).exists()
    assert (tmp_path / "damaged" / f"groups-{file}").exists()
    assert verify(tmp_path).problems == []


@pytest.mark.parametrize(
    "commits",
    [
        [["00000007-abcdef01-xxh128-" + "0" * 32, 3], ["00000008-abcdef01-xxh128-" + "0" * 32, -2]],
        [["../x", 1]],
        [[1, 2, 3]],
        "x",
        None,
    ],
)
def test_a_compacted_part_whose_list_of_commits_is_forged_is_set_aside(tmp_path: Path, commits: object) -> None:
    store(tmp_path)
    facts = {"schema_version": "3", "kind": "groups", "run_id": "run", "commits": json.dumps(commits)}
    content = encode_table(groups("b"), {f"brain.{name}".encode(): value for name, value in facts.items()})
    file = compacted_file(7, "abcdef01", checksum(content))
    (tmp_path / "groups" / file).write_bytes(content)
    assert list(SampleStore(tmp_path, "run").group_ids) == ["a"]
    assert (tmp_path / "damaged" / f"groups-{file}").exists()


def test_deep_json_in_a_part_is_damage(tmp_path: Path) -> None:
    facts = {"schema_version": "3", "kind": "groups", "run_id": "run", "commits": "[" * 100_000}
    content = encode_table(groups("b"), {f"brain.{name}".encode(): value for name, value in facts.items()})
    with pytest.raises(DamagedPartError):
        decode_part(f"x/{compacted_file(7, 'abcdef01', checksum(content))}", content, "groups")


@pytest.mark.parametrize("column", ["commit", "row"])
@pytest.mark.parametrize("value", [-1, 1000])
def test_an_index_whose_rows_have_no_place_is_not_used(tmp_path: Path, column: str, value: int) -> None:
    store(tmp_path)
    opened = OpenedStore(tmp_path, None, read_only=False)
    opened.kinds["groups"].write_index(at_least=1)
    (file,) = (tmp_path / "index").glob("groups-*")
    batch = pa.ipc.open_file(file.read_bytes()).get_batch(0)
    place = batch.schema.get_field_index(column)
    forged = batch.set_column(place, batch.schema.field(place), pa.array([value], batch.schema.field(place).type))
    content = encode_table(forged, batch.schema.metadata)
    file.unlink()
    (tmp_path / "index" / f"groups-{checksum(content)}.arrow").write_bytes(content)
    reader = SampleStore(tmp_path, None, read_only=True)
    if (column, value) == ("row", 1000):  # only the part shows that
        with pytest.raises(DamagedPartError, match="repair"):
            reader.groups(["a"])
    else:
        assert reader.groups(["a"]).num_rows == 1
    repair(tmp_path)
    assert SampleStore(tmp_path, None, read_only=True).groups(["a"]).num_rows == 1


def test_a_list_of_removed_groups_that_lists_something_else_is_named(tmp_path: Path) -> None:
    store(tmp_path)
    content = encode_table(pa.RecordBatch.from_pydict({"other": [1]}), {})
    (tmp_path / "removed").mkdir(exist_ok=True)
    (tmp_path / "removed" / f"groups-{checksum(content)}.arrow").write_bytes(content)
    assert any("does not list groups" in problem for problem in verify(tmp_path).problems)
