"""A version's way from the learner's weight server into a sampler's memory, over gloo, and what may befall it."""

import contextlib
import errno
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from brain_align.common.nn import weight_link
from brain_align.common.nn.weight_link import LinkError, Offer, Question, read_offer, read_question, write_line
from brain_align.common.policies import PolicyRegistry, ProposalVersion
from brain_align.learner.publishing import server_process, weight_server
from brain_align.learner.publishing.server_process import WeightServerProcess
from brain_align.learner.publishing.weight_server import WeightServer
from brain_align.sampler.weights import receiving
from brain_align.sampler.weights.receiving import Reception, WeightSource
from tests.unit.factories import PROBE

CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 41, "sub/empty": b""}
CPU = torch.device("cpu")


def write(directory: Path) -> None:
    for name, content in CONTENTS.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def write_large(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(bytes(weight_link.CHUNK) * 4)


@pytest.fixture
def version(tmp_path: Path) -> ProposalVersion:
    return PolicyRegistry(tmp_path / "policies").publish(3, 0, write, PROBE)


@pytest.fixture
def server(version: ProposalVersion, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    """Sends in chunks of 1,000 bytes."""
    for module in (weight_server, receiving):
        monkeypatch.setattr(module, "CHUNK", 1000)
    started = WeightServer(PolicyRegistry(version.path.parent), "127.0.0.1", 60)
    threading.Thread(target=started.serve, daemon=True).start()
    yield started
    started.close()


def asked(server: str, version: ProposalVersion, time_limit: float = 40) -> Reception:
    return Reception(WeightSource(server, version.version, version.digest, time_limit), CPU)


def outcome(reception: Reception, within: float = 40) -> str | None:
    """Why it failed, once it has ended."""
    end = time.monotonic() + within
    while not reception.progress()[0]:
        assert time.monotonic() < end
        time.sleep(0.01)
    return reception.progress()[1]


def received(reception: Reception) -> dict[str, bytes]:
    assert outcome(reception) is None
    return {name: place.read_bytes() for name, place in reception.files().items()}


def test_a_version_arrives_as_it_was_published_until_it_is_released(version, server: WeightServer) -> None:
    reception = asked(server.address, version)
    assert received(reception) == CONTENTS
    place = reception.files()["config.json"]
    reception.release()
    assert not place.exists()
    with pytest.raises(RuntimeError, match="version 3 was not received"):
        reception.files()


def test_several_are_served_at_once(version: ProposalVersion, server: WeightServer) -> None:
    receptions = [asked(server.address, version) for _ in range(5)]
    assert all(received(reception) == CONTENTS for reception in receptions)


@pytest.mark.parametrize(
    ("number", "digest", "why"),
    [
        (4, "", "version 4 is not published here"),
        (3, "another", "version 3 is not the one that was asked for"),
        (3, "not ä digest", "version 3 is not the one that was asked for"),
    ],
)
def test_what_the_server_has_not_is_refused_and_only_its_log_has_digest_and_path(
    version, server: WeightServer, caplog: pytest.LogCaptureFixture, number: int, digest: str, why: str
) -> None:
    with caplog.at_level(logging.WARNING, "brain_align.learner"):
        failure = outcome(Reception(WeightSource(server.address, number, digest, 10), CPU))
        assert failure == f"the server refuses it: {why}"  # neither digest nor path
        assert received(asked(server.address, version)) == CONTENTS
    assert str(version.path.parent) in caplog.text


def test_where_the_bytes_go_through_is_open_on_no_other_address() -> None:
    store = weight_link.meeting_place("127.0.0.1", weight_link.Deadline(10))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port), 5)
    with socket.create_connection(("127.0.0.1", store.port), 5):
        pass


def test_bytes_that_are_not_the_published_ones_are_not_taken(version, server: WeightServer) -> None:
    (version.path / "model.safetensors").write_bytes(CONTENTS["model.safetensors"][:-1] + b"x")
    reception = asked(server.address, version)
    assert "the received files have digest" in (outcome(reception) or "")
    with pytest.raises(RuntimeError):
        reception.files()


def test_a_version_that_memory_has_no_room_for_is_not_received(
    version, server: WeightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "free_memory", lambda: 20_000)
    assert received(asked(server.address, version)) == CONTENTS
    source = WeightSource(server.address, version.version, version.digest, 40)
    failure = "the version needs 10498 bytes for each of 2 workers, but 20000 bytes of memory are free"
    assert outcome(Reception(source, CPU, receptions=2)) == failure


def test_nobody_there_is_said_at_once(version: ProposalVersion) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    assert "Connection refused" in (outcome(asked(address, version), within=5) or "")


def test_a_server_that_does_not_answer_is_said_with_the_time_that_it_had(version: ProposalVersion) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reception = asked(f"127.0.0.1:{silent.getsockname()[1]}", version, time_limit=0.5)
        assert outcome(reception) == "the server did not answer within 0.5 s"


