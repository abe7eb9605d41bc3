"""One conductor at a time on a store, however it ended; scorers and samplers write meanwhile."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier
from unittest import mock

import pyarrow as pa
import pytest

from brain_align.common.errors import TryAgainError, UserError
from brain_align.common.store import training_lock
from brain_align.common.store.files.backends import Entry, LocalBackend
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.training_lock import hold_training_lock
from brain_align.common.system import processes
from brain_align.common.system.processes import this_process
from tests.locations import ROOT
from tests.unit.factories import groups, scores, step

HOLD = """
import sys, time
from brain_align.common.store.sample_store import SampleStore
from tests.locations import ROOT
with SampleStore(sys.argv[1], "run").training():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def claim_files(root: Path) -> list[str]:
    return [path.name for path in (root / "claims").iterdir()]


def eventually(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


def test_a_second_trainer_is_refused_until_the_first_has_ended(root: Path) -> None:
    first, second = SampleStore(root, "run"), SampleStore(root, "run")
    refused = rf"{re.escape(str(root))} is being trained on by process {os.getpid()} on .*stop it, or set another"
    with first.training():
        with pytest.raises(UserError, match=refused), second.training():
            pass
        assert second.append_groups(groups("a")) == 1  # only steps have one writer
        assert second.append_scores(scores("reward", {"a": [1.0, 2.0]})) == 1
        assert first.append_step(step(1, ["a"])) == 1
    assert claim_files(root) == []
    with second.training():
        assert second.step_groups(1) == ["a"]  # it has seen what the one before it recorded
        assert second.append_step(step(1, ["a"])) == 0


@pytest.mark.parametrize("reaped", [True, False])
def test_a_trainer_that_was_killed_is_followed_at_once(root: Path, reaped: bool) -> None:
    command = [sys.executable, "-c", HOLD, str(root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    store = SampleStore(root, "run")
    with pytest.raises(UserError, match=f"by process {process.pid} on"), store.training():
        pass
    process.send_signal(signal.SIGKILL)
    if reaped:
        process.wait(10)
    assert eventually(lambda: processes._started(process.pid) == processes._NONE)
    with store.training():
        assert len(claim_files(root)) == 1
    process.wait(10)


def test_a_trainer_that_is_stopped_is_not_dead_and_the_message_says_so(root: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        (held,) = (root / "claims").iterdir()
        os.utime(held, (time.time() - 70, time.time() - 70))
        refused = rf"silent for (69|7.) s but is stopped, not dead; end it \(kill -9 {process.pid}\)"
        with pytest.raises(UserError, match=refused), SampleStore(root, "run").training():
            pass
    finally:
        process.kill()
        process.wait(10)


def test_a_process_that_may_not_be_looked_at_is_neither_taken_for_dead_nor_for_ended() -> None:
    here = this_process()
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    with mock.patch.object(Path, "read_text", side_effect=FileNotFoundError):  # /proc mounted with hidepid=2
        assert replace(here, pid=ended.pid).is_gone(here) is True
        assert here.is_gone(here) is None  # its age says
        with mock.patch("os.kill", side_effect=PermissionError):
            assert here.is_gone(here) is None
    assert here.is_gone(here) is False


@pytest.mark.parametrize(
    "content", [json.dumps(asdict(replace(this_process(), machine="another"))), "{torn"], ids=["whole", "torn"]
)
def test_a_trainer_on_another_machine_is_believed_for_a_minute(root: Path, content: str) -> None:
    store = SampleStore(root, "run")
    theirs = root / "claims" / "holds-0000abcd.json"
    theirs.parent.mkdir()
    theirs.write_text(content)
    with pytest.raises(UserError, match=r"if it is dead, the lock expires in (59|60) s"), store.training():
        pass
    assert claim_files(root) == [theirs.name]
    os.utime(theirs, (time.time() - 61, time.time() - 61))
    with store.training():
        assert theirs.name not in claim_files(root)


def elsewhere(root: Path, silent: float) -> Path:
    """A lock that is held on another machine, and was last renewed so many seconds ago."""
    theirs = root / "claims" / "holds-0000abcd.json"
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_text(json.dumps(asdict(replace(this_process(), machine="another"))))
    os.utime(theirs, (time.time() - silent, time.time() - silent))
    return theirs


def test_a_holder_that_may_be_dead_is_waited_for_until_its_lock_ends(root: Path) -> None:
    store = SampleStore(root, "run")
    said: list[str] = []
    theirs = elsewhere(root, silent=59.7)
    with mock.patch.object(training_lock, "_LOOKS_EVERY", 0.05), store.training(said.append):
        assert theirs.name not in claim_files(root)
    (sentence,) = said
    assert sentence.startswith(f"waiting up to 0 s: The sample store {root} is being trained on by process")


def test_a_holder_that_renews_its_lock_is_alive_and_not_waited_for(root: Path) -> None:
    store = SampleStore(root, "run")
    said: list[str] = []
    theirs = elsewhere(root, silent=5)
    with (
        mock.patch.object(training_lock, "_LOOKS_EVERY", 0.01),
        mock.patch.object(training_lock.time, "sleep", lambda _: os.utime(theirs)),
        pytest.raises(TryAgainError, match="is being trained on by process"),
        store.training(said.append),
    ):
        pass
    assert len(said) == 1 and claim_files(root) == [theirs.name]


def test_a_holder_of_this_machine_is_not_waited_for(root: Path) -> None:
    first, second = SampleStore(root, "run"), SampleStore(root, "run")
    with first.training(), pytest.raises(TryAgainError), second.training(pytest.fail):
        pass


def test_who_was_taken_for_dead_records_nothing_more(root: Path) -> None:
    first, second = SampleStore(root, "run"), SampleStore(root, "run")
    with first.training():
        assert first.append_step(step(1, ["a"])) == 1
        (held,) = (root / "claims").iterdir()
        held.unlink()  # as whoever takes over does
        with second.training():
            with pytest.raises(UserError, match="trained on by another run by now"):
                first.append_step(step(2, ["a"]))
            assert second.append_step(step(2, ["b"])) == 1
    assert SampleStore(root, None, read_only=True).step_groups(2) == ["b"]


def test_a_store_that_vanished_is_not_said_to_be_another_run_s(root: Path) -> None:
    store = SampleStore(root, "run")
    with store.training():
        root.rename(root.with_name("moved"))
        with pytest.raises(UserError, match="has lost this run's training lock: its directory"):
            store.append_step(step(1, ["a"]))


def test_a_renewal_that_arrives_late_costs_who_was_late_the_store_and_nobody_else(root: Path) -> None:
    first, second = SampleStore(root, "run"), SampleStore(root, "run")
    with first.training():
        (held,) = (root / "claims").iterdir()
        late = json.dumps(asdict(replace(this_process(), machine="another")))
        held.write_text(late)
        os.utime(held, (time.time() - 61, time.time() - 61))
        with second.training():
            held.write_text(late)
            assert second.append_step(step(1, ["a"])) == 1
            with pytest.raises(UserError, match="trained on by another run by now"):
                first.append_step(step(2, ["a"]))


def test_who_renews_late_takes_its_claim_away_again(root: Path) -> None:
    put = LocalBackend.put

    def overtaken(backend: LocalBackend, directory: str, name: str, content: pa.Buffer) -> None:
        (root / "claims" / "holds-0000abcd.json").write_text("{}")
        put(backend, directory, name, content)

    root.mkdir()
    with (
        mock.patch.object(training_lock, "RENEWED_EVERY", 0.01),
        hold_training_lock(LocalBackend(root)),
        mock.patch.object(LocalBackend, "put", overtaken),
    ):
        assert eventually(lambda: claim_files(root) == ["holds-0000abcd.json"])


def test_of_many_at_the_same_moment_at_most_one_gets_it(root: Path) -> None:
    root.mkdir()
    together = Barrier(6)

    def attempt() -> bool:
        together.wait()
        try:
            with hold_training_lock(LocalBackend(root)):
                together.wait()
                return True
        except UserError:
            together.wait()
            return False

    with ThreadPoolExecutor(6) as threads:
        for _ in range(20):
            got = [one.result() for one in [threads.submit(attempt) for _ in range(6)]]
            assert sum(got) <= 1
    assert claim_files(root) == []
    with hold_training_lock(LocalBackend(root)):
        assert len(claim_files(root)) == 1


@pytest.mark.parametrize("missed", ["not listed", "gone when it is read"])
def test_a_question_that_turns_into_a_claim_while_another_looks_is_seen(root: Path, missed: str) -> None:
    """The first look finds neither the request, which has just gone, nor the lock, which came after it."""
    looks: list[list[Entry]] = []
    look = LocalBackend.list

    def list_while_it_turns(backend: LocalBackend, directory: str) -> list[Entry]:
        if looks:
            return look(backend, directory)
        looks.append(look(backend, directory))
        held.acquire()
        return looks[0] if missed == "gone when it is read" else [one for one in looks[0] if one.name != held.asks]

    held = _AnotherConductor(root)
    refused = mock.patch.object(LocalBackend, "list", list_while_it_turns)
    with (
        refused,
        pytest.raises(UserError, match="is being trained on by process"),
        hold_training_lock(LocalBackend(root)),
    ):
        pass
    assert claim_files(root) == [held.holds]


def test_a_question_that_comes_between_two_looks_gives_way(root: Path) -> None:
    look = LocalBackend.list
    asked: list[_AnotherConductor] = []

    def list_before_another_asks(backend: LocalBackend, directory: str) -> list[Entry]:
        found = look(backend, directory)
        if not asked:
            asked.append(_AnotherConductor(root))
        return found

    with mock.patch.object(LocalBackend, "list", list_before_another_asks), hold_training_lock(LocalBackend(root)):
        assert _AnotherConductor.asks in claim_files(root)


class _AnotherConductor:
    """A process that asks for a store, and gets it at a moment that the test chooses."""

    asks, holds = "asks-0000abcd.json", "holds-0000abcd.json"

    def __init__(self, root: Path) -> None:
        self._folder = root / "claims"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write(self.asks)

    def acquire(self) -> None:
        self._write(self.holds)
        (self._folder / self.asks).unlink()

    def _write(self, name: str) -> None:
        (self._folder / name).write_text(json.dumps(asdict(this_process())))


def test_a_claim_is_renewed_while_it_lasts(root: Path) -> None:
    with mock.patch.object(training_lock, "RENEWED_EVERY", 0.01), SampleStore(root, "run").training():
        (held,) = (root / "claims").iterdir()
        os.utime(held, (0, 0))
        assert eventually(lambda: held.stat().st_mtime > 1)


def test_a_store_that_cannot_be_written_cannot_be_trained_on(root: Path) -> None:
    store = SampleStore(root, "run")
    failing = mock.patch.object(LocalBackend, "put", side_effect=OSError(30, "Read-only file system"))
    with failing, pytest.raises(UserError, match="cannot be written: Read-only file system"), store.training():
        pass


def test_a_place_that_is_away_is_a_clear_error_and_hides_no_other(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SampleStore(root, "run")
    away = OSError(5, "Input/output error")
    with (
        store.training(),
        mock.patch.object(LocalBackend, "list", side_effect=away),
        pytest.raises(UserError, match="cannot be read: Input/output error"),
    ):
        store.append_step(step(1, ["a"]))
    with (
        mock.patch.object(LocalBackend, "remove", side_effect=away),
        pytest.raises(ValueError, match="the real error"),
        store.training(),
    ):
        raise ValueError("the real error")
    assert re.search(r"holds-.{8}\.json was not removed: .*Input/output error", caplog.text)


def test_a_question_that_another_removed_is_a_clear_error(root: Path) -> None:
    store = SampleStore(root, "run")
    with (
        mock.patch.object(LocalBackend, "list", return_value=[]),
        pytest.raises(UserError, match="was just removed by another process; start again"),
        store.training(),
    ):
        pass
