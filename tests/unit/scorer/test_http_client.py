"""What HTTP services do to their clients: none of it fails other requests, fills the memory, or shows a secret."""

import gzip
import logging
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from brain_align.common.config.scorers import EndpointSection, JudgeSection
from brain_align.common.errors import ScorerAwayError, UserError, without_secrets
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.scorer.kinds import client
from brain_align.scorer.kinds.endpoint import EndpointScorer
from brain_align.scorer.kinds.judge import JudgeScorer
from tests.unit.factories import group, output
from tests.unit.scorer.http_service import said, serving, speaking

GOOD = b'{"scores": [7]}'
TOKEN = "sk-0123456789abcdef"


def endpoint(url: str, **settings: Any) -> EndpointScorer:
    section = {"kind": "http", "url": url, "attempts": 3, "backoff": 0.01, "timeout": 5} | settings
    return EndpointScorer("remote", EndpointSection.model_validate(section))


def one(scorer: Any, text: str = "a") -> tuple[float | None, str | None, bool]:
    """Return the value of one text, the reason, and whether the service counts as away."""
    row = group("g", prompt_text="p", gold_text=None, outputs=[output([1], [0.0], text)])
    try:
        scores, away = scorer.score(batch_from_rows(GROUPS, [row])), False
    except ScorerAwayError as error:
        scores, away = error.rows, True
        assert error.away == {"g"}
    (row,) = scores.to_pylist()
    return row["values"][0], row["error"], away


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 507, 508, *range(520, 530), 530, 599])
def test_a_failure_of_the_service_is_repeated_and_is_no_property_of_a_text(status: int) -> None:
    with serving(lambda body: (status, b"busy")) as service:
        value, error, away = one(endpoint(service.url))
    assert (value, away, len(service.bodies)) == (None, True, 3)
    assert f"was asked 3 times: status {status}: 'busy'" in str(error)


@pytest.mark.parametrize(("status", "away"), [(400, False), (413, False), (422, False), (401, True), (404, True)])
def test_a_refusal_is_not_repeated(status: int, away: bool) -> None:
    with serving(lambda body: (status, b"no")) as service:
        assert one(endpoint(service.url)) == (None, f"{service.url} was asked once: status {status}: 'no'", away)


def test_an_answer_that_fails_is_no_obstacle_to_others_of_its_call() -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        (text,) = body["outputs"]
        return (500, "sorry") if text == "bad" else (422, "no") if text == "odd" else (200, {"scores": [len(text)]})

    rows = [
        group(text, prompt_text="p", gold_text=None, outputs=[output([1], [0.0], text)])
        for text in ("a", "bad", "odd", "bb")
    ]
    with serving(answer) as service, pytest.raises(ScorerAwayError) as error:
        endpoint(service.url, concurrency=4).score(batch_from_rows(GROUPS, rows))
    assert error.value.away == {"bad"}
    assert [row["values"] for row in error.value.rows.to_pylist()] == [[1], [None], [None], [2]]


@pytest.mark.parametrize("as_date", [False, True])
def test_the_pause_that_a_service_asks_for_is_made(as_date: bool) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    busy = said(b"", f"Retry-After: {until if as_date else '1'}", status="429 Too Many Requests")
    with speaking(busy, said(GOOD)) as url:
        began = time.monotonic()
        assert one(endpoint(url)) == (7, None, False)
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("pause", ["3600", "99999999999", "-1", "soon", "Fri, 31 Dec 9999 23:59:59 GMT", "nan", ""])
def test_a_pause_that_is_too_long_or_none_is_not_made(pause: str) -> None:
    with speaking(said(b"busy", f"Retry-After: {pause}", status="503 Busy")) as url:
        began = time.monotonic()
        value, error, away = one(endpoint(url))
    assert (value, away) == (None, True)
    assert time.monotonic() - began < 3
    times = "once" if pause in ("3600", "Fri, 31 Dec 9999 23:59:59 GMT") else "3 times"
    assert f"was asked {times}: status 503: 'busy'" in str(error)
    assert (times == "once") == ("more than timeout=5" in str(error))


