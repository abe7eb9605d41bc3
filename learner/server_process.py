"""The process that serves published versions (learner/weight_server.py), as rank 0 starts it."""

import logging
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

_LOG = logging.getLogger(__name__)

_START_LIMIT = 120.0  # seconds: it imports torch


class WeightServerProcess:
    """A running weight server; without it samplers take the files, so that nothing of what fails here is an error.

    Args:
        policies: the registry's directory.
        host: this machine's address, as samplers see it.
        time_limit: seconds for one transfer.

    Attributes:
        process: the one that was started last.
    """

    def __init__(self, policies: Path, host: str, time_limit: float) -> None:
        self._command = [sys.executable, "-m", "learner.weight_server", str(policies), host, str(time_limit)]
        self._answer: BinaryIO  # what the address comes through
        self._address: str | None = None
        self.process = self._start()

    def address(self) -> str | None:
        """Where it can be asked, as soon as it is up; None where it does not come up. Started again if it has ended."""
        if self.process.poll() is not None:
            _LOG.warning("The weight server has ended (%d); it is started again.", self.process.returncode)
            self._answer.close()
            self._address, self.process = None, self._start()
        if self._address is None:
            self._address = self._said()
        return self._address

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = os.pipe()
        self._answer = os.fdopen(ours, "rb", buffering=0)
        try:
            # Its input ends when this process does, and so does the server. What it prints goes where this one's does.
            return subprocess.Popen([*self._command, str(theirs)], stdin=subprocess.PIPE, pass_fds=[theirs])
        finally:
            os.close(theirs)

    def _said(self) -> str | None:
        """The line that it sends when it is up."""
        deadline = time.monotonic() + _START_LIMIT
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._answer], [], [], max(0.0, left))
            more = self._answer.read(4096) if ready else b""
            if not more:
                _LOG.warning("The weight server did not come up; samplers take the files of this version.")
                return None
            line += more
        return line.decode().strip()
