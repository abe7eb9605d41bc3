import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.store import SampleStore
from deploy.store_thread import StoreThread
from tests.unit.factories import group, groups, scores, step


def run(subject: StoreThread, what: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(asyncio.wait_for(what, 20))
    finally:
        subject.close()


def test_what_waits_is_committed_together_and_each_gets_its_own_rows_back(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    subject = StoreThread(store, "store")
    begin = threading.Event()

    async def append() -> list[Any]:
        first = asyncio.create_task(subject.call(begin.wait, 10))
        rest = [asyncio.create_task(subject.append_groups(groups(f"a{n}", f"b{n}"))) for n in range(5)]
        rest.append(asyncio.create_task(subject.append_scores(scores("reward", {"a0": [1.0, 2.0]}))))
        await asyncio.sleep(0.05)
        begin.set()
        return (await asyncio.gather(first, *rest))[1:6]

    batches = run(subject, append())
    assert [batch["group_id"].to_pylist() for batch in batches] == [[f"a{n}", f"b{n}"] for n in range(5)]
    assert len(list((tmp_path / "groups").iterdir())) == 1 and subject.commits == 2
    again = SampleStore(tmp_path, "run", read_only=True)
    assert again.counts() == {"groups": 10, "scores": 1, "steps": 0}


def test_groups_that_another_writer_was_first_with_come_back_as_the_store_has_them(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("b", seed=1))
    subject = StoreThread(store, "store")
    from common.schemas import GROUPS, batch_from_rows

    batch = batch_from_rows(GROUPS, [group("a", seed=2), group("b", seed=2)])
    assert run(subject, subject.append_groups(batch))["seed"].to_pylist() == [2, 1]


def test_an_error_of_the_store_is_raised_where_the_call_was_made(tmp_path: Path) -> None:
    class Full(SampleStore):
        def append_groups(self, batch: Any) -> int:
            raise UserError("the disk is full")

    store = Full(tmp_path, "run")
    subject = StoreThread(store, "store")

    async def append() -> None:
        with pytest.raises(UserError, match="disk is full"):
            await subject.append_groups(groups("a"))
        with store.training():
            assert await subject.call(store.append_step, step(1, ["a"])) == 1  # the thread lives on

    run(subject, append())


def test_closing_waits_for_what_was_given(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    subject = StoreThread(store, "store")

    async def append() -> None:
        task = asyncio.create_task(subject.append_groups(groups("a")))
        await asyncio.sleep(0)
        task.cancel()

    run(subject, append())
    assert list(store.group_ids) == ["a"]
