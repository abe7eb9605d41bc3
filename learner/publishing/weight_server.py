"""The server of published versions' files, for `sampler.delivery=transfer`.

It is a process beside rank 0, on the same machine, so that a failed transfer (and NCCL's watchdog) never affects the
learner, and transfers take no time from its thread. It reads files that rank 0 has just written, which are still in the
page cache, and keeps no state. It ends with rank 0.
"""

import hmac
import logging
import os
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

import torch

from brain_align.common.errors import first_line
from brain_align.common.nn.weight_link import (
    CHUNK,
    SENDER,
    Deadline,
    Link,
    LinkError,
    Offer,
    Question,
    RefusedError,
    Transport,
    gpu_identity,
    meeting_place,
    read_question,
    write_line,
)
from brain_align.common.policies import PolicyRegistry, ProposalVersion, UnreadableVersionError

_LOG = logging.getLogger(__name__)

_GPU = torch.device("cuda", 0)
"""Rank 0's GPU, if it has one: Ray hides all others from it."""

_AT_ONCE = 16
"""Simultaneous transfers; further clients wait until one has ended."""

_HANDSHAKE = 30.0
"""Seconds in which a client must send its question, as a whole."""

_UNKNOWN = 64
"""Clients that have not sent their question yet; of more, each is sent away."""

_LONGEST_ANSWER = 16
"""Bytes that a client sends after its question, at most."""

_PAUSE = 1.0
"""Seconds until the next attempt to accept clients after a failed one."""


class WeightServer:
    """Answers each client in a thread of its own; a client that breaks off affects only its own transfer.

    `host` is this machine's address, as samplers see it; `time_limit` is in seconds per transfer.

    Attributes:
        address: "host:port", where it listens.
    """

    def __init__(self, registry: PolicyRegistry, host: str, time_limit: float) -> None:
        self._registry = registry
        self._time_limit = time_limit
        self._listener = socket.create_server((host, 0))
        self._closed = False
        self._room = threading.Semaphore(_AT_ONCE)
        self._unknown = threading.Semaphore(_UNKNOWN)
        self.address = f"{host}:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Answer clients until `close`."""
        while True:
            try:
                connection, (client, *_) = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                _LOG.warning("No client is accepted for %g s: %s", _PAUSE, error)  # such as too many open files
                time.sleep(_PAUSE)
                continue
            if not self._unknown.acquire(blocking=False):
                _LOG.warning("No version for %s: %d clients have not sent their question yet", client, _UNKNOWN)
                connection.close()
                continue
            threading.Thread(target=self._answer, args=(connection, client), daemon=True).start()

    def close(self) -> None:
        """Accept no more clients."""
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _answer(self, connection: socket.socket, client: str) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                question = self._question(connection, lines)
                try:
                    version = self._asked(question)
                except RefusedError as error:
                    write_line(connection, str(error))
                    raise
                with self._room:
                    began = time.monotonic()
                    sent = self._send(version, _transport(question), connection, lines)
                seconds = time.monotonic() - began
                _LOG.info("Version %d: %s to %s in %.2f s.", version.version, sent, client, seconds)
        except (OSError, ValueError, LinkError, RefusedError) as error:
            _LOG.warning("No version for %s: %s", client, first_line(error))

    def _question(self, connection: socket.socket, lines: BinaryIO) -> Question:
        """Read the question of a client that nobody knows yet: briefly, and at most `_UNKNOWN` of them at once."""
        timer = threading.Timer(_HANDSHAKE, _hang_up, [connection])  # a time limit of the socket is one per packet
        timer.daemon = True
        timer.start()
        connection.settimeout(_HANDSHAKE)  # for a refusal, too
        try:
            return read_question(lines)
        finally:
            timer.cancel()
            self._unknown.release()

    def _send(self, version: ProposalVersion, transport: Transport, connection: socket.socket, lines: BinaryIO) -> str:
        """Send a version; return a summary for the log."""
        deadline = Deadline(self._time_limit)
        host: str = connection.getsockname()[0]
        store = meeting_place(host, deadline)
        files = [(name, (version.path / name).stat().st_size) for name in version.files]
        offer = Offer(files, transport, store.port)
        connection.settimeout(deadline.left())
        write_line(connection, offer)
        if not lines.readline(_LONGEST_ANSWER):
            raise ConnectionError("it has closed the connection")
        link = Link(store, transport, SENDER, host, _GPU, deadline)
        with closing(link):
            buffer = torch.empty(CHUNK, dtype=torch.uint8)
            for name, size in files:
                _send_file(link, version.path / name, size, buffer)
            connection.settimeout(deadline.left())
            lines.read(_LONGEST_ANSWER)  # until the receiver closes it: bytes under way must not be cut off
        return f"{sum(size for _, size in files)} bytes over {transport}"

    def _asked(self, question: Question) -> ProposalVersion:
        """Return the requested version; a refusal reveals nothing that the client did not know, above all no digest.

        Raises:
            RefusedError: it is not here, or has another digest.
        """
        try:
            version = self._registry.get(question.version)
        except UnreadableVersionError as error:
            _LOG.warning("%s", error)
            raise RefusedError(f"version {question.version} is not published here") from error
        if not hmac.compare_digest(version.digest.encode(), question.digest.encode()):
            _LOG.warning("%s has digest %s, but %r was asked for.", version.path, version.digest, question.digest)
            raise RefusedError(f"version {question.version} is not the one that was asked for")
        return version


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)


def _transport(question: Question) -> Transport:
    """Choose NCCL between two GPUs (it refuses two processes on one), and gloo otherwise."""
    ours = gpu_identity(_GPU) if torch.cuda.is_available() else None
    return "gloo" if None in (ours, question.gpu) or ours == question.gpu else "nccl"


def _send_file(link: Link, path: Path, size: int, buffer: torch.Tensor) -> None:
    with open(path, "rb") as file:
        for begin in range(0, size, CHUNK):
            chunk = buffer[: min(CHUNK, size - begin)]
            if file.readinto(chunk.numpy().data) != len(chunk):
                raise OSError(f"{path} is shorter than when its size was read")
            link.send(chunk)


def main() -> None:
    """Serve until standard input ends: `python -m … REGISTRY HOST SECONDS DESCRIPTOR`.

    The address is written to the file descriptor, apart from anything that this process prints.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s weight server: %(message)s")
    root, host, time_limit, answer = sys.argv[1:]
    server = WeightServer(PolicyRegistry(Path(root)), host, float(time_limit))
    threading.Thread(target=_end_with_input, daemon=True).start()
    with open(int(answer), "w", encoding="utf-8") as pipe:
        print(server.address, file=pipe)
    server.serve()  # if it fails, so does the process, which is restarted


def _end_with_input() -> None:
    sys.stdin.read()  # ends when the process at the other end does
    os._exit(0)  # transfers may be under way


if __name__ == "__main__":
    main()
