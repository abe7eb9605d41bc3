"""The process that rank 0 starts to serve published versions (weight_server.py is its program)."""

import logging
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

_LOG = logging.getLogger(__name__)

_START_LIMIT = 120.0  # seconds: it imports torch


class WeightServerProcess:
    """A running weight server. Without it samplers read the files, so that no failure here is an error.

    `host` is this machine's address, as samplers see it; `time_limit` is in seconds per transfer.

    Attributes:
        process: the one that was started last; None after one did not come up, since no further one is started.
    """

    def __init__(self, policies: Path, host: str, time_limit: float) -> None:
        self._command = [
            sys.executable,
            "-P",  # nothing of the current directory, which may hold anything
            "-m",
            "brain_align.learner.publishing.weight_server",
            str(policies),
            host,
            str(time_limit),
        ]
        self._answer: BinaryIO  # the pipe that the address comes through
        self._address: str | None = None
        self.process = self._start()

    def address(self) -> str | None:
        """Wait until the server is up, restarted if it has ended; return its address, None if it does not come up."""
        if self.process is not None and self.process.poll() is not None:
            _LOG.warning("The weight server has ended (status %d) and is restarted.", self.process.returncode)
            self._answer.close()
            self._address, self.process = None, self._start()
        if self.process is not None and self._address is None:
            self._address = self._said()
            if self._address is None:
                self._give_up(self.process)
        return self._address

    def _start(self) -> subprocess.Popen[bytes] | None:
        ours, theirs = os.pipe()
        self._answer = os.fdopen(ours, "rb", buffering=0)
        try:
            # Its input ends with this process, and so does the server. Its output goes where this process's goes.
            command = [*self._command, str(theirs)]
            return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs], env=_environment())
        except OSError as error:
            _LOG.warning("The weight server cannot be started (%s); samplers read the files from now on.", error)
            self._answer.close()
            return None
        finally:
            os.close(theirs)

    def _said(self) -> str | None:
        """Read the line that the server sends when it is up."""
        deadline = time.monotonic() + _START_LIMIT
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answer, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                more = self._answer.read(4096) if ready else b""
                if not more:
                    return None
                line += more
        return line.decode().strip()

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        _LOG.warning("The weight server did not come up; samplers read the files from now on.")
        with process:  # closes its input, and waits
            process.kill()
        self._answer.close()
        self.process = None


def _environment() -> dict[str, str]:
    """Return this process's environment, in which this package is found, after all others, wherever it lies."""
    path = (os.environ.get("PYTHONPATH"), str(Path(__file__).parents[3]))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