def drip(connection: socket.socket) -> None:
    connection.sendall(said(b"", length=len(GOOD)))
    for place in range(len(GOOD)):
        connection.sendall(GOOD[place : place + 1])
        time.sleep(0.1)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")


NESTED = b'{"scores": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
BOMB = gzip.compress(b" " * (64 << 20))
ODD: list[tuple[Any, float | None, str]] = [
    (said(GOOD), 7, ""),
    (said(gzip.compress(GOOD), "Content-Encoding: gzip"), 7, ""),
    (said(GOOD, status="201 Created"), 7, ""),
    (said(GOOD, "Content-Type: text/html; charset=rot13"), 7, ""),
    (said(GOOD.decode().encode("utf-16")), 7, ""),
    (lambda connection: None, None, "was asked 3 times: RemoteProtocolError"),
    (said(GOOD, length=99), None, "was asked 3 times: RemoteProtocolError"),
    (b"\x00\x01 nonsense\r\n\r\n", None, "was asked 3 times: RemoteProtocolError"),
    (drip, None, "no answer within 0.5 s"),
    (endless, None, "was asked once: the answer is longer than 8 MiB"),
    (said(BOMB, "Content-Encoding: gzip"), None, "was asked once: the answer is longer than 8 MiB"),
    (said(BOMB, "Content-Encoding: gzip", status="500 No"), None, "was asked 3 times: status 500: ''"),
    (said(gzip.compress(BOMB), "Content-Encoding: gzip, gzip"), None, "the answer is encoded as 'gzip, gzip'"),
    (said(GOOD, "Content-Encoding: br"), None, "was asked once: the answer is encoded as 'br'"),
    (said(GOOD, "Content-Encoding: gzip"), None, "was asked 3 times: DecodingError"),
    (said(NESTED), None, "was asked 3 times: the answer is not JSON: "),
    (said(b'{"scores": ' + b"9" * 5000 + b"}"), None, "the answer is not JSON: "),
    (said(b"\xff\xfe\xff"), None, "the answer is not JSON: "),
    (
        said(b"<html>log in</html>", "Content-Type: text/html; charset=nonsense"),
        None,
        "not JSON: '<html>log in</html>'",
    ),
    (said(b"\x1b[2Jgo", "Content-Type: text/plain; charset=undefined", status="500 No"), None, r"'\x1b[2Jgo'"),
    (said(b"", status="204 No Content"), None, "the answer is not JSON: ''"),
    (
        said(b"", "Location: http://other/log?key=x#y", status="302 Found"),
        None,
        "was asked once: status 302: it redirects to 'http://other/log', which is not followed: set url",
    ),
    (said(b'{"scores": [NaN]}'), None, "output 0 has the value nan"),
    (said(b'{"scores": [1e999]}'), None, "output 0 has the value inf"),
    (said(b'{"scores": [' + b"9" * 400 + b"]}"), None, "output 0 has the value inf"),
    (said(b'{"scores": [1, 2]}'), None, "returned 2 values for 1 outputs"),
    (said(b'{"scores": []}'), None, "returned 0 values for 1 outputs"),
    (said(b'{"scores": ["1.0"]}'), None, "returned '1.0', which is not a number"),
    (said(b'{"scores": [{"a": 1}]}'), None, "returned {'a': 1}, which is not a number"),
    (said(b'{"scores": {"a": 1}}'), None, "returned a dict, not a list of numbers"),
    (said(b'{"scores": [true]}'), 1, ""),
    (said(b'{"\\ud800": 1}'), None, r"answered without `scores`, but \ud800"),
    (said(b'{"scores": ["\\udfff"]}'), None, r"returned '\udfff', which is not a number"),
    (said(b"{}"), None, "answered without `scores`, but nothing"),
]


