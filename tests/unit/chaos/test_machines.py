"""Where the chaos run cannot be made, it says why and has a status of its own: it is not skipped with success."""

import os
import sys
from pathlib import Path

import pytest

from tests.chaos import machines
from tests.chaos.__main__ import main


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["chaos"])
    assert main() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_an_absent_script_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(machines.SCRIPT_VARIABLE, str(tmp_path / "node.sh"))
    assert f"node.sh, which is not at {tmp_path / 'node.sh'}; set BRAIN_CLUSTER_SIM" in refused(capsys, monkeypatch)


@pytest.mark.parametrize("lacks", ["root", "tools"])
def test_without_root_or_tools_it_says_so(
    lacks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node.sh").touch()
    monkeypatch.setenv(machines.SCRIPT_VARIABLE, str(tmp_path / "node.sh"))
    monkeypatch.setattr(os, "geteuid", lambda: 0 if lacks == "tools" else 1000)
    monkeypatch.setenv("PATH", "")
    found = refused(capsys, monkeypatch)
    assert ("run it as root" if lacks == "root" else "needs unshare, nsenter, ip, pgrep, setsid") in found
