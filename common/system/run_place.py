"""Whether an actor sees the run directory: a file of this start of the run must be where the run has written it."""

import os
import socket
import time
import uuid
from pathlib import Path

from brain_align.common.durable import write_file
from brain_align.common.errors import NotSharedError

VARIABLE = "BRAIN_START_FILE"
"""The environment variable of an actor that names the file."""
_PREFIX = ".start-"
_VISIBLE_WITHIN = 10.0  # seconds, for network file systems that remember what was not there
_LOOK_AGAIN = 0.5  # seconds


def mark_start(root: Path) -> Path:
    """Write the file of a new start into a run directory; those of former starts go."""
    for old in root.glob(f"{_PREFIX}*"):
        old.unlink(missing_ok=True)
    # A name that was never there before: what network file systems remember of a directory may be old.
    path = root / f"{_PREFIX}{uuid.uuid4().hex[:12]}"
    write_file(path, "")
    return path


def check_place() -> None:
    """Make sure that this process, an actor of a run, sees the run directory.

    Raises:
        NotSharedError: it does not.
    """
    name = os.environ.get(VARIABLE)
    deadline = time.monotonic() + _VISIBLE_WITHIN
    while name and not os.path.exists(name):
        if time.monotonic() > deadline:
            raise NotSharedError(
                f"Node {node_name()} does not see the run directory {Path(name).parent}; mount the same file system "
                f"there, at the same path, as on the node of `brain run`, or set run.dir to a place that all nodes see."
            )
        time.sleep(_LOOK_AGAIN)


def node_name() -> str:
    """Return this machine's name and address, as the other nodes see it."""
    name = socket.gethostname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("10.255.255.255", 9))  # sends nothing
            return f"{name} ({outward.getsockname()[0]})"
        except OSError:
            return name