@pytest.mark.parametrize(("answer", "value", "reason"), ODD, ids=map(str, range(len(ODD))))
def test_odd_answers_are_values_or_reasons(answer: Any, value: float | None, reason: str) -> None:
    with speaking(answer) as url:
        found, error, _ = one(endpoint(url, timeout=0.5 if answer is drip else 5))
    assert found == value
    assert reason in (error or "") and bool(reason) == bool(error)


def test_an_address_that_is_none_is_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match=r"The url http://\[::1/score is not valid"):
        endpoint("http://[::1/score")


# -- secrets


@pytest.mark.parametrize("held", [f"{TOKEN}\n", f"  {TOKEN}\r\n"])
def test_a_token_is_stripped(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", held)
    with serving(lambda body: (200, {"scores": [1]})) as service:
        assert one(endpoint(service.url, token_variable="SOME_VARIABLE")) == (1, None, False)
    assert service.headers[0]["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("held", [f"{TOKEN}\n{TOKEN}", f"Bearer {TOKEN}", f"{TOKEN}…", f"\x7f{TOKEN}", "\n", ""])
@pytest.mark.parametrize("kind", ["http", "judge"])
def test_a_token_that_is_none_is_refused_without_showing_it(
    kind: str, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_VARIABLE", held)
    with pytest.raises(UserError, match=r"environment variable SOME_VARIABLE, .*(holds blanks|is not set)") as refused:
        if kind == "http":
            endpoint("http://here", token_variable="SOME_VARIABLE")
        else:
            settings = {"url": "http://here", "model": "m", "instructions": "{prompt}{output}"}
            JudgeScorer("j", JudgeSection(kind="judge", token_variable="SOME_VARIABLE", **settings))
    assert "0123" not in str(refused.value)


@pytest.mark.parametrize(
    "answer",
    [
        said(f"your key {TOKEN} is wrong".encode(), status="401 No"),
        said(f"{'x' * 110} {TOKEN}".encode(), status="500 No"),
        said(f"<{TOKEN}>".encode()),
        said(f'{{"{TOKEN}": 1}}'.encode()),
        said(f'{{"scores": ["{TOKEN}"]}}'.encode()),
        said(b'{"scores": ["\\u0073%s"]}' % TOKEN[1:].encode()),
        said(b"", f"Location: http://x/{TOKEN}", status="302 Found"),
        said(b"", f"Content-Encoding: {TOKEN}"),
        f"HTTP/1.1 {TOKEN}\r\n\r\n".encode(),
    ],
)
def test_a_token_that_a_service_repeats_is_not_kept(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_VARIABLE", TOKEN)
    caplog.set_level(logging.DEBUG, logger="brain_align")
    with speaking(answer) as url:
        _, error, _ = one(endpoint(url, token_variable="SOME_VARIABLE"))
    assert error and "0123" not in error
    assert "0123" not in caplog.text


def test_errors_that_are_not_known_are_told_by_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "…")
    monkeypatch.setattr(client, "bearer_token", lambda settings: f"{TOKEN}\n")
    with speaking(said(GOOD)) as url:
        found = one(endpoint(url, attempts=1, token_variable="SOME_VARIABLE"))
    assert found == (None, f"{url} was asked once: LocalProtocolError", True)


def test_sentences_for_users_have_no_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("SSL_TOKEN_PATH", "/etc/ssl/private")
    text = "b'Bearer other', hf_abcdefgh, wJalrXUtnFEMI/K7MDENG; basic dXNlcg==. /etc/ssl/private a basic idea"
    clean = "b'Bearer …', $HF_TOKEN, $AWS_SECRET_ACCESS_KEY; basic … /etc/ssl/private a basic …"
    assert without_secrets(text) == str(UserError(text)) == clean
    assert str(ScorerAwayError(text)) == clean
