import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brain_align.common.store.flat_rows import FlatRows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.cli import main
from brain_align.deploy.commands.store.parts.pairs import PAIRINGS
from tests.unit.stored_runs import REWARDS, N, stored_run


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return stored_run(tmp_path)


def export(directory: Path, form: str, target: Path, *options: str) -> int:
    return main(["store", "export", str(directory), "--format", form, "--output", str(target), *options])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_hold_everything_once_for_each_output(run_directory: Path, tmp_path: Path) -> None:
    assert export(run_directory, "jsonl", tmp_path / "rows.jsonl") == 0
    rows = lines(tmp_path / "rows.jsonl")
    assert [(row["group_id"], row["output"]) for row in rows] == [
        (name, number) for name in (*REWARDS, "bb04") for number in range(N)
    ]
    second = rows[N + 1]  # of ab02
    assert second["text"] == "ab02 says 1" and second["token_ids"] == [1, 2]
    assert second["proposal_logprob"] == pytest.approx(-1.5)
    assert (second["score_reward"], second["error_reward"], second["gold_score_reward"]) == (
        None,
        "output 1 is odd",
        1.5,
    )
    assert second["score_prior"] == pytest.approx(-1.5)
    assert second["trained_steps"] == [1, 2]
    assert rows[-1]["score_reward"] is None and rows[-1]["trained_steps"] == []


def test_parquet_and_json_lines_hold_the_same(run_directory: Path, tmp_path: Path) -> None:
    for form in ("parquet", "jsonl"):
        assert export(run_directory, form, tmp_path / f"rows.{form}") == 0
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == lines(tmp_path / "rows.jsonl")


def test_a_sliced_batch_gives_the_same_rows(run_directory: Path) -> None:
    store = SampleStore(run_directory / "store", None, read_only=True)
    whole = next(store.batches())
    flat = FlatRows(store, ["reward"])
    assert flat.rows(whole.slice(1)).to_pylist() == flat.rows(whole).to_pylist()[N:]


def test_filters_choose_groups_and_columns(run_directory: Path, tmp_path: Path) -> None:
    export(run_directory, "jsonl", tmp_path / "a.jsonl", "--round", "1", "--scorer", "reward")
    rows = lines(tmp_path / "a.jsonl")
    assert {row["group_id"] for row in rows} == {"ba03"}
    assert "score_reward" in rows[0] and "score_prior" not in rows[0]
    export(run_directory, "jsonl", tmp_path / "b.jsonl", "--version", "0")
    assert {row["group_id"] for row in lines(tmp_path / "b.jsonl")} == {"aa01", "ab02"}


@pytest.mark.parametrize(
    ("pairing", "rewards", "pairs"),
    [
        ("consecutive", [1.0, 2.0, 3.0, 4.0, 5.0], [(0, 1), (2, 3)]),
        ("best-worst", [1.0, None, -2.0, 3.0, 3.0], [(2, 3)]),
        ("best-worst", [None, 1.0], []),
        ("all", [1.0, 2.0, 3.0], [(0, 1), (0, 2), (1, 2)]),
    ],
)
def test_which_outputs_are_paired(pairing: str, rewards: list[float | None], pairs: list[tuple[int, int]]) -> None:
    assert list(PAIRINGS[pairing](rewards)) == pairs


def test_pairs_choose_the_higher_reward_and_count_what_they_leave_out(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run_directory, "pairs", tmp_path / "pairs.jsonl") == 0
    found = [(pair["chosen"], pair["rejected"], pair["margin"]) for pair in lines(tmp_path / "pairs.jsonl")]
    assert found == [
        ("aa01 says 1", "aa01 says 0", 1.0),
        ("ab02 says 2", "ab02 says 3", 2.0),
        ("ba03 says 0", "ba03 says 1", 0.25),
        ("ba03 says 3", "ba03 says 2", 0.25),
    ]
    assert "3 groups, 4 pairs, 1 tied left out, 1 without a reward left out" in capsys.readouterr().out
    first = lines(tmp_path / "pairs.jsonl")[0]
    assert first["prompt"] == "a prompt" and (first["score_chosen"], first["score_rejected"]) == (1.0, 0.0)
    assert (first["ref_chosen_logps"], first["ref_rejected_logps"]) == (-1.5, -0.5)


def test_nothing_is_replaced_unless_told_so(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "rows.jsonl"
    target.write_text("mine")
    assert export(run_directory, "jsonl", target) == 2
    assert "exists already; name another --output, or pass --force to replace it" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert export(run_directory, "jsonl", target, "--force") == 0
    assert len(lines(target)) == 4 * N
    (tmp_path / "thesis").mkdir()
    assert export(run_directory, "jsonl", tmp_path / "thesis", "--force") == 2


def test_an_export_that_fails_leaves_nothing(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(*_arguments: object) -> pa.RecordBatch:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FlatRows, "rows", full_disk)
    target = tmp_path / "deep/rows.parquet"
    assert export(run_directory, "parquet", target) == 2
    assert "No space left on device; nothing was left behind" in capsys.readouterr().err
    assert not target.parent.exists()


@pytest.mark.parametrize(
    ("form", "name", "options", "sentence"),
    [
        ("jsonl", "a.jsonl", ["--round", "7"], "has no groups of round 7"),
        ("pairs", "a.csv", [], "pairs are written as .jsonl or .parquet"),
        ("pairs", "a.jsonl", ["--scorer", "truth"], "has no values of 'truth'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    run_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    name: str,
    options: list[str],
    sentence: str,
) -> None:
    assert export(run_directory, form, tmp_path / name, *options) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1
    assert not (tmp_path / name).exists()


def test_a_dataset_loads_from_disk(run_directory: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for _ in range(2):
        assert export(run_directory, "hf", tmp_path / "rows", "--force") == 0
    loaded = datasets.load_from_disk(str(tmp_path / "rows"))
    assert loaded.num_rows == 4 * N
    assert loaded[0]["text"] == "aa01 says 0" and loaded[0]["trained_steps"] == [1]


def test_a_missing_library_is_named(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert export(run_directory, "hf", tmp_path / "rows") == 2
    assert "`datasets`, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()
