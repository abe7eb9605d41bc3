"""What stands outside of the cluster: an S3 service whose token can expire, and a reward service that can fail."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

from brain_align.deploy.demo.truth import quality

BUCKET, FOLDER = "samples", "chaos"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
_EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"""

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class ObjectService:
    """S3 by moto. The run's address answers ExpiredToken while `expired` is set; that of the counting never does."""

    def __init__(self, address: str) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.expired = threading.Event()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._servers = [
            make_server(address, 0, self._answer, threaded=True, request_handler=MotoRequestHandler),
            make_server("127.0.0.1", 0, self._moto, threaded=True, request_handler=MotoRequestHandler),
        ]
        self._threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in self._servers]
        for thread in self._threads:
            thread.start()
        boto3.client(
            "s3",
            endpoint_url=f"http://{self._place(1)}",
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        ).create_bucket(Bucket=BUCKET)

    @property
    def uri(self) -> str:
        """The store's URI for the run."""
        return f"s3://{BUCKET}/{FOLDER}?endpoint_override={self._place(0)}&scheme=http&region=us-east-1"

    def files(self) -> tuple[fs.FileSystem, str]:
        """The store for reading, whatever the token."""
        files = fs.S3FileSystem(
            access_key=KEYS["AWS_ACCESS_KEY_ID"],
            secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=self._place(1),
            scheme="http",
            region="us-east-1",
        )
        return files, f"{BUCKET}/{FOLDER}"

    def end(self) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def _place(self, number: int) -> str:
        host, port = self._servers[number].server_address[:2]
        return f"{host!s}:{port}"

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if not self.expired.is_set():
            return self._moto(environ, start_response)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"].read(length)
        start_response("400 Bad Request", [("Content-Type", "application/xml"), ("Content-Length", str(len(_EXPIRED)))])
        return [_EXPIRED]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that lose their power or their network do not wait for an answer


class RewardService:
    """Answers with the true quality of summaries, one request at a time, each after `pace` seconds."""

    def __init__(self, address: str) -> None:
        self.pace = 0.0
        self.refused = 0  # requests while it failed
        self._failing = threading.Event()
        self._turn = threading.Lock()
        self._address = (address, 0)
        self._listen()

    @property
    def url(self) -> str:
        return f"http://{self._address[0]}:{self._address[1]}/score"

    def go_away(self) -> None:
        """Refuse connections."""
        self._failing.set()  # also those that are open
        self.end()

    def answer_503(self) -> None:
        """Listen again, and refuse every request."""
        self._listen()

    def come_back(self) -> None:
        self._failing.clear()

    def end(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _listen(self) -> None:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = service.answer(body["prompts"], body["outputs"])
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _Server(self._address, Handler)
        self._address = self._address[0], self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, prompts: list[str], outputs: list[str]) -> tuple[int, dict[str, Any]]:
        if self._failing.is_set():
            self.refused += 1
            return 503, {"error": "the reward service is down"}
        with self._turn:
            time.sleep(self.pace)
            return 200, {"scores": quality(prompts, outputs)}


@contextmanager
def outside(address: str) -> Iterator[tuple[ObjectService, RewardService]]:
    """Both services, until the block ends."""
    objects = ObjectService(address)
    try:
        rewards = RewardService(address)
        try:
            yield objects, rewards
        finally:
            rewards.end()
    finally:
        objects.end()
