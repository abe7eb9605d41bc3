"""Requests to HTTP services, with a time limit, a bounded number of attempts, and answers of a bounded size."""

import asyncio
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx
import pyarrow as pa

from brain_align.common.config.scorers import RemotePool
from brain_align.common.errors import UserError
from brain_align.common.uris import shown
from brain_align.scorer.scorer import Annotation, Group, Scorer, scores_of

_LOG = logging.getLogger(__name__)

_MAY_PASS = {408, 425, 429}  # and all from 500 on
_ABOUT_THE_REQUEST = {400, 413, 414, 422, 431, 451}
"""Statuses of a service that is there, and refuses this request; any other status is about the service."""

_LONGEST_PAUSE = 60.0
_LONGEST_QUOTE = 120
_MOST_TO_QUOTE = 1 << 14  # bytes of an answer: its first words may come after much white space
LARGEST_ANSWER = 8 << 20
"""Bytes of an answer, decompressed."""

_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
"""Each byte of these becomes a thousand at most, so that an answer can be given up before it fills the memory."""

_ERRORS_THAT_TELL = (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)
"""Errors of httpx whose texts are of the system, or of the other side; others may quote headers, and so the token."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


class RequestFailedError(Exception):
    """A service gave no usable answer in all attempts; the message gives the reason.

    Attributes:
        away: whether the service may be the cause. If not, it has refused this request.
    """

    def __init__(self, message: str, *, away: bool) -> None:
        super().__init__(message)
        self.away = away


@dataclass
class _Refused(Exception):
    """One attempt failed."""

    reason: str
    again: bool = True  # whether another attempt may succeed
    away: bool = True  # as in `RequestFailedError`
    pause: float = 0.0  # seconds that the service asks to wait before the next attempt


class Client:
    """Posts JSON and returns JSON; an asynchronous context manager.

    The time limit covers a whole request, even if a service sends its answer bit by bit. After a request has used up
    its attempts, the service is considered down, and other requests are tried only once, until one is answered:
    hundreds of waiting requests must not each wait for the full number of attempts.
    """

    def __init__(self, settings: RemotePool) -> None:
        self._settings = settings
        self._free = asyncio.Semaphore(settings.concurrency)
        self._seems_down = False
        self._token = bearer_token(settings)

    async def __aenter__(self) -> Self:
        headers = {"Accept-Encoding": "gzip"}
        self._http = httpx.AsyncClient(
            timeout=self._settings.timeout,
            headers=headers | ({"Authorization": f"Bearer {self._token}"} if self._token else {}),
            limits=httpx.Limits(max_connections=self._settings.concurrency),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a JSON object and return the JSON object of the answer.

        Raises:
            RequestFailedError: all attempts failed, or the service refused the request.
        """
        async with self._free:  # held during pauses, too: other requests do not burden a failing service meanwhile
            return await self._insist(url, body)

    async def _insist(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = await self._try(url, body)
            except _Refused as refused:
                if not refused.again or self._seems_down or attempt == self._settings.attempts:
                    self._seems_down = refused.away
                    times = "once" if attempt == 1 else f"{attempt} times"
                    failure = self._without_token(f"{shown(url)} was asked {times}: {refused.reason}")
                    _LOG.warning("%s", failure)
                    raise RequestFailedError(failure, away=refused.away) from None
                pause = min(self._settings.backoff * 2 ** (attempt - 1), _LONGEST_PAUSE)
                await asyncio.sleep(max(pause, refused.pause))
            else:
                self._seems_down = False
                return answer

    async def _try(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(self._settings.timeout),
                self._http.stream("POST", url, json=body) as response,
            ):
                content = await self._read(response)
        except _Refused:
            raise
        except (TimeoutError, httpx.TimeoutException):
            raise _Refused(f"no answer within {self._settings.timeout:g} s") from None
        except _ERRORS_THAT_TELL as error:
            raise _Refused(f"{type(error).__name__}: {error}") from None
        except Exception as error:  # noqa: BLE001 - of a library; its text may hold the header with the token
            raise _Refused(type(error).__name__) from None
        return self._object(response, content)

    async def _read(self, response: httpx.Response) -> bytes:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise _Refused(f"the answer is encoded as {self._quoted(encoding)}, which was not asked for", again=False)
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > LARGEST_ANSWER:
                if response.is_success:
                    raise _Refused(f"the answer is longer than {LARGEST_ANSWER >> 20} MiB", again=False)
                break
        return bytes(content)

    def _object(self, response: httpx.Response, content: bytes) -> dict[str, Any]:
        """Return an answer's JSON object."""
        if not response.is_success:
            raise self._refusal(response, content)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):  # neither JSON nor text; nested too deeply
            raise _Refused(f"the answer is not JSON: {self._quoted(content)}") from None
        if not isinstance(answer, dict):
            raise _Refused(f"the answer is not a JSON object: {self._quoted(content)}", again=False)
        return answer

    def _refusal(self, response: httpx.Response, content: bytes) -> _Refused:
        status = response.status_code
        if response.has_redirect_location:
            place = self._quoted(shown(response.headers["Location"]))
            return _Refused(f"status {status}: it redirects to {place}, which is not followed: set url", again=False)
        refused = _Refused(f"status {status}: {self._quoted(content)}", away=status not in _ABOUT_THE_REQUEST)
        if status < httpx.codes.INTERNAL_SERVER_ERROR and status not in _MAY_PASS:
            return replace(refused, again=False)
        pause, most = _retry_after(response), self._settings.timeout
        if pause > most:
            asked = f"{refused.reason}; it asks for a pause of {pause:.0f} s, more than timeout={most:g}"
            return replace(refused, reason=asked, again=False)
        return replace(refused, pause=pause)

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "…") if self._token else text

    def _quoted(self, content: bytes | str) -> str:
        """Return the beginning of what a service says, without the token that it may repeat."""
        text = content if isinstance(content, str) else content[:_MOST_TO_QUOTE].decode(errors="replace")
        text = " ".join(self._without_token(text).split())
        return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds after which a service may be asked again, given as a number or as a date; 0: at once."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def check_service(settings: RemotePool) -> None:
    """Refuse an address that is not one, and a token that is missing or none.

    Raises:
        UserError: it is.
    """
    bearer_token(settings)
    try:
        httpx.URL(settings.url)
    except httpx.InvalidURL as error:
        raise UserError(f"The url {shown(settings.url)} is not valid: {error}.") from None


