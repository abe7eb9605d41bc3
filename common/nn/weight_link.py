"""The protocol that sends a version's files from the learner's machine to a sampler's, without a shared file system.

A sampler connects to the server that `version.json` names and asks for a version. The server answers with the files'
names and sizes, or with a refusal. The bytes then go through a process group of their own: gloo, or NCCL between two
GPUs. The connection stays open beside it until the receiver has everything.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, BinaryIO, Literal, get_args

import torch
from torch import distributed

from brain_align.common.errors import first_line

CHUNK = 64 * 2**20
"""Bytes per message."""

_STALLED = 60.0
"""Seconds that a chunk may take, however much time is left."""

_ROUNDING = 0.01
"""Seconds by which a wait outlasts the deadline, so that the deadline has certainly passed when it ends."""

_LONGEST_LINE = 2**20  # bytes; a model of a thousand shards needs a tenth of it
_LONGEST_QUESTION = 4096
_LONGEST_TEXT = 1024  # characters of a digest, a GPU's identity and a file's name
_LARGEST_NUMBER = 2**50  # bytes of a file, or a version
SENDER, RECEIVER = 0, 1
"""Ranks of a link."""

_NO_WATCHDOG = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
_ENVIRONMENT = threading.Lock()

Transport = Literal["gloo", "nccl"]


class RefusedError(Exception):
    """The server does not have the requested version; the message gives the reason."""


class LinkError(Exception):
    """A link broke; the message has torch's reason, without torch's source lines and advice."""


@dataclass(frozen=True)
class Question:
    """A sampler's request for a version."""

    version: int  # its number in the run's registry
    digest: str  # of its files; only clients that know it receive them
    gpu: str | None  # the identity of the receiver's GPU; None without one


@dataclass(frozen=True)
class Offer:
    """The server's answer: the files that it is about to send."""

    files: list[tuple[str, int]]  # names and sizes in bytes, in the order of sending
    transport: Transport
    port: int  # of the store at which the two processes meet


class Deadline:
    """A moment at which all waits end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self, at_most: float = float("inf")) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: none are left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took longer than {self._seconds:g} s")
        return min(left, at_most)


def write_line(connection: socket.socket, message: Question | Offer | str) -> None:
    """Send one message of the handshake; a string is a refusal."""
    facts = {"refused": message} if isinstance(message, str) else asdict(message)
    connection.sendall(json.dumps(facts).encode() + b"\n")


def read_question(lines: BinaryIO) -> Question:
    """Read a sampler's request.

    Raises:
        ValueError: the message is not a question.
    """
    facts = _read_line(lines, _LONGEST_QUESTION)
    gpu = facts.get("gpu")
    return Question(_number(facts, "version"), _text(facts, "digest"), None if gpu is None else _text(facts, "gpu"))


def read_offer(lines: BinaryIO) -> Offer:
    """Read the server's answer.

    Raises:
        RefusedError: it refuses.
        ValueError: the message is not an offer.
    """
    facts = _read_line(lines, _LONGEST_LINE)
    if "refused" in facts:
        raise RefusedError(f"the server refuses it: {_text(facts, 'refused')}")
    files, port = facts.get("files"), _number(facts, "port")
    transport = next((one for one in get_args(Transport) if one == facts.get("transport")), None)
    if not isinstance(files, list) or transport is None or not 0 < port < 2**16:
        raise ValueError("not an offer: it names no files, no transport or no port")
    offered = [dict(zip(("name", "size"), file, strict=False)) if isinstance(file, list) else {} for file in files]
    return Offer([(_text(file, "name"), _number(file, "size")) for file in offered], transport, port)


def _number(facts: dict[str, Any], name: str) -> int:
    value = facts.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_NUMBER:
        raise ValueError(f"a message without a number as {name}")
    return value


def _text(facts: dict[str, Any], name: str) -> str:
    value = facts.get(name)
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise ValueError(f"a message without a text as {name}")
    return value


def _read_line(lines: BinaryIO, longest: int) -> dict[str, Any]:
    line = lines.readline(longest)
    if not line.endswith(b"\n"):
        raise ConnectionError("the connection was closed in the middle of the handshake, or it sent too long a line")
    try:
        facts = json.loads(line)
    except RecursionError:
        raise ValueError("not a message: it is nested too deeply") from None
    if not isinstance(facts, dict):
        raise ValueError(f"not a message: {line[:80]!r}")
    return facts


def connect(address: str, deadline: Deadline, at_most: float) -> socket.socket:
    """Connect to the server at "host:port"; every wait on the connection ends with the deadline.

    Raises:
        OSError: nothing listens there.
        TimeoutError: the server does not accept within `at_most` seconds.
    """
    host, _, port = address.rpartition(":")
    limit = deadline.left(at_most)
    try:
        connection = socket.create_connection((host, int(port)), limit)
    except TimeoutError as error:
        raise TimeoutError(f"the server did not answer within {limit:.3g} s") from error
    connection.settimeout(deadline.left())
    return connection


def gpu_identity(device: torch.device) -> str | None:
    """Return the unique id of a GPU; None for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