def test_what_torch_adds_to_a_reason_is_left_out() -> None:
    advice = "[/pytorch/gloo.cc:1] Connection closed by peer [127.0.0.1]:7. This may mean trouble. GLHF!"
    link_errors = weight_link._link_errors(weight_link.Deadline(10))
    with pytest.raises(LinkError, match=r"^Connection closed by peer \[127.0.0.1\]:7$"), link_errors:
        raise RuntimeError(advice)


def vanish_after_the_offer(connection: socket.socket, question: Question) -> None:
    """An asker that is killed when the bytes should come."""
    write_line(connection, question)
    with connection.makefile("rb") as lines:
        read_offer(lines)


def say_nothing(_connection: socket.socket, _question: Question) -> None:
    pass


def talk_nonsense(connection: socket.socket, _question: Question) -> None:
    connection.sendall(b"[1, 2]\n")


@pytest.mark.parametrize("behave", [vanish_after_the_offer, say_nothing, talk_nonsense])
def test_an_asker_that_breaks_off_costs_the_server_nothing(
    version, server: WeightServer, behave: Callable[[socket.socket, Question], None]
) -> None:
    host, _, port = server.address.rpartition(":")
    began = time.monotonic()
    for _ in range(20):  # more than it serves at once
        with socket.create_connection((host, int(port))) as connection:
            behave(connection, Question(version.version, version.digest, None))
    assert received(asked(server.address, version)) == CONTENTS
    assert time.monotonic() - began < 30  # less than the server's limit: it need not wait for who has left


def test_askers_that_say_nothing_are_bounded_in_number_and_time(version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_server, "_HANDSHAKE", 0.5)
    monkeypatch.setattr(weight_server, "_UNKNOWN", 3)
    started = WeightServer(PolicyRegistry(version.path.parent), "127.0.0.1", 60)
    threading.Thread(target=started.serve, daemon=True).start()
    host, _, port = started.address.rpartition(":")
    began = time.monotonic()
    with contextlib.ExitStack() as idle:
        dripping, *others = [idle.enter_context(socket.create_connection((host, int(port)))) for _ in range(3)]
        time.sleep(0.1)
        with socket.create_connection((host, int(port)), timeout=10) as one_more:
            assert one_more.recv(1) == b""  # at once
        assert time.monotonic() - began < 0.5
        with contextlib.suppress(OSError):  # the server hangs up, although there is always something to read
            while time.monotonic() - began < 10:
                dripping.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < 5
        assert all(other.recv(1) == b"" for other in others)
    assert received(asked(started.address, version)) == CONTENTS
    started.close()


DEEP = b"[" * 3000


@pytest.mark.parametrize(
    "line",
    [
        b'{"version": 1e999, "digest": "d", "gpu": null}',
        b'{"version": -1, "digest": "d", "gpu": null}',
        b'{"version": true, "digest": "d", "gpu": null}',
        b'{"version": ' + b"9" * 3000 + b', "digest": "d", "gpu": null}',
        b'{"version": 1, "digest": ["d"], "gpu": null}',
        b'{"version": 1, "digest": "d", "gpu": {"a": 1}}',
        b'{"version": 1, "digest": "' + b"d" * 5000 + b'", "gpu": null}',
        DEEP,
        b"",
        b"\xff",
    ],
)
def test_what_is_no_question_is_refused_as_such(line: bytes) -> None:
    with pytest.raises((ValueError, ConnectionError)):
        read_question(io.BytesIO(line + b"\n"))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [["a", -1]]},
        {"files": [["a", 1e300]]},
        {"files": [["a"]]},
        {"files": ["ab"]},
        {"files": [[1, 2]]},
        {"files": {"a": 1}},
        {"transport": "smb"},
        {"transport": ["gloo"]},
        {"port": 0},
        {"port": 2**16},
        {"port": None},
        {"refused": {"a": 1}},
    ],
)
def test_what_is_no_offer_is_refused_as_such(changes) -> None:
    offer = {"files": [["a", 1]], "transport": "gloo", "port": 1}
    assert read_offer(io.BytesIO(json.dumps(offer).encode() + b"\n")) == Offer([("a", 1)], "gloo", 1)
    with pytest.raises(ValueError, match=r"not an offer|a message without"):
        read_offer(io.BytesIO(json.dumps(offer | changes).encode() + b"\n"))
    with pytest.raises(ValueError, match="too deeply"):
        read_offer(io.BytesIO(DEEP + b"\n"))


def test_a_server_process_runs_nothing_of_the_current_directory(
    large: ProposalVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path(__file__).with_suffix('.run').touch()")
    monkeypatch.chdir(tmp_path)
    started = WeightServerProcess(large.path.parent, "127.0.0.1", 30)
    try:
        assert started.address() is not None
        assert not list(tmp_path.glob("*.run"))
    finally:
        ended(started)


def test_an_asker_that_cannot_be_let_in_does_not_end_the_service(
    version, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weight_server, "_PAUSE", 0.1)
    started = WeightServer(PolicyRegistry(version.path.parent), "127.0.0.1", 60)
    accept, failures = socket.socket.accept, [OSError(errno.EMFILE, "Too many open files")] * 2

    def accept_later(listener: socket.socket):
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept_later)
    serving = threading.Thread(target=started.serve, daemon=True)
    serving.start()
    assert received(asked(started.address, version)) == CONTENTS
    assert caplog.text.count("Too many open files") == 2
    started.close()
    serving.join(10)
    assert not serving.is_alive()