def bearer_token(settings: RemotePool) -> str | None:
    """Return the environment's token for a service, or None if the recipe names none.

    Raises:
        UserError: the variable that the recipe names is not set, or does not hold a token, which is not shown.
    """
    name = settings.token_variable
    if name is None:
        return None
    token = os.environ.get(name, "").strip()
    held = f"The environment variable {name}, which should hold the token of {shown(settings.url)},"
    if not token:
        raise UserError(f"{held} is not set.")
    if not _TOKEN.fullmatch(token):
        raise UserError(
            f"{held} holds blanks, line breaks or characters that are not printable ASCII; set it to the token alone."
        )
    return token


def annotate_by_asking(
    scorer: Scorer,
    batch: pa.RecordBatch,
    settings: RemotePool,
    score_group: Callable[[Client, Group], Awaitable[Annotation]],
) -> pa.RecordBatch:
    """Annotate a batch with a scorer that calls a service; the requests of all groups run concurrently."""

    async def ask() -> list[Annotation]:
        async with Client(settings) as client:
            return await asyncio.gather(*(score_group(client, group) for group in batch.to_pylist()))

    token = bearer_token(settings)
    annotations = [_without(token, one) if token else one for one in asyncio.run(ask())]
    return scores_of(scorer, batch, annotations)


def _without(token: str, annotation: Annotation) -> Annotation:
    """Return an annotation whose reasons do not quote the token, whatever the service said."""
    errors, away = (
        tuple(one.replace(token, "…") for one in reasons) for reasons in (annotation.errors, annotation.away)
    )
    return replace(annotation, errors=errors, away=away)
