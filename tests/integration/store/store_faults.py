"""Writers of a store that die, and file systems that fail, at a chosen moment; rows that tell true from false."""

import errno
import functools
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import pyarrow as pa

from brain_align.common import durable
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store import opened_store
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table import catalogue, compaction
from tests.unit.factories import group, output, scores, step

LEASE = 3


def rows_of(names: list[str]) -> list[dict[str, Any]]:
    """GROUPS rows whose content follows from their ids."""
    return [group(name, outputs=_outputs(name), prompt_text=f"prompt of {name}") for name in names]


def _outputs(name: str) -> list[dict[str, Any]]:
    tokens = list(hashlib.sha256(name.encode()).digest())
    return [output(tokens[:16], [-token / 256 for token in tokens[:16]], name), output(tokens[16:20], [-0.5] * 4)]


def values_of(name: str) -> list[float | None]:
    """SCORES values that follow from a group's id."""
    return [float(hashlib.sha256(name.encode()).digest()[0]), None]


def is_true(row: dict[str, Any]) -> bool:
    """Whether a GROUPS row is what was written for its id."""
    return row == _expected(row["group_id"])


@functools.cache
def _expected(name: str) -> dict[str, Any]:
    return batch_from_rows(GROUPS, rows_of([name])).to_pylist()[0]


def append_lease(store: SampleStore, name: str, number: int | None, acknowledge: Callable[[str], None]) -> None:
    """Commit a lease of groups, their scores, and a step if it has a number; say so after each."""
    names = [f"{name}-{index}" for index in range(LEASE)]
    store.append_groups(batch_from_rows(GROUPS, rows_of(names)))
    acknowledge(f"group {' '.join(names)}")
    store.append_scores(scores("reward", {name: values_of(name) for name in names}))
    acknowledge(f"score {' '.join(names)}")
    if number is not None:
        store.append_step(step(number, names))
        acknowledge(f"step {number}")


@contextmanager
def busy_housekeeping(grace: float = 0.0) -> Iterator[None]:
    """Index files, compaction and removal every few commits instead of every few hundred, and after a short grace."""
    small = compaction.Sizes(largest=1 << 20, target=8 << 20, fewest=5)
    at_once = mock.patch.object(
        opened_store, "remove_superseded", lambda backend, kind: compaction.remove_superseded(backend, kind, grace)
    )
    write_index = catalogue.Catalogue.write_index

    def often(self: catalogue.Catalogue, *, at_least: int = 3) -> None:
        write_index(self, at_least=at_least)

    with (
        mock.patch.object(opened_store, "SMALL", small),
        at_once,
        mock.patch.object(catalogue.Catalogue, "write_index", often),
    ):
        yield


class Faults:
    """Does something at the n-th operation on a file: before it, after it, or with half of a write done."""

    def __init__(self, moment: int, when: str, strike: Callable[[], None]) -> None:
        self.count = 0
        self._moment = moment
        self._when = when
        self._strike = strike

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count and strike inside."""
        created = durable._created
        with (
            mock.patch.object(durable, "_created", lambda path: _TornFile(created(path), self)),
            mock.patch("os.fsync", self.counted(os.fsync)),
            mock.patch("os.replace", self.counted(os.replace)),
            mock.patch.object(Path, "unlink", self.counted(Path.unlink)),
        ):
            yield

    def counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        """The operation, which may be struck."""

        def work(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self._moment and self._when == "before":
                self._strike()
            result = operation(*arguments, **named)
            if self.count == self._moment and self._when != "before":
                self._strike()
            return result

        return work

    def write(self, file: BinaryIO, content: bytes | memoryview) -> None:
        """Write, or write half and strike."""
        self.count += 1
        if self.count == self._moment:
            file.write(memoryview(content)[: len(content) // 2])
            file.flush()
            self._strike()
        file.write(content)


class _TornFile:
    def __init__(self, file: BinaryIO, faults: Faults) -> None:
        self._file = file
        self._faults = faults

    def __enter__(self) -> "_TornFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: bytes | memoryview) -> None:
        self._faults.write(self._file, content)

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


def fail_with(code: int) -> Callable[[], None]:
    """What a file system says that is full (ENOSPC), broken (EIO) or read-only (EROFS)."""

    def strike() -> None:
        raise OSError(code, os.strerror(code))

    return strike


ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_until_killed(root: str, run: int, moment: int, when: str) -> None:
    """In a process of its own: append, and say on the standard output what was acknowledged."""

    def acknowledge(text: str) -> None:
        os.write(1, (text + "\n").encode())

    with busy_housekeeping(), Faults(moment, when, _die).at_work():
        store = SampleStore(root, "run")
        with store.training():
            for lease in range(10_000):
                append_lease(store, f"r{run}-{lease}", run * 10_000 + lease, acknowledge)


def _serve_forks() -> None:
    """Fork a writer for each line `root run moment when`; the line `pid` is answered, then the writer's own lines."""
    for line in sys.stdin:
        root, run, moment, when = line.split()
        child = os.fork()
        if child == 0:
            _write_until_killed(root, int(run), int(moment), when)
            os._exit(0)
        os.write(1, f"pid {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


def snapshot(store: SampleStore) -> dict[str, Any]:
    """All rows of a store, as Python values by key."""
    ids = list(store.group_ids)
    groups = {row["group_id"]: row for batch in store.batches() for row in batch.to_pylist()}
    scored = [name for name in ids if store.has_score(name, "reward")]
    rows = store.scores(scored, "reward").to_pylist()
    return {"groups": groups, "scores": {row["group_id"]: row["values"] for row in rows}, "steps": store.steps()}


def bad_rows(rows: dict[str, Any]) -> list[str]:
    """What in a snapshot is not what was written."""
    false_groups = [name for name, row in rows["groups"].items() if not is_true(row)]
    false_scores = [name for name, values in rows["scores"].items() if values != values_of(name)]
    false_steps = [str(row["step"]) for row in rows["steps"] if row["metrics"] != {"loss": 1.5}]
    return false_groups + false_scores + false_steps


if __name__ == "__main__":
    pa.set_cpu_count(1)  # threads do not survive a fork
    _serve_forks()
