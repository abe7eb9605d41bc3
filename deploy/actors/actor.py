"""One actor: calls with a time limit, and errors that name the actor and its log."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from types import TracebackType
from typing import Any, Protocol

from brain_align.common.errors import (
    DeliveryError,
    LearnerOutOfMemoryError,
    NotSharedError,
    PipelineError,
    ScorerAwayError,
    UserError,
)
from brain_align.common.system.last_error import last_error, log_size


class LostError(Exception):
    """A handle's actor is gone, and with it the calls that it was working on; the message says why."""


class CallFailedError(Exception):
    """A call of a handle's actor raised `cause`; the actor lives."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Handle(Protocol):
    """A running actor, wherever it runs. Its calls raise nothing but `LostError` and `CallFailedError`."""

    async def placed(self) -> None:
        """Wait until the cluster has found room for it."""

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method and wait for its answer."""

    def stream(self, method: str, *args: Any) -> AsyncGenerator[Any]:
        """Call a generator and yield its items as they come; closing it early ends the generator in the actor, too."""

    def kill(self) -> None:
        """End it at once; calls in progress raise."""


Spawn = Callable[[str, str], Handle]  # (actor's name, its log file) -> a new actor, or `LostError`


class ActorLostError(PipelineError):
    """An actor died, or gave no answer in time; another may be called instead."""

    def __init__(self, message: str, *, sent_away: bool = False) -> None:
        super().__init__(message)
        self.sent_away = sent_away  # it was ended on purpose, or by a fault of its own; the call is not to blame


class TimeBudget:
    """Seconds that a task may spend in all blocks `with budget:`, none of which lies in another.

    `asyncio.timeout` would set and cancel a timer per block, which costs the control plane 8 % of its time with 2,000
    streams at once. This one timer looks at what is left when the time may be over. Close it after the last block.
    When the time is over, what the block waits for is cancelled, and the block ends with a TimeoutError.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._began = 0.0  # when the block in progress did
        self._task: asyncio.Task[object] | None = None  # whose block is in progress
        self._cancelling = 0
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None, "a time budget is for what a task waits for"
        self._cancelling = self._task.cancelling()
        self._began = time.monotonic()
        if self._timer is None:
            self._look_after(self._left)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self._task is not None, "a block that ends has begun"
        self._left -= time.monotonic() - self._began
        task, self._task = self._task, None
        is_over, self._is_over = self._is_over, False  # a later block must not take back another's cancellation
        if is_over and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._task is None:  # the next block sets another
            return
        left = self._left - (time.monotonic() - self._began)
        if left > 0:
            self._look_after(left)
        else:
            self._is_over = True
            self._task.cancel()


class Actor:
    """One actor, whose calls have a time limit, and whose errors name it and its log file."""

    def __init__(self, name: str, log_path: str, spawn: Spawn) -> None:
        self.name = name
        self._log_path = log_path
        self._spawn = spawn
        self._handle: Handle | None = None
        self._sent_away = False
        self._log_start = 0  # what its log held before this actor was created

    def create(self) -> None:
        """Create the actor, without waiting for it; raise an ActorLostError if the cluster refuses."""
        self._log_start = log_size(self._log_path)
        try:
            self._handle = self._spawn(self.name, self._log_path)
        except LostError as error:
            raise self._lost("its creation", str(error)) from error

    async def placed(self) -> None:
        """Wait, without a limit, until the cluster has room for it; raise an ActorLostError if it dies."""
        try:
            await self._running().placed()
        except LostError as error:
            raise self._lost("its start", str(error)) from error

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call a method and return its answer.

        Raises:
            ActorLostError: the actor died, or gave no answer in time and was ended.
            PipelineError: the method raised; a ScorerAwayError stays one.
            UserError: the method raised one.
        """
        handle = self._running()
        with self._saying_who_failed(method, timeout):
            async with asyncio.timeout(timeout):
                return await handle.call(method, *args)

    async def stream(self, method: str, *args: Any, timeout: float) -> AsyncGenerator[Any]:
        """Call a generator and yield its items, which must all come within the limit; raises what `call` raises.

        The time that the caller spends between them does not count.
        """
        handle = self._running()
        with self._saying_who_failed(method, timeout), closing(TimeBudget(timeout)) as budget:
            async with aclosing(handle.stream(method, *args)) as items:
                while True:
                    try:
                        with budget:
                            item = await anext(items)
                    except StopAsyncIteration:
                        return
                    yield item

    def kill(self) -> None:
        """End the actor at once."""
        if self._handle is not None:
            self._handle.kill()
            self._handle = None

    def send_away(self) -> None:
        """End the actor on purpose: calls that it has not finished are not to blame."""
        self._sent_away = True
        self.kill()

    @property
    def _log(self) -> str:
        if os.path.exists(self._log_path):
            return f"its log is {self._log_path}"
        return f"its log, {self._log_path}, is not visible here"

    def _running(self) -> Handle:
        if self._handle is None:
            raise ActorLostError(f"{self.name} is not running; {self._log}.", sent_away=self._sent_away)
        return self._handle

    @contextmanager
    def _saying_who_failed(self, method: str, timeout: float) -> Iterator[None]:
        """Turn failures of a call into errors that name the actor."""
        try:
            yield
        except CallFailedError as error:
            raise self._explained(error.cause, method) from error.cause
        except LostError as error:
            raise self._lost(repr(method), str(error)) from error
        except TimeoutError:
            self.kill()
            overdue = f"{self.name} gave no answer to {method!r} within {timeout:g} s{self._last_error()}; {self._log}."
            raise ActorLostError(overdue) from None

    def _lost(self, where: str, why: str) -> ActorLostError:
        self.kill()
        message = f"{self.name} was lost in {where} ({why}){self._last_error()}; {self._log}."
        return ActorLostError(message, sent_away=self._sent_away)

    def _last_error(self, told: str = "") -> str:
        """Return the last error of its log, unless that is what has been told already."""
        found = last_error(self._log_path, self._log_start)
        return "" if found is None or found in told else f"; the last error in its log: {found}"

    def _explained(self, cause: Exception, method: str) -> Exception:
        if isinstance(cause, UserError):
            return UserError(f"{cause} ({self.name}; {self._log})")
        if isinstance(cause, DeliveryError):
            self.kill()
            return ActorLostError(f"{cause} ({self.name}; {self._log}).", sent_away=True)
        if isinstance(cause, ScorerAwayError):
            return ScorerAwayError(f"{cause} ({self.name}; {self._log})", cause.rows, cause.away)
        if isinstance(cause, LearnerOutOfMemoryError):
            return LearnerOutOfMemoryError(f"{cause} ({self.name}; {self._log}).", cause.smaller)
        if isinstance(cause, NotSharedError):
            return NotSharedError(f"{cause} ({self.name})")
        what = f"{type(cause).__name__}: {cause}"
        return PipelineError(f"{self.name} failed in {method!r}: {what}{self._last_error(what)}; {self._log}.")
