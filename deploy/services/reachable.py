"""Whether a Ray cluster answers at an address: Ray itself would try for many minutes, and then abort the process."""

import os
import socket
import subprocess
import sys

from brain_align.common.errors import UserError
from brain_align.common.uris import shown

_CONNECTING = 10.0  # seconds
_GREETING = 5.0  # seconds, for the first bytes
_ANSWERING = 15.0  # seconds, with the start of a process
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # the preface, and empty SETTINGS
_SETTINGS = 4  # the type of the frame with which a server of HTTP/2 begins, in the fourth byte
_ASK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).check_alive([], timeout=5)"
_PORT = "the port of a Ray cluster is usually 6379"
_CORRECT = "correct ray.address or RAY_ADDRESS"


def check_reachable(address: str | None) -> None:
    """Refuse an address, host:port, at which no Ray cluster answers, or none that lets this process in."""
    if address and "://" in address:
        raise UserError(
            f"{shown(address)} is the address of a Ray dashboard or of Ray Client, not of a Ray cluster, which is "
            f"host:port without a scheme; {_PORT}: {_CORRECT}, or use `ray job submit`."
        )
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit():
        return  # a cluster started here, `auto`, or an address that only Ray understands
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECTING)
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"No Ray cluster answers at {address}: {reason}; start it, or {_CORRECT}.") from None
    with connection:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            _check_protocol(address, connection)
    _check_cluster(f"{address}")


def _check_protocol(address: str | None, connection: socket.socket) -> None:
    """Tell Ray's ports from others: gRPC answers a client of HTTP/2 with its settings."""
    connection.settimeout(_GREETING)
    answer = b""
    try:
        connection.sendall(_HTTP2)
        while len(answer) < 5 and (more := connection.recv(64)):
            answer += more
    except OSError:
        pass  # closed, or silent
    if answer.startswith((b"HTTP", b"<")):
        raise UserError(f"{address} is a web server, perhaps the dashboard of a Ray cluster; {_PORT}: {_CORRECT}.")
    if len(answer) < 5 or answer[3] != _SETTINGS:
        tls = "" if answer else " or it wants TLS (RAY_USE_TLS=1)"
        raise UserError(f"What answers at {address} is not a Ray cluster,{tls or ' but another service'}; {_PORT}.")


def _check_cluster(address: str) -> None:
    """Ask in a process of its own: Ray ends a process whose token is missing, and waits for what does not answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, address], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWERING
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"What answers at {address} is not the head of a Ray cluster, or does not answer in time "
            f"({_ANSWERING:.0f} s); {_PORT}: {_CORRECT}."
        ) from None
    said = done.stderr.decode(errors="replace")
    if done.returncode and "token" in said.lower():
        raise UserError(
            f"The Ray cluster at {address} wants a token, and this process has none or a wrong one; set "
            f"RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (else ~/.ray/auth_token is read)."
        )
    if done.returncode:
        reason = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
        raise UserError(
            f"What answers at {address} is not the head of a Ray cluster ({reason or f'status {done.returncode}'}); "
            f"{_PORT}: {_CORRECT}."
        )
