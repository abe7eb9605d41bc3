"""`ray job submit` against a cluster that `ray start --head` has made."""

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.deploy.pipeline_runs import RECIPE, ROOT, SMALL, environment, kill_tree

pytestmark = pytest.mark.timeout(900)
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # ours alone, not the user's stored one
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_it_answers(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it asks for the token that `ray job submit` knows
        except OSError as error:
            assert head.poll() is None, f"the head node ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"the head node does not answer ({error}): {log.read_text()}"
            time.sleep(0.5)


@contextlib.contextmanager
def cluster(log: Path) -> Iterator[str]:
    """A head node of our own, in a private directory and on private ports; ended by handle. Yields its job address."""
    port, dashboard = free_port(), free_port()
    with (
        tempfile.TemporaryDirectory(prefix="brain-ray-", ignore_cleanup_errors=True) as temporary,
        open(log, "wb") as out,
    ):
        arguments = [RAY, "start", "--head", "--block", f"--port={port}", f"--temp-dir={temporary}"]
        arguments += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
        arguments += [
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
        ]
        path = {"PATH": f"{Path(RAY).parent}:{environment()['PATH']}"}  # the cluster's `brain` is this one
        head = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment() | TOKEN | path)
        try:
            wait_until_it_answers(f"http://127.0.0.1:{dashboard}", head, log)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            kill_tree(head.pid)
            for process in psutil.process_iter(["cmdline"]):  # what the head's children left behind, by our directory
                if any(temporary in argument for argument in process.info["cmdline"] or []):
                    kill_tree(process.pid)


def test_the_demo_runs_as_a_submitted_job(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with cluster(tmp_path / "head.log") as address:
        arguments = [RAY, "job", "submit", f"--address={address}", "--working-dir", ".", "--"]
        arguments += [
            "brain",
            "run",
            RECIPE,
            f"run.dir={directory}",
            f"prepare.cache={ROOT / 'build/worlds'}",
        ]
        submit = subprocess.run(
            [*arguments, *SMALL, "algorithm.rounds=1", "evaluation.validation_prompts=4"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            env=environment() | TOKEN,
        )
    assert submit.returncode == 0, f"{submit.stdout}\n{submit.stderr}"
    assert "succeeded" in submit.stdout
    assert "train-RM win rate" in submit.stdout
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["after"]["prompts"] == 24
