"""Why Ray lost an actor, in a few words: Ray's own text is a page, and its error's name alone says nothing."""

import re

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError

from brain_align.common.errors import first_line

_EXIT_CODE = re.compile(r"exit code (\d+)")
_ADDRESS = re.compile(r"^\s*ip: (\S+)$|\(IP: ([^,)]+)", re.MULTILINE)
_KILLED_OR_CRASHED = "its process was killed by SIGKILL (kill -9, or the kernel when memory ran out) or crashed"
_WORDS = (  # in Ray's text, in this order, and what they mean
    ("node has died", "its node died or was cut off"),
    ("node was terminated", "its node died or was cut off"),
    ("running low on memory", "Ray ended it, because its node ran out of memory"),
    ("killed by `ray.kill`", "it was ended"),
    ("an error raised in its creation task", "it could not be created"),
    ("connection error code 2", _KILLED_OR_CRASHED),
)


def cause(error: RayError) -> str:
    """Return why an actor was lost, and on which node, as far as Ray knows."""
    text = str(error)
    why = next((meaning for words, meaning in _WORDS if words in text), None)
    if isinstance(error, OutOfMemoryError):
        why = "Ray ended it, because its node ran out of memory"
    elif isinstance(error, ActorUnavailableError):
        why = "its process or its node cannot be reached"
    elif found := _EXIT_CODE.search(text):
        why = f"its process ended with exit code {found[1]}"
    if why == "it could not be created":
        why = f"{why}: {text.strip().splitlines()[-1]}"
    node = _node(text)
    return f"{why or first_line(error)}{f', on node {node}' if node else ''}; {type(error).__name__}"


def _node(text: str) -> str | None:
    found = _ADDRESS.search(text)
    if found is None:
        return None
    address = found[1] or found[2]
    try:
        names = {node["NodeManagerAddress"]: node["NodeManagerHostname"] for node in ray.nodes()}
    except Exception:  # noqa: BLE001 - the address alone will do
        names = {}
    return f"{names[address]} ({address})" if address in names else address
