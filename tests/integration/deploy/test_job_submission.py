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
import yaml

from tests.integration.deploy.pipeline_runs import RECIPE, ROOT, SMALL, environment, kill_tree

pytestmark = pytest.mark.timeout(900)
SHADOWS = ("common/__init__.py", "deploy.py", "learner/__init__.py", "sampler.py")
REWARD = """
from pathlib import Path

import brain_align

uploaded = Path(__file__).parent
assert Path(brain_align.__file__).is_relative_to(uploaded), f"{brain_align.__file__} is not in {uploaded}"


def score(prompts, outputs):
    return [-0.1 * len(output) for output in outputs]
"""
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


def working_directory(folder: Path) -> Path:
    """A user's folder: a link to the package, a recipe, the reward in scorer.py, and files called like our rooms.

    In `brain_align/` there are links in turn; the reward refuses to be imported where Ray has not followed them all.
    """
    folder.mkdir()
    (folder / "brain_align").symlink_to(ROOT / "brain_align")
    (folder / "scorer.py").write_text(REWARD)
    for shadow in SHADOWS:
        (folder / shadow).parent.mkdir(exist_ok=True)
        (folder / shadow).write_text("raise AssertionError('nobody asked for this module')\n")
    recipe = yaml.safe_load((ROOT / RECIPE).read_text())
    del recipe["scorers"]["reward"]
    recipe["scorers"]["mine"] = {"kind": "function", "function": "scorer:score", "cpus": 0.1}
    recipe["objective"]["reward"] = "mine"
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_a_users_folder_with_names_like_ours_runs_as_a_submitted_job(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    mine = working_directory(tmp_path / "mine")
    with cluster(tmp_path / "head.log") as address:
        arguments = [RAY, "job", "submit", f"--address={address}", "--working-dir", ".", "--"]
        arguments += [
            "brain",
            "run",
            "mine.yaml",
            f"run.dir={directory}",
            f"prepare.cache={ROOT / 'build/worlds'}",
        ]
        submit = subprocess.run(
            [*arguments, *SMALL, "algorithm.rounds=1", "evaluation.validation_prompts=4"],
            cwd=mine,
            capture_output=True,
            text=True,
            timeout=600,
            env=environment() | TOKEN,
        )
    assert submit.returncode == 0, f"{submit.stdout}\n{submit.stderr}"
    assert "succeeded" in submit.stdout
    assert "win rate" in submit.stdout
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["after"]["prompts"] == 24
    assert summary["after"]["mean_reward"] < 0, "the reward of scorer.py: longer is worse"
