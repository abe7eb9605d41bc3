"""What answers where a Ray cluster is looked for: said in one sentence, and in time."""

import http.server
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from brain_align.common.errors import UserError
from brain_align.deploy.services import reachable
from brain_align.deploy.services.reachable import check_reachable

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@contextmanager
def service(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)
                connection.recv(1 << 16)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


def refusal(address: str) -> str:
    with pytest.raises(UserError) as refused:
        check_reachable(address)
    return str(refused.value)


def test_the_dashboard_is_a_web_server() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        said = refusal(address)
        thread.join()
    assert said.startswith(f"{address} is a web server, perhaps the dashboard of a Ray cluster; the port of a Ray")
    assert "6379" in said and "ray.address" in said


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example/", "ray://head:10001"])
def test_an_address_for_other_tools_of_ray_is_refused_at_once(address: str) -> None:
    said = refusal(address)
    assert said.startswith(f"{address.rstrip('/')} is the address of a Ray dashboard or of Ray Client, not of a Ray")
    assert "6379" in said and "RAY_ADDRESS" in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda it: it.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), " is a web server, perhaps the dashboard"),
        (lambda it: it.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"), " is not a Ray cluster, but another service; the port"),
        (lambda it: it.shutdown(socket.SHUT_WR), " is not a Ray cluster, or it wants TLS (RAY_USE_TLS=1); the port"),
        (lambda it: None, " is not a Ray cluster, or it wants TLS (RAY_USE_TLS=1); the port"),
    ],
)
def test_another_service_is_not_taken_for_a_cluster(
    answer: Callable[[socket.socket], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachable, "_GREETING", 0.3)
    with service(answer) as address:
        assert f"{address}{said}" in refusal(address)


ASKED = "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or incorrect."


@pytest.mark.parametrize(
    ("status", "stderr", "said"),
    [
        (
            1,
            ASKED,
            "wants a token, and this process has none or a wrong one; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN",
        ),
        (-6, "C  Token authentication is enabled but no token was found\n*** stack", "wants a token"),
        (
            1,
            "ray.exceptions.RpcError: RPC error: Unimplemented\n",
            "is not the head of a Ray cluster (ray.exceptions.Rpc",
        ),
        (-6, "", "is not the head of a Ray cluster (status -6)"),
        (None, "", "is not the head of a Ray cluster, or does not answer in time"),
        (0, "W warning about a token\n", None),
    ],
)
def test_what_speaks_ray_s_protocol_is_asked_in_a_process_of_its_own(
    status: int | None, stderr: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(command: list[str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        assert command[-1] == address
        if status is None:
            raise subprocess.TimeoutExpired(command, 15)
        return subprocess.CompletedProcess(command, status, b"", stderr.encode())

    monkeypatch.setattr(subprocess, "run", answered)
    with service(lambda it: it.sendall(SETTINGS)) as address:
        if said is None:
            check_reachable(address)
        else:
            assert said in refusal(address)


@pytest.mark.parametrize("address", [None, "auto", "local"])
def test_what_only_ray_understands_is_left_to_it(address: str | None) -> None:
    check_reachable(address)


@pytest.mark.parametrize("address", ["no-such-host.invalid:6379", "127.0.0.1:1", "127.0.0.1:99999", "[::1]:1"])
def test_a_place_without_anything_is_said_at_once(address: str) -> None:
    assert refusal(address).startswith(f"No Ray cluster answers at {address}: ")
