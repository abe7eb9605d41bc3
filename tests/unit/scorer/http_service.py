"""An HTTP service on this machine, whose answers a test decides."""

import contextlib
import json
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
"""A request's body -> status, and JSON or raw bytes."""


@dataclass
class Service:
    """What it was asked, and where it is."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[Service]:
    service = Service()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                service.bodies.append(body)
                service.headers.append(dict(self.headers))
                service.paths.append(self.path)
            status, result = answer(body)
            data = result if isinstance(result, bytes) else json.dumps(result).encode()
            with contextlib.suppress(OSError):  # a client that no longer waits
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


@contextlib.contextmanager
def speaking(*answers: bytes | Callable[[socket.socket], None]) -> Iterator[str]:
    """Answer each request with some bytes, whatever they are, and close the connection; the last for all further ones.

    Yields the service's address.
    """
    left = list(answers)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked = self.request.recv(1 << 16)
            length = int(re.findall(rb"(?i)content-length: (\d+)", asked)[0])
            while len(asked.partition(b"\r\n\r\n")[2]) < length:
                asked += self.request.recv(1 << 16)
            answer = left.pop(0) if len(left) > 1 else left[0]
            with contextlib.suppress(OSError):  # a client that no longer listens
                self.request.sendall(answer) if isinstance(answer, bytes) else answer(self.request)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def said(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an answer of HTTP; `length` is what it says of its length, where that is not true."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body
