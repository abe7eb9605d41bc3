"""Requests to HTTP services: with a time limit, repeated a bounded number of times, and clear about what failed."""

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
    """A service gave no usable answer, however often it was asked; says why."""


@dataclass(frozen=True)
class _Refused(Exception):
    """One try failed."""

    reason: str
    is_final: bool


class Client:
    """Sends JSON and receives JSON; an asynchronous context manager.

    A request has a time limit as a whole, also where a service sends its answer bit by bit. While a service seems to be
    down, because a request has used up all its tries, others are tried once only: hundreds that wait in line must not
    each wait for it. The first answer ends that.
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
        """Send a JSON object and return the one that is answered.

        Raises:
            RequestFailedError: no try brought one, or the service refused the request itself (400, 401, 404 …).
        """
        async with self._free:  # pauses included: a service in trouble is not asked by others meanwhile
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
            raise _Refused(f"the answer is no JSON: {_quoted(response.text)}", is_final=False) from None
        if not isinstance(answer, dict):
            raise _Refused(f"the answer is no JSON object: {_quoted(response.text)}", is_final=True)
        return answer


def bearer_token(settings: RemotePool) -> str | None:
    """The token that the environment holds for a service, if it wants one.

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
    """As `annotate`, for a scorer that asks a service: the requests of all groups are under way side by side."""

    async def ask() -> list[Annotation]:
        async with Client(settings) as client:
            return await asyncio.gather(*(score_group(client, group) for group in batch.to_pylist()))

    return scores_of(scorer, batch, asyncio.run(ask()))
