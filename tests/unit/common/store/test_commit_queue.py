import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from brain_align.common.errors import PipelineError, UserError
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.commit_queue import CommitQueue
from brain_align.common.store.sample_store import SampleStore
from tests.unit.factories import group, groups, scores, step


def thread(store: SampleStore, told: list[tuple[pa.RecordBatch, list[int]]] | None = None) -> CommitQueue:
    return CommitQueue(
        store, "store", lambda groups, rows: (told if told is not None else []).append((groups, [*rows]))
    )


def run(subject: CommitQueue, what: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(asyncio.wait_for(what, 20))
    finally:
        subject.close()


def test_what_waits_is_committed_together_and_told_once(tmp_path: Path) -> None:
    told: list[tuple[pa.RecordBatch, list[int]]] = []
    subject = thread(SampleStore(tmp_path, "run"), told)
    begin = threading.Event()

    async def append() -> None:
        first = asyncio.create_task(subject.call(begin.wait, 10))
        rest = [asyncio.create_task(subject.append_groups(groups(f"a{n}", f"b{n}"))) for n in range(5)]
        rest.append(asyncio.create_task(subject.append_groups(groups("c"))))
        rest.append(asyncio.create_task(subject.append_scores(scores("reward", {"a0": [1.0, 2.0]}))))
        await asyncio.sleep(0.05)
        begin.set()
        await asyncio.gather(first, *rest)

    run(subject, append())
    ((batch, rows),) = told
    assert batch["group_id"].to_pylist() == [*(f"{x}{n}" for n in range(5) for x in "ab"), "c"]
    assert rows == [2, 2, 2, 2, 2, 1]
    assert len(list((tmp_path / "groups").iterdir())) == 1 and subject.commits == 2
    again = SampleStore(tmp_path, "run", read_only=True)
    assert again.counts() == {"groups": 11, "scores": 1, "steps": 0}


def test_groups_that_another_writer_was_first_with_are_told_as_the_store_has_them(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("b", seed=1))
    told: list[tuple[pa.RecordBatch, list[int]]] = []
    subject = thread(store, told)
    batch = batch_from_rows(GROUPS, [group("a", seed=2), group("b", seed=2)])
    run(subject, subject.append_groups(batch))
    assert [told[0][0]["seed"].to_pylist(), told[0][1]] == [[2, 1], [2]]


def test_who_waits_for_groups_hears_what_failed_as_they_were_told(tmp_path: Path) -> None:
    def fail(_groups: pa.RecordBatch, _rows: Sequence[int]) -> None:
        raise PipelineError("no scorer")

    subject = CommitQueue(SampleStore(tmp_path, "run"), "store", fail)
    with pytest.raises(PipelineError, match="no scorer"):
        run(subject, subject.append_groups(groups("a")))


def test_a_call_waits_for_one_append_at_most(tmp_path: Path) -> None:
    begin = threading.Event()
    order: list[str] = []

    class Slow(SampleStore):
        def append_groups(self, batch: pa.RecordBatch) -> int:
            order.append("groups")
            begin.wait(10)
            return super().append_groups(batch)

        def append_scores(self, batch: pa.RecordBatch) -> int:
            order.append("scores")
            return super().append_scores(batch)

    subject = thread(Slow(tmp_path, "run"))

    async def append() -> None:
        tasks = [asyncio.create_task(subject.append_groups(groups("a")))]
        while not order:
            await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(subject.append_scores(scores("reward", {"a": [1.0, 2.0]}))))
        tasks.append(asyncio.create_task(subject.append_groups(groups("b"))))
        tasks.append(asyncio.create_task(subject.call(order.append, "call")))
        await asyncio.sleep(0.01)
        begin.set()
        await asyncio.gather(*tasks)

    run(subject, append())
    assert order == ["groups", "call", "scores", "groups"]


def test_an_error_of_the_store_is_raised_where_the_call_was_made(tmp_path: Path) -> None:
    class Full(SampleStore):
        def append_groups(self, batch: Any) -> int:
            raise UserError("the disk is full")

    store = Full(tmp_path, "run")
    subject = thread(store)

    async def append() -> None:
        with pytest.raises(UserError, match="disk is full"):
            await subject.append_groups(groups("a"))
        with store.training():
            assert await subject.call(store.append_step, step(1, ["a"])) == 1  # the thread lives on

    run(subject, append())


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration()])
def test_an_error_that_no_future_takes_ends_neither_the_thread_nor_the_loop(
    tmp_path: Path, error: BaseException
) -> None:
    subject = thread(SampleStore(tmp_path, "run"))
    begin = threading.Event()

    def fail() -> None:
        raise error

    async def call() -> None:
        first = asyncio.create_task(subject.call(begin.wait, 10))
        failing = asyncio.create_task(subject.call(fail))
        beside = asyncio.create_task(subject.call(str, 5))  # settled together with the one that fails
        await asyncio.sleep(0.05)
        begin.set()
        with pytest.raises(RuntimeError, match=f"{type(error).__name__} in a call of the store") as caught:
            await failing
        assert caught.value.__cause__ is error
        assert await beside == "5" and await first
        await subject.append_groups(groups("a"))

    run(subject, call())


def test_an_append_that_ends_in_system_exit_is_told_and_the_next_one_is_made(tmp_path: Path) -> None:
    class Exiting(SampleStore):
        def append_groups(self, batch: pa.RecordBatch) -> int:
            if batch["group_id"].to_pylist() == ["exits"]:
                raise SystemExit(3)
            return super().append_groups(batch)

    subject = thread(Exiting(tmp_path, "run"))

    async def append() -> None:
        with pytest.raises(RuntimeError, match="SystemExit"):
            await subject.append_groups(groups("exits"))
        await subject.append_groups(groups("a"))

    run(subject, append())
    assert list(SampleStore(tmp_path, "run", read_only=True).group_ids) == ["a"]


def test_rows_that_cannot_be_committed_keep_no_others_from_it(tmp_path: Path) -> None:
    told: list[tuple[pa.RecordBatch, list[int]]] = []
    subject = thread(SampleStore(tmp_path, "run"), told)
    begin = threading.Event()

    async def append() -> list[Any]:
        batches = [groups("a"), groups("b").drop_columns(["seed"]), groups("c", "d")]
        first = asyncio.create_task(subject.call(begin.wait, 10))
        appends = [asyncio.create_task(subject.append_groups(batch)) for batch in batches]
        await asyncio.sleep(0.05)
        begin.set()
        await first
        return await asyncio.gather(*appends, return_exceptions=True)

    outcomes = run(subject, append())
    assert outcomes[0] is None and isinstance(outcomes[1], ValueError) and outcomes[2] is None
    assert [(batch["group_id"].to_pylist(), rows) for batch, rows in told] == [(["a"], [1]), (["c", "d"], [2])]
    assert list(SampleStore(tmp_path, "run", read_only=True).group_ids) == ["a", "c", "d"]


def test_closing_waits_for_what_was_given(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    subject = thread(store)

    async def append() -> None:
        task = asyncio.create_task(subject.append_groups(groups("a")))
        await asyncio.sleep(0)
        task.cancel()

    run(subject, append())
    assert list(store.group_ids) == ["a"]
