"""Code of users that forks, or changes the process that it runs in."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from brain_align.common.errors import UserError
from brain_align.common.guest_code import guarded
from brain_align.common.user_code import user_function
from tests.unit.forked import in_child


def returning():
    return os.fork()


def raising():
    if not os.fork():
        raise ValueError("in the child")
    return 1


def exiting():
    if not os.fork():
        sys.exit(7)
    return 1


def ending_at_once():
    if not os.fork():
        os._exit(8)
    return 1


def saying():
    if not os.fork():
        sys.exit("a reason")
    return 1


def twice():
    os.fork()
    return os.fork()


def in_a_thread():
    thread = threading.Thread(target=os.fork)
    thread.start()
    thread.join()
    return 1


def in_a_pool_of_threads():
    with ThreadPoolExecutor(2) as pool:
        return len(list(pool.map(lambda _: helper(), range(8))))


def helper():
    return os.fork()


def raising_in_a_pool_of_threads():
    with ThreadPoolExecutor(1) as pool:
        return [one.exception() for one in [pool.submit(raising) for _ in range(6)]]


def working_in_a_thread():
    """A pool of processes that a thread makes, and uses, is no fork bomb."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_a_pool).result() == 3


def in_a_pool():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(abs, [-1, -2]))


# The child of a thread ends with the thread, which Python 3.11 may take for an error of its own.
STATUSES = {
    returning: {0},
    raising: {1},
    exiting: {7},
    ending_at_once: {8},
    saying: {1},
    twice: {0},
    in_a_thread: {0, -signal.SIGABRT},
    in_a_pool_of_threads: {0},
    raising_in_a_pool_of_threads: {0, 1},
    working_in_a_thread: set(),
    in_a_pool: set(),
}


@pytest.mark.parametrize("function", STATUSES, ids=lambda one: one.__name__)
def test_a_child_of_a_users_function_ends_where_its_parent_returns(function):
    def check():
        guarded(function)()
        statuses = set()
        while True:  # whoever comes here is the parent, or there is a fork bomb, which the session's end bounds
            try:
                statuses.add(os.waitstatus_to_exitcode(os.wait()[1]))
            except ChildProcessError:
                break
        return 0 if statuses <= STATUSES[function] and os.getppid() == parent else 50

    parent = os.getpid()
    assert in_child(check) == 0


def test_a_module_that_forks_when_it_is_imported_is_imported_once(tmp_path, monkeypatch):
    (tmp_path / "forking_module.py").write_text("import os\nos.fork()\ndef f(): return os.getpid()\n")
    monkeypatch.syspath_prepend(tmp_path)

    def check():
        function, _ = user_function("forking_module:f", "here")
        os.wait()
        return 0 if function() == os.getpid() else 50

    assert in_child(check) == 0


def test_what_a_function_changes_is_its_own_and_there_again_when_it_is_called_next(tmp_path):
    here, before = os.getcwd(), signal.getsignal(signal.SIGTERM)

    def change():
        where = os.getcwd()
        os.chdir(tmp_path)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(1)
        return where, signal.getsignal(signal.SIGTERM)

    assert guarded(change)()[0] == here
    assert os.getcwd() == here and signal.getsignal(signal.SIGTERM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert guarded(lambda: (os.getcwd(), signal.getsignal(signal.SIGTERM)))() == (str(tmp_path), signal.SIG_IGN)
    guarded(lambda: os.chdir(here))()
    guarded(lambda: signal.signal(signal.SIGTERM, before))()


def test_a_directory_that_is_gone_is_no_obstacle(tmp_path):
    (tmp_path / "gone").mkdir()
    here = os.getcwd()

    def change():
        os.chdir(tmp_path / "gone")
        os.rmdir(tmp_path / "gone")

    guarded(change)()
    assert os.getcwd() == here
    assert guarded(lambda: 3)() == 3


def test_output_still_goes_where_it_went_after_a_function_has_closed_it(tmp_path):
    def check():
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        guarded(lambda: os.closerange(0, 3))()
        guarded(lambda: sys.stdout.close())()
        guarded(lambda: setattr(sys, "stdout", None))()
        with open(tmp_path / "other", "w", encoding="utf-8") as other:
            print("printed")
            return 0 if other.fileno() > 2 else 50

    assert in_child(check) == 0
    assert ((tmp_path / "log").read_text(), (tmp_path / "other").read_text()) == ("printed\n", "")


def test_an_environment_that_was_emptied_is_restored_and_single_changes_stay(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    guarded(os.environ.clear)()
    assert os.environ["KEPT"] == "1"
    guarded(lambda: os.environ.pop("KEPT"))()
    assert "KEPT" not in os.environ


def test_a_function_that_ends_the_process_raises_an_error():
    with pytest.raises(RuntimeError, match=r"it called sys.exit\(3\)"):
        guarded(sys.exit)(3)


def test_the_process_is_not_ended_without_cleaning_up_either():
    with pytest.raises(RuntimeError, match=r"it called os._exit\(3\)"):
        guarded(lambda: os._exit(3))()
    assert os._exit.__name__ == "_exit" and os._exit.__module__ == "posix"


def test_a_module_that_cancels_everything_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cancelling.py").write_text("import asyncio\nraise asyncio.CancelledError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'cancelling' cannot be imported: no"):
        user_function("cancelling:f", "here")


def test_in_another_thread_signals_stay_as_they_are():
    found = []
    thread = threading.Thread(target=lambda: found.append(guarded(time.monotonic)()))
    thread.start()
    thread.join()
    assert found
