"""Reception of a version's files from the learner's weight server into this process's memory, verified.

It runs in vLLM's worker processes, in a thread beside the model, which samples on; nothing here depends on vLLM.
"""

import mmap
import os
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from brain_align.common.errors import first_line
from brain_align.common.identity import digest_contents
from brain_align.common.nn.weight_link import (
    CHUNK,
    RECEIVER,
    Deadline,
    Link,
    LinkError,
    Offer,
    Question,
    RefusedError,
    connect,
    gpu_identity,
    meet,
    read_offer,
    write_line,
)
from brain_align.sampler.weights.free_memory import free_memory

_CONNECTING = 30.0
"""Seconds in which the server must accept a connection; its offer may have to wait for other clients."""


@dataclass
class WeightSource:
    """The server and the version to ask it for."""

    server: str  # "host:port" of a weight server
    version: int
    digest: str  # of its files; other files are rejected
    time_limit: float  # seconds for the transfer, including the computation of the digest


class NotReceivedError(Exception):
    """A version was not received, and the engine is as before; the message gives the reason."""


class _AbandonedError(Exception):
    """The version is no longer wanted."""


class Reception:
    """A transfer of a version into memory; starts at once, in a thread of its own.

    Its files have no names in any file system, and vanish when they are released or the process ends.

    Args:
        source: the server to ask, and the version.
        device: of the model that the files are for; the bytes go into host memory in any case.
        receptions: number that start on this machine at the same time: one per worker of the engine.
    """

    def __init__(self, source: WeightSource, device: torch.device, receptions: int = 1) -> None:
        self._source = source
        self._device = device
        self._receptions = receptions
        self._files: dict[str, BinaryIO] = {}
        self._failure: str | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._abandoned = False
        threading.Thread(target=self._run, name="receives-weights", daemon=True).start()

    def progress(self) -> tuple[bool, str | None]:
        """Return whether it has ended, and the reason if it has failed."""
        return self._ended.is_set(), self._failure

    def files(self) -> dict[str, Path]:
        """Return where each file can be opened, by name, until the files are released.

        Raises:
            RuntimeError: not all of them have arrived.
        """
        if not self._ended.is_set() or self._failure is not None or self._abandoned:
            raise RuntimeError(f"version {self._source.version} was not received")
        return self._places()

    def release(self) -> None:
        """Drop the files, or stop the transfer after the present chunk."""
        with self._lock:
            self._abandoned = True
            if self._ended.is_set():
                self._close()

    def _run(self) -> None:
        failure: str | None = "its thread broke off; see the log"
        try:
            self._receive()
            failure = None
        except (OSError, ValueError, MemoryError, RefusedError, LinkError, _AbandonedError) as error:
            failure = first_line(error)
        finally:
            with self._lock:
                self._failure = failure
                self._ended.set()
                if self._abandoned or failure is not None:
                    self._close()

    def _receive(self) -> None:
        source = self._source
        deadline = Deadline(source.time_limit)
        question = Question(source.version, source.digest, gpu_identity(self._device))
        with connect(source.server, deadline, _CONNECTING) as connection, connection.makefile("rb") as lines:
            write_line(connection, question)
            offer = _offered(lines, source.time_limit)
            _check_memory(sum(size for _, size in offer.files), self._receptions)
            store = meet(connection.getpeername()[0], offer.port, deadline)
            connection.sendall(b"here\n")
            address: str = connection.getsockname()[0]
            link = Link(store, offer.transport, RECEIVER, address, self._device, deadline)
            with closing(link):
                for name, size in offer.files:
                    self._receive_file(link, name, size)
        actual = digest_contents(self._places())
        deadline.left()
        if actual != source.digest:
            raise ValueError(f"the received files have digest {actual}, but the published ones have {source.digest}")

    def _receive_file(self, link: Link, name: str, size: int) -> None:
        file = os.fdopen(os.memfd_create("version"), "r+b")
        self._files[name] = file
        if size == 0:
            return
        os.posix_fallocate(file.fileno(), 0, size)
        target = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
        for chunk in target.split(CHUNK):
            if self._abandoned:
                raise _AbandonedError("it is no longer wanted")
            link.receive(chunk)

    def _places(self) -> dict[str, Path]:
        return {name: Path(f"/proc/self/fd/{file.fileno()}") for name, file in self._files.items()}

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def _offered(lines: BinaryIO, time_limit: float) -> Offer:
    try:
        return read_offer(lines)
    except TimeoutError as error:  # it may be serving too many clients
        raise TimeoutError(f"the server did not answer within {time_limit:g} s") from error


def _check_memory(needed: int, receptions: int) -> None:
    """Refuse a version that does not fit into this machine's memory, before the kernel kills a process for it.

    Memory that other receptions have taken already is counted twice, which errs on the safe side.

    Raises:
        MemoryError: there is too little memory.
    """
    free = free_memory()
    if needed * receptions > free:
        raise MemoryError(
            f"the version needs {needed} bytes for each of {receptions} workers, but {free} bytes of memory are free"
        )