class Link:
    """A process group of two, made for one transfer.

    Every wait ends with the deadline (TimeoutError). A chunk that takes too long, a lost peer and other failures raise
    LinkError, and affect only this link.
    """

    def __init__(
        self,
        store: distributed.TCPStore,
        transport: Transport,
        rank: int,
        address: str,
        device: torch.device,
        deadline: Deadline,
    ) -> None:
        """Meet the other side at the store that both use, as `rank` SENDER or RECEIVER.

        Gloo listens on this machine's address, as the other side sees it. With NCCL, the bytes pass through the device.
        """
        self._deadline = deadline
        self._staging: torch.Tensor | None = None
        with _link_errors(deadline):
            if transport == "nccl":
                self._staging = torch.empty(CHUNK, dtype=torch.uint8, device=device)
                self._group = _nccl_group(store, rank, deadline)
            else:
                self._group = _gloo_group(store, rank, address, deadline)

    def send(self, chunk: torch.Tensor) -> None:
        """Send bytes (uint8, in host memory, at most CHUNK)."""
        with _link_errors(self._deadline):
            if self._staging is not None:
                chunk = self._staging[: len(chunk)].copy_(chunk)
            self._wait(self._group.send([chunk], RECEIVER, 0))

    def receive(self, chunk: torch.Tensor) -> None:
        """Fill `chunk` (uint8, in host memory, at most CHUNK) with one message of the other side."""
        target = chunk if self._staging is None else self._staging[: len(chunk)]
        with _link_errors(self._deadline):
            self._wait(self._group.recv([target], SENDER, 0))
            if self._staging is not None:
                chunk.copy_(target)

    def close(self) -> None:
        """Abort the link and anything under way on it."""
        self._group.abort()

    def _wait(self, work: Any) -> None:
        work.wait(timedelta(seconds=self._deadline.left(_STALLED) + _ROUNDING))


def meeting_place(address: str, deadline: Deadline) -> distributed.TCPStore:
    """Make the store at which a sender and its receiver meet, on any free port of this address."""
    limit = timedelta(seconds=deadline.left())
    listener = socket.create_server((address, 0))  # torch's own would listen on all of the machine's addresses
    port = listener.getsockname()[1]
    with _link_errors(deadline):
        return distributed.TCPStore(
            address,
            port,
            2,
            is_master=True,
            timeout=limit,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),  # the store owns it from here on
        )


def meet(address: str, port: int, deadline: Deadline) -> distributed.TCPStore:
    """Connect the receiver to the sender's store."""
    limit = timedelta(seconds=deadline.left(_STALLED))
    with _link_errors(deadline):
        return distributed.TCPStore(address, port, 2, is_master=False, timeout=limit)


@contextmanager
def _link_errors(deadline: Deadline) -> Iterator[None]:
    """Turn torch's errors in the block into LinkErrors, or TimeoutErrors after the deadline."""
    try:
        yield
    except RuntimeError as error:  # torch has nothing narrower
        deadline.left()
        raise LinkError(re.sub(r"^\[\S*\] ", "", first_line(error)).split(". ")[0]) from error


def _gloo_group(store: distributed.TCPStore, rank: int, address: str, deadline: Deadline) -> Any:
    gloo = distributed.ProcessGroupGloo
    options = gloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=deadline.left(_STALLED))
    options._devices = [gloo.create_device(hostname=address)]  # the host's name may stand for its loopback device
    return gloo(store, rank, 2, options)


def _nccl_group(store: distributed.TCPStore, rank: int, deadline: Deadline) -> Any:
    """Make an NCCL group whose lost peer raises an error, where torch's watchdog would end the process."""
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=deadline.left())
    with _ENVIRONMENT:  # shared by all threads, and read when a group is made
        former = {name: os.environ[name] for name in _NO_WATCHDOG if name in os.environ}
        os.environ |= _NO_WATCHDOG
        try:
            return distributed.ProcessGroupNCCL(store, rank, 2, options)
        finally:
            for name in _NO_WATCHDOG:
                del os.environ[name]
            os.environ |= former
