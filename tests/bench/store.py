"""The sample store beside bare pyarrow.ipc, and with a million groups: `make bench-store`.

Appending and scanning use leases of 16 groups of 32 x 48 tokens. Both sides write one file a lease with the same
durability: tmp + fsync + rename + directory fsync. The store hashes every byte it writes, and every part once an
opening before it gives out a row; the first scan of an opening, which pays for that, stands beside the later ones.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.durable import fsync_path
from brain_align.common.store.sample_store import SampleStore
from tests.bench.harness import ROOT, Timing, comparison, side_by_side, table, write
from tests.bench.store_cases import million, rows

LEASES, GROUPS_A_LEASE = 96, 16
N, TOKENS = 32, 48
REPEATS = 5


def leases() -> list[pa.RecordBatch]:
    return [
        rows.groups(rows.ids(first, GROUPS_A_LEASE), N, TOKENS, round_=first)
        for first in range(0, LEASES * GROUPS_A_LEASE, GROUPS_A_LEASE)
    ]


def write_bare(folder: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """What somebody does who wants durable Arrow files, and no more."""
    folder.mkdir(parents=True)
    for number, batch in enumerate(batches):
        unfinished = folder / f".{number}"
        with open(unfinished, "wb") as sink:
            with pa.ipc.new_file(sink, batch.schema) as file:
                file.write_batch(batch)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(unfinished, folder / f"{number:08d}.arrow")
        fsync_path(folder)


def read_bare(folder: Path) -> Iterator[pa.RecordBatch]:
    for path in sorted(folder.iterdir()):
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file.read_buffer())
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


def consume(batches: Iterable[pa.RecordBatch]) -> float:
    """Touch every token, log-probability and text, as whoever trains on them does."""
    total = 0.0
    for batch in batches:
        outputs = batch["outputs"].flatten()
        for name in ("token_ids", "token_logprobs"):
            total += pc.sum(pc.struct_field(outputs, name).flatten()).as_py()
        total += pc.sum(pc.utf8_length(pc.struct_field(outputs, "text"))).as_py()
    return total


def append_cases(folder: Path, batches: list[pa.RecordBatch]) -> dict[str, Timing]:
    def into_store() -> None:
        store = SampleStore(_fresh(folder / "store"), "bench")
        for batch in batches:
            store.append_groups(batch)

    return side_by_side(
        {"pyarrow.ipc": lambda: write_bare(_fresh(folder / "bare"), batches), "store": into_store}, repeats=REPEATS
    )


def scan_cases(folder: Path) -> dict[str, Timing]:
    opened = SampleStore(folder / "store", None, read_only=True)
    assert consume(opened.batches()) == consume(read_bare(folder / "bare"))
    return side_by_side(
        {
            "pyarrow.ipc": lambda: consume(read_bare(folder / "bare")),
            "store": lambda: consume(opened.batches()),
            "store, opening and first scan": lambda: consume(
                SampleStore(folder / "store", None, read_only=True).batches()
            ),
        },
        repeats=REPEATS,
    )


def large_store(folder: Path, groups: int) -> dict[str, float]:
    """Median figures over processes that each open the store once; its files are in the page cache."""
    root = folder / "million"
    million.build(root, groups)
    runs: dict[str, list[float]] = {}
    for what in ["million", "resume"] * 3:
        command = [sys.executable, "-m", f"tests.bench.store_cases.{what}", str(root)]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True)
        for name, value in json.loads(answer.stdout.splitlines()[-1]).items():
            runs.setdefault(name, []).append(value)
    files = {kind: len(list((root / kind).glob("*"))) for kind in ("groups", "scores", "steps", "index")}
    size = sum(path.stat().st_size for path in root.rglob("*.arrow"))
    return {
        **{name: statistics.median(values) for name, values in runs.items()},
        **{f"{kind}_files": count for kind, count in files.items()},
        "disk_mb": size / 2**20,
    }


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the sample store.")
    parser.add_argument("--groups", type=int, default=1_000_000, help="size of the large store")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="where to write: the disk that is measured")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=options.folder) as name:
        folder = Path(name)
        batches = leases()
        append = append_cases(folder, batches)
        scan = scan_cases(folder)
        large = large_store(folder, options.groups)
    report(append, scan, large, sum(batch.nbytes for batch in batches) / 2**20)


def report(append: dict[str, Timing], scan: dict[str, Timing], large: dict[str, Any], megabytes: float) -> None:
    for title, timings in (("append", append), ("scan", scan)):
        lines = [{**row, "MiB/s": megabytes / row["median s"]} for row in comparison(timings)]
        print(f"\n{title}: {LEASES} leases of {GROUPS_A_LEASE} groups, {N} x {TOKENS} tokens, {megabytes:.0f} MiB\n")
        print(table(lines))
    print(f"\na store of many groups, leases of {million.LEASE}\n")
    print(table([{"figure": name, "value": value} for name, value in large.items()]))
    path = write(
        "store",
        {
            "append_vs_pyarrow": append["pyarrow.ipc"].median / append["store"].median,
            "scan_vs_pyarrow": scan["pyarrow.ipc"].median / scan["store"].median,
            "first_scan_vs_pyarrow": scan["pyarrow.ipc"].median / scan["store, opening and first scan"].median,
            "open_million_groups_seconds": large["open_seconds"],
            "open_million_groups_mb": large["open_mb"],
            "unscored_filter_seconds": large["unscored_seconds"],
            "resume_million_groups_seconds": large["resume_seconds"],
            "append": comparison(append),
            "scan": comparison(scan),
            "million": large,
        },
    )
    print(f"\n{path}")


if __name__ == "__main__":
    main()
