import subprocess
import sys

from tests.locations import ROOT


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


REDIRECT = """
import io, os, subprocess, sys
from pathlib import Path
from brain_align.common.logs import redirect_output
from tests.locations import ROOT
print("before")
if len(sys.argv) > 2:
    sys.stdout, sys.stderr = io.StringIO(), None  # as services may find them
redirect_output(Path(sys.argv[1]))
print("printed ß")
print("error", file=sys.stderr)
os.write(1, b"from a library\\n")
subprocess.run(["echo", "from a child"])
os._exit(0)  # nothing is flushed at the end
"""


def test_everything_that_a_process_writes_goes_to_the_file_at_once(tmp_path):
    log = tmp_path / "logs" / "service.log"
    for index, arguments in enumerate([(), ("replaced",)]):
        process = run(REDIRECT, log, *arguments)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout in ("before\n", "")
        lines = log.read_text(encoding="utf-8").splitlines()
        assert lines == ["printed ß", "error", "from a library", "from a child"] * (index + 1)  # appended


def test_it_can_be_called_again(tmp_path):
    code = "import sys\nfrom pathlib import Path\nfrom common.logs import redirect_output\n"
    code += "for name in sys.argv[1:]:\n    redirect_output(Path(name))\n    print(name)\n"
    process = run(code, tmp_path / "a", tmp_path / "b")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert (tmp_path / "a").read_text() == f"{tmp_path / 'a'}\n"
    assert (tmp_path / "b").read_text() == f"{tmp_path / 'b'}\n"
