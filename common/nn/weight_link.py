"""The way of a version's files from the learner's machine to a sampler's, without a file system between them.

A sampler that wants a version connects to the server that `version.json` names, says which one it means, and is told
the files' names and sizes, or why it gets none. The bytes then go through a process group that is made for them alone:
gloo, or NCCL between two GPUs. The connection stays open beside it until the receiver has everything.
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
from typing import Any, BinaryIO, Literal

import torch
from torch import distributed

from brain_align.common.errors import first_line

CHUNK = 64 * 2**20
"""Bytes that are sent in one go."""

_STALLED = 60.0
"""Seconds a chunk may take, whatever time is left: one that takes longer is not coming."""

_ROUNDING = 0.01
"""Seconds that a wait may outlast the deadline, which then is over for certain."""

_LONGEST_LINE = 2**20  # bytes; a model of a thousand shards needs a tenth of it
SENDER, RECEIVER = 0, 1
"""Ranks of a link."""

Transport = Literal["gloo", "nccl"]


class RefusedError(Exception):
    """The server has not what was asked for; the message says why."""


class LinkError(Exception):
    """A link broke; the message has torch's reason, without the line of its sources, and its advice."""


@dataclass(frozen=True)
class Question:
    """What a sampler asks for.

    Attributes:
        version: of the run's registry.
        digest: of the version's files; whoever knows it may have them.
        gpu: the identity of the receiver's GPU; None without one.
    """

    version: int
    digest: str
    gpu: str | None


@dataclass(frozen=True)
class Offer:
    """What it is about to be sent, and how.

    Attributes:
        files: names and sizes in bytes, in the order in which they come.
        transport: of the process group.
        port: of the store at which the two meet.
    """

    files: list[tuple[str, int]]
    transport: Transport
    port: int


class Deadline:
    """A moment after which nothing is waited for."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self, at_most: float = float("inf")) -> float:
        """Seconds until then.

        Raises:
            TimeoutError: it is over.
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
    """What the other side asks for.

    Raises:
        ValueError: it is no question.
    """
    facts = _read_line(lines)
    try:
        return Question(int(facts["version"]), str(facts["digest"]), facts["gpu"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a question: {error}") from error


def read_offer(lines: BinaryIO) -> Offer:
    """What the server offers.

    Raises:
        RefusedError: nothing.
        ValueError: it is no offer.
    """
    facts = _read_line(lines)
    if "refused" in facts:
        raise RefusedError(f"the server refuses it: {facts['refused']}")
    try:
        files = [(str(name), int(size)) for name, size in facts["files"]]
        return Offer(files, facts["transport"], int(facts["port"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an offer: {error}") from error


def _read_line(lines: BinaryIO) -> dict[str, Any]:
    line = lines.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise ConnectionError("the connection was closed in the middle of the handshake")
    facts = json.loads(line)
    if not isinstance(facts, dict):
        raise ValueError(f"not a message: {line[:80]!r}")
    return facts


def connect(address: str, deadline: Deadline, at_most: float) -> socket.socket:
    """A connection to the server at "host:port", on which every wait ends with the deadline.

    Args:
        address: of the server.
        deadline: of the whole transfer.
        at_most: seconds in which it must answer.

    Raises:
        OSError: nobody is there.
        TimeoutError: nobody answers.
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
    """What tells a GPU from all others; None for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


class Link:
    """A process group of two, made for one transfer.

    Every wait ends with the deadline (TimeoutError), or sooner where a chunk takes too long. That, a lost peer and
    whatever else breaks raise LinkError, and concern nothing but this link.
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
        """Meet the other side.

        Args:
            store: where the two meet.
            transport: as offered.
            rank: SENDER or RECEIVER.
            address: this machine's, as the other side sees it.
            device: with NCCL, the GPU through which the bytes go.
            deadline: of the whole transfer.
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
        """Fill `chunk` (uint8, in host memory, at most CHUNK) with what the other side sends as one."""
        target = chunk if self._staging is None else self._staging[: len(chunk)]
        with _link_errors(self._deadline):
            self._wait(self._group.recv([target], SENDER, 0))
            if self._staging is not None:
                chunk.copy_(target)

    def close(self) -> None:
        """End it, whatever is under way."""
        self._group.abort()

    def _wait(self, work: Any) -> None:
        work.wait(timedelta(seconds=self._deadline.left(_STALLED) + _ROUNDING))


def meeting_place(address: str, deadline: Deadline) -> distributed.TCPStore:
    """The store at which a sender and its receiver meet, on any free port of this address."""
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
            master_listen_fd=listener.detach(),  # it is the store's from here on
        )


def meet(address: str, port: int, deadline: Deadline) -> distributed.TCPStore:
    """The sender's store, seen from the receiver."""
    limit = timedelta(seconds=deadline.left(_STALLED))
    with _link_errors(deadline):
        return distributed.TCPStore(address, port, 2, is_master=False, timeout=limit)


@contextmanager
def _link_errors(deadline: Deadline) -> Iterator[None]:
    """Within it, torch's errors are LinkErrors, or TimeoutErrors where the time is over."""
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
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=deadline.left())
    with _errors_stay_with_the_caller():
        return distributed.ProcessGroupNCCL(store, rank, 2, options)


_ENVIRONMENT = threading.Lock()


@contextmanager
def _errors_stay_with_the_caller() -> Iterator[None]:
    """Within it, NCCL groups are made whose lost peers do not end this process, as torch's watchdog would have it."""
    wanted = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
    with _ENVIRONMENT:  # of all threads, and read when a group is made
        former = {name: os.environ.get(name) for name in wanted}
        os.environ |= wanted
        try:
            yield
        finally:
            for name, value in former.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