def test_whoever_finds_the_server_busy_waits_for_as_long_as_a_transfer_may_take(
    version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_server, "_AT_ONCE", 1)
    monkeypatch.setattr(receiving, "_CONNECTING", 0.5)
    send = weight_server._send_file

    def send_slowly(*args) -> None:
        time.sleep(0.5)  # three files a version
        send(*args)

    monkeypatch.setattr(weight_server, "_send_file", send_slowly)
    busy = WeightServer(PolicyRegistry(version.path.parent), "127.0.0.1", 60)
    threading.Thread(target=busy.serve, daemon=True).start()
    host, _, port = busy.address.rpartition(":")
    with socket.create_connection((host, int(port))):  # who says nothing is in nobody's way
        receptions = [asked(busy.address, version) for _ in range(3)]
        assert all(received(reception) == CONTENTS for reception in receptions)
    busy.close()


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b'{"files": 1}\n', b'{"files": [], "transport": "gloo", "port'])
def test_a_server_that_breaks_off_ends_the_reception(version: ProposalVersion, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reception = asked(f"127.0.0.1:{listener.getsockname()[1]}", version)
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(answer)
        connection.close()
        assert outcome(reception) is not None


@pytest.fixture
def large(tmp_path: Path) -> ProposalVersion:
    return PolicyRegistry(tmp_path / "large").publish(0, 0, write_large, PROBE)


def running(server: WeightServerProcess) -> subprocess.Popen[bytes]:
    assert server.process is not None
    return server.process


def ended(server: WeightServerProcess) -> None:
    if server.process is not None:
        with server.process as last:
            last.kill()


@pytest.fixture
def process(large: ProposalVersion) -> Iterator[WeightServerProcess]:
    started = WeightServerProcess(large.path.parent, "127.0.0.1", 30)
    yield started
    ended(started)


def test_a_server_process_that_is_killed_in_the_middle_ends_the_reception_and_is_started_again(
    large: ProposalVersion, process: WeightServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, last = [], threading.Event()
    receive = weight_link.Link.receive

    def count(link: weight_link.Link, chunk: torch.Tensor) -> None:
        chunks.append(len(chunk))
        if len(chunks) == 2:
            running(process).kill()
            last.wait(1)
        receive(link, chunk)

    monkeypatch.setattr(weight_link.Link, "receive", count)
    address = process.address()
    assert address is not None
    failure = outcome(asked(address, large, time_limit=30), within=10)
    assert failure is not None
    assert re.match("(Connection|Read error|Socket)", failure)
    again = process.address()
    assert again not in (None, address)


def test_a_server_process_that_hangs_is_given_up_in_time(
    large: ProposalVersion, process: WeightServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = process.address()
    assert address is not None
    receive = weight_link.Link.receive

    def stop_first(link: weight_link.Link, chunk: torch.Tensor) -> None:
        os.kill(running(process).pid, signal.SIGSTOP)
        time.sleep(0.2)
        receive(link, chunk)

    monkeypatch.setattr(weight_link.Link, "receive", stop_first)
    began = time.monotonic()
    assert outcome(asked(address, large, time_limit=2), within=10) == "it took longer than 2 s"
    assert time.monotonic() - began < 6


def test_a_server_process_ends_when_its_input_does(process: WeightServerProcess) -> None:
    assert process.address() is not None
    server = running(process)
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(20) == 0


def test_a_server_process_that_is_not_up_in_time_is_ended_and_waited_for_once(
    process: WeightServerProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_process, "_START_LIMIT", 0.0)
    late = running(process)
    assert [process.address(), process.address()] == [None, None]
    assert late.returncode == -signal.SIGKILL
    assert process.process is None
    assert caplog.text.count("did not come up") == 1


def test_a_server_process_that_cannot_be_started_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    without = WeightServerProcess(tmp_path, "127.0.0.1", 30)
    assert without.address() is None
    assert "cannot be started" in caplog.text


TALKATIVE = """
import sys, threading, time

def talk():
    while True:
        print("12.0.0.1:80", "said by a library" * 5000, flush=True)
        time.sleep(0.1)

if "brain_align.learner.publishing.weight_server" in sys.orig_argv:
    print("127.0.0.1:80")
    threading.Thread(target=talk, daemon=True).start()
"""


def test_what_a_server_process_prints_is_neither_its_address_nor_in_its_way(
    large: ProposalVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(TALKATIVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    talkative = WeightServerProcess(large.path.parent, "127.0.0.1", 30)
    try:
        address = talkative.address()
        assert address is not None
        assert outcome(asked(address, large)) is None
        assert "said by a library" in capfd.readouterr().out
    finally:
        ended(talkative)


def test_nccl_is_for_two_gpus() -> None:
    assert weight_server._transport(Question(0, "", None)) == "gloo"
    assert weight_server._transport(Question(0, "", "GPU-1")) == "gloo"  # this machine has none
