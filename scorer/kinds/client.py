"""Requests to HTTP services, with a time limit and a bounded number of attempts."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import pyarrow as pa

from brain_align.common.config.scorers import RemotePool
from brain_align.common.errors import UserError
from brain_align.scorer.scorer import Annotation, Group, Scorer, scores_of

_LOG = logging.getLogger(__name__)

_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 60.0
_LONGEST_QUOTE = 120


class RequestFailedError(Exception):
    """A service gave no usable answer in all attempts; the message gives the reason."""


@dataclass(frozen=True)
class _Refused(Exception):
    """One attempt failed."""

    reason: str
    is_final: bool


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
        self._headers = {"Authorization": f"Bearer {token}"} if (token := bearer_token(settings)) else {}

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(
            timeout=self._settings.timeout,
            headers=self._headers,
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
            RequestFailedError: all attempts failed, or the service refused the request itself (400, 401, 404 …).
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
                if refused.is_final or self._seems_down or attempt == self._settings.attempts:
                    self._seems_down = not refused.is_final
                    times = "once" if attempt == 1 else f"{attempt} times"
                    failure = f"{url} was asked {times}: {refused.reason}"
                    _LOG.warning("%s", failure)
                    raise RequestFailedError(failure) from None
            else:
                self._seems_down = False
                return answer
            await asyncio.sleep(min(self._settings.backoff * 2 ** (attempt - 1), _LONGEST_PAUSE))

    async def _try(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._settings.timeout):
                response = await self._http.post(url, json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Refused(f"no answer within {self._settings.timeout:g} s", is_final=False) from None
        except httpx.HTTPError as error:
            raise _Refused(f"{type(error).__name__}: {error}", is_final=False) from None
        if response.status_code != httpx.codes.OK:
            final = response.status_code not in _WORTH_ANOTHER_TRY
            raise _Refused(f"status {response.status_code}: {_quoted(response.text)}", is_final=final)
        try:
            answer = response.json()
        except ValueError:
            raise _Refused(f"the answer is not JSON: {_quoted(response.text)}", is_final=False) from None
        if not isinstance(answer, dict):
            raise _Refused(f"the answer is not a JSON object: {_quoted(response.text)}", is_final=True)
        return answer


def bearer_token(settings: RemotePool) -> str | None:
    """Return the environment's token for a service, or None if the recipe names none.

    Raises:
        UserError: the variable that the recipe names is not set.
    """
    name = settings.token_variable
    if name is None:
        return None
    if not os.environ.get(name):
        raise UserError(f"The environment variable {name}, which should hold the token of {settings.url}, is not set.")
    return os.environ[name]


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")


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

    return scores_of(scorer, batch, asyncio.run(ask()))
