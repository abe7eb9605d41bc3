"""The sources of models: a local directory, or the Hugging Face hub, without any code of the model's own."""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from brain_align.common.errors import UserError, first_line, refuse_unreadable

_PATIENCE = 10.0
"""Seconds in which the hub must answer at all."""


@dataclass(frozen=True)
class Source:
    """The place that a model, tokenizer or adapter comes from."""

    name: str  # a directory or a hub id
    revision: str | None  # on the hub; None: the newest
    local: bool  # whether it is a directory

    def arguments(self) -> dict[str, Any]:
        """Return what `from_pretrained` is given besides the name; the hub is tried once, and then left alone.

        Code that lies beside a model is never run, and nobody is asked whether to run it.
        """
        if not self.local:
            hub_failure()
        return {"local_files_only": self.local, "revision": self.revision, "trust_remote_code": False}

    def failure(self, what: str, error: BaseException) -> UserError:
        """Make the error for what could not be loaded from here, with what the user may have meant or lack."""
        if "trust_remote_code" in str(error):
            return UserError(
                f"The {what} in {self.name} needs Python code of its own (auto_map in its config.json), which is not "
                f"run here; only models that transformers itself implements are supported."
            )
        if self.local:
            return UserError(f"No {what} could be loaded from {self.name}: {first_line(error)}")
        where = f"{self.name}, which is not a local directory and so must be a hub id"
        return UserError(f"No {what} could be loaded from {where}: {hub_reason(error)}")


def find_source(source: str, what: str) -> Source:
    """Read a source: a directory, or a hub id ("owner/name", or a name alone) with "@revision" or not.

    Raises:
        UserError: it is not a directory, and cannot be a hub id either.
    """
    if is_local(source, what):
        return Source(source, None, local=True)
    name, _, revision = source.partition("@")
    return Source(name, revision or None, local=False)


def is_local(source: str, what: str) -> bool:
    """Return whether `source` is a local directory; if not, it can only be a hub id ("owner/name", or a name alone).

    Raises:
        UserError: it is not a directory, and cannot be a hub id either.
    """
    path = Path(source)
    try:
        os.listdir(path)
    except OSError as error:
        refuse_unreadable(path, error)
    else:
        return True
    if path.exists():
        raise UserError(f"{what}: {source} is a file; give the directory that holds it.")
    if path.is_absolute() or source.startswith((".", "~")) or source.partition("@")[0].count("/") > 1:
        raise UserError(f"{what}: the directory {source} does not exist on node {socket.gethostname()}.")
    return False


def hub_reason(error: BaseException) -> str:
    """Return why something could not be had from the hub: the hub is away, or what a library's error says."""
    if failure := hub_failure():
        return f"the hub's cache on this machine does not hold it, and {failure}"
    return first_line(error)


@cache
def hub_failure() -> str | None:
    """Return why the hub cannot be used, None where it can; tried once per process, without repetitions.

    A hub that does not answer is not asked again, by this process or those that it starts: each file would be tried
    several times, with a page of warnings and many seconds of waiting.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # noqa: BLE001 - whatever the HTTP library raises
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        return f"the hub ({constants.ENDPOINT}) cannot be reached ({first_line(error)})"
    return None
