import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from brain_align.common import logs
from brain_align.common.errors import PipelineError, TryAgainError, UserError
from brain_align.deploy.cli import main
from brain_align.deploy.commands import settings
from brain_align.deploy.commands.outcome import outcome
from tests.locations import ROOT


def ends_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(settings, "run", Mock(side_effect=error))
    status = main(["settings"])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/run/store/x"),
            1,
            "brain: /run/store/x: No space left on device (errno 28). Free some space there, and run it again. The ",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            1,
            "brain: Disk quota exceeded (errno 122). Free some space there, or have the quota raised, and run it again",
        ),
        (OSError(errno.EMFILE, "Too many open files", "f"), 1, "brain: f: Too many open files (errno 24). Raise the"),
        (OSError(errno.ENOENT, "No such file or directory", "r"), 1, "brain: r: No such file or directory (errno 2)."),
        (OSError(errno.EROFS, "Read-only file system", "/r"), 2, "brain: /r: Read-only file system (errno 30). Mount"),
        (OSError(errno.EROFS, "Read-only file system", "/r/store/.tmp-a-0f"), 2, "brain: /r/store: Read-only file"),
        (PermissionError(errno.EACCES, "Permission denied", "/r"), 2, "brain: /r: Permission denied (errno 13). Give"),
        (OSError("of a library"), 1, "brain: Unexpected OSError: of a library; the traceback is in "),
        (ValueError("what\nis it"), 1, "brain: Unexpected ValueError: what; the traceback is in "),
        (KeyError(), 1, "brain: Unexpected KeyError; the traceback is in "),
        (RecursionError("too deep"), 1, "brain: Unexpected RecursionError: too deep; the traceback is in "),
        (MemoryError(), 1, "brain: There is not enough memory; the traceback is in "),
        (ExceptionGroup("", [ValueError("a"), ExceptionGroup("", [UserError("this is wrong.")])]), 2, "brain: this is"),
        (BaseExceptionGroup("", [ValueError("a"), KeyboardInterrupt()]), 130, "brain: Interrupted.\n"),
        (PipelineError("it broke."), 1, "brain: it broke.\n"),
        (TryAgainError("it is busy."), 75, "brain: it is busy.\n"),
    ],
)
def test_every_error_is_one_sentence_and_its_traceback_is_kept(
    error: BaseException, status: int, sentence: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended, said = ends_with(error, monkeypatch, capsys)
    assert ended == status
    assert said.startswith(sentence) and said.count("\n") == 1 and "Traceback" not in said
    if "traceback is in" in said:
        (log,) = tmp_path.iterdir()
        assert said.endswith(f"traceback is in {log}.\n")
        assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")


def test_what_to_do_is_said_once() -> None:
    told = "It is away: mend it, then run the same command again."
    assert outcome(PipelineError(told), resumes=True).message == f"{told}\nNothing that was committed is lost."
    other = outcome(PipelineError("It broke."), resumes=True).message
    assert other == "It broke.\nNothing that was committed is lost: run the same command again to resume."


def test_a_run_s_traceback_is_in_its_log_and_without_any_file_the_place_is_named(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(logs, "_log", tmp_path / "brain.log")
    _, said = ends_with(ValueError("once"), monkeypatch, capsys)
    assert said.endswith(f"; the traceback is in {tmp_path}/brain.log.\n")
    monkeypatch.setattr(logs, "_log", tmp_path / "gone" / "brain.log")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    _, said = ends_with(ValueError("again"), monkeypatch, capsys)
    assert said.startswith("brain: Unexpected ValueError: again; the error was raised at ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["brain.log"]


def started(code: str, **options: Any) -> Any:  # a Popen
    return subprocess.Popen(
        [sys.executable, "-c", f"from brain_align.deploy import cli\n{code}\nimport sys; sys.exit(cli.main())"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **options,
    )


def test_output_that_nobody_reads_or_that_finds_no_room_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = "__import__('sys').argv = ['brain', 'settings']"
    with started(command, stdout=writing) as ended:
        os.close(writing)
        assert (ended.stderr.read(), ended.wait()) == (b"", 141)
    with (
        open("/dev/full", "w") as full,
        started(command, stdout=full) as ended,
    ):
        assert ended.stderr.read().startswith(b"brain: No space left on device (errno 28).") and ended.wait() == 1


def test_a_command_without_stdout_works() -> None:
    code = "import os; os.close(1)\nfrom brain_align.deploy import cli\nimport sys; sys.stdout = None\n"
    code += "sys.argv = ['brain', 'settings']; sys.exit(cli.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


WAITING = """
import sys, time
from brain_align.deploy.commands import run
def wait(options):
    try:
        print("waits", flush=True)
        time.sleep(60)
    finally:
        print("cleans up", file=sys.stderr, flush=True)
run.run = wait
sys.argv = ["brain", "run", "demo.yaml"]
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_s_sentence_comes_first_and_the_status_is_the_shell_s(number: signal.Signals, status: int) -> None:
    with started(WAITING, stdout=subprocess.PIPE) as ended:
        ended.stdout.readline()
        ended.send_signal(number)
        said = ended.stderr.read().decode().splitlines()
        assert ended.wait() == status
    assert said == [f"brain: Interrupted by {number.name}: run the same command again to resume.", "cleans up"]


def test_output_is_escaped_where_the_encoding_cannot_show_it() -> None:
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    code = "from brain_align.deploy.commands import settings\nsettings.run = lambda _: print('…')\n"
    code += "__import__('sys').argv = ['brain', 'settings']"
    with started(code, stdout=subprocess.PIPE, env=environment) as ended:
        assert (ended.stdout.read(), ended.stderr.read(), ended.wait()) == (b"\\u2026\n", b"", 0)
