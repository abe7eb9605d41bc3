"""Whoever shares a run directory may put anything where requests lie."""

import os
from pathlib import Path

import pytest

from brain_align.common.errors import UserError
from brain_align.deploy.monitor.requests import (
    Answer,
    ScaleRequest,
    answer,
    ask,
    forget_former_requests,
    take_requests,
)
from brain_align.deploy.run.directory import RunDirectory


def folders(directory: RunDirectory) -> tuple[Path, Path]:
    made = (directory.control / "requests", directory.control / "answers")
    for folder in made:
        folder.mkdir(parents=True)
    return made


def test_what_is_no_file_is_no_request_and_blocks_nothing(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    requests, answers = folders(directory)
    for folder in (requests, answers):
        os.mkfifo(folder / "pipe.json")
        (folder / "folder.json").mkdir()
        (folder / "endless.json").symlink_to("/dev/zero")
        (folder / "nowhere.json").symlink_to(tmp_path / "absent")
    (requests / "good.json").write_text('{"replicas": {"samplers": 2}}')
    (requests / "deep.json").write_text("[" * 50_000)
    (requests / "huge.json").write_text('{"replicas": {"samplers": 2}}' + " " * 200_000 + "x")
    taken = dict(take_requests(directory))
    assert taken.pop("good.json") == ScaleRequest(replicas={"samplers": 2})
    assert taken.pop("deep.json") is None
    assert set(taken) <= {"huge.json"}
    assert take_requests(directory) == []
    forget_former_requests(directory)
    assert len(list(requests.iterdir())) == 4


@pytest.mark.parametrize("content", ["", "nonsense", "[" * 50_000, '{"lines": 1}'])
def test_an_answer_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    directory = RunDirectory(tmp_path)
    _, answers = folders(directory)
    monkeypatch.setattr("uuid.uuid4", lambda: type("Name", (), {"hex": "name"}))
    (answers / "name.json").write_text(content)
    with pytest.raises(UserError, match="is not an answer"):
        ask(directory, ScaleRequest(replicas={}), 1)
    answer(directory, "name.json", Answer(lines=["done"]))
    assert ask(directory, ScaleRequest(replicas={}), 1).lines == ["done"]
