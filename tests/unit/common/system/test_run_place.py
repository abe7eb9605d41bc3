import socket
import threading
from pathlib import Path

import pytest

from brain_align.common.errors import NotSharedError
from brain_align.common.system import run_place
from brain_align.common.system.run_place import VARIABLE, check_place, mark_start


def test_each_start_has_a_file_of_its_own_that_actors_must_see(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    check_place()  # not of a run
    former, start = mark_start(tmp_path), mark_start(tmp_path)
    assert list(tmp_path.iterdir()) == [start] and former != start
    monkeypatch.setenv(VARIABLE, str(start))
    check_place()


def test_a_node_that_does_not_see_the_run_directory_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_place, "_VISIBLE_WITHIN", 0.05)
    monkeypatch.setattr(run_place, "_LOOK_AGAIN", 0.01)
    start = mark_start(tmp_path)
    start.unlink()  # as on a node where another directory is mounted there
    monkeypatch.setenv(VARIABLE, str(start))
    expected = rf"Node {socket.gethostname()}.* does not see the run directory {tmp_path}; mount the same file system"
    with pytest.raises(NotSharedError, match=expected):
        check_place()


def test_a_file_that_is_seen_late_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_place, "_LOOK_AGAIN", 0.01)
    start = tmp_path / ".start-late"
    monkeypatch.setenv(VARIABLE, str(start))
    late = threading.Timer(0.1, start.touch)
    late.start()
    check_place()
    late.join()
