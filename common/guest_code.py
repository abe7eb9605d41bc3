"""The calling of users' code: it may do anything to this process, which goes on as it was.

Reward functions, losses and whatever their modules do when they are imported run as guests. A guest may fork and return
twice, change the directory, take signals or close files; what it has changed is its own, and there again when it is
called next.
"""

import concurrent.futures.thread
import contextlib
import fcntl
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, NoReturn, ParamSpec, Self, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_STREAMS = ("stdin", "stdout", "stderr")  # their places are their file descriptors
_SIGNALS = (
    signal.SIGALRM,
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGPIPE,
    signal.SIGPROF,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGVTALRM,
)
_OUT_OF_THE_WAY = 64  # copies of descriptors lie from here on: guests close the first few


class _Belongings:
    """The settings that guests have made for themselves, between their calls."""

    directory: str | None = None
    handlers: dict[int, Any] = {}  # noqa: RUF012 - one for the process


class _Running:
    """The thread in which a guest is running at the moment; its other threads are the guest's, too."""

    thread: int | None = None


class GuestCode:
    """A context manager for code of a user.

    A process that the code has made by forking, and that comes back here, ends at once: it would go on as a second
    actor, with open connections that are not its own, and fork again. It may have returned, raised, or called
    `sys.exit`.
    """

    def __enter__(self) -> Self:
        self._process = os.getpid()
        self._directory = _directory()
        if _Belongings.directory is not None:
            _go_to(_Belongings.directory)
        self._handlers = _handlers()
        _set_handlers(_Belongings.handlers)
        self._streams = [getattr(sys, name) for name in _STREAMS]
        self._descriptors = [_copied(descriptor) for descriptor in range(len(_STREAMS))]
        self._environment = dict(os.environ)
        self._exit = os._exit
        os._exit = self._refuse_to_exit
        self._outer, _Running.thread = _Running.thread, threading.get_ident()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        os._exit = self._exit
        _Running.thread = self._outer
        if os.getpid() != self._process:
            _leave(error)
        self._restore_descriptors()
        self._restore_streams()
        if not os.environ:  # a guest may remove a variable for its own good, but hardly all of them
            os.environ.update(self._environment)
        if (now := _directory()) != self._directory and self._directory is not None:
            _Belongings.directory = now
            _go_to(self._directory)
        self._restore_handlers()

    def _refuse_to_exit(self, status: int) -> NoReturn:
        if os.getpid() == self._process:
            raise RuntimeError(f"it called os._exit({status!r})")
        self._exit(status)

    def _restore_handlers(self) -> None:
        if not self._handlers:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that is still set would hit whatever runs next
        now = _handlers()
        changed = {number: now[number] for number, before in self._handlers.items() if now.get(number) != before}
        _Belongings.handlers = changed
        _set_handlers({number: self._handlers[number] for number in changed})

    def _restore_streams(self) -> None:
        for descriptor, (name, stream) in enumerate(zip(_STREAMS, self._streams, strict=True)):
            if stream is not None and stream.closed:
                stream = os.fdopen(descriptor, stream.mode, 1, encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)

    def _restore_descriptors(self) -> None:
        """Open those that the code has closed or redirected, or the next file would be what is printed to."""
        for descriptor, copy in enumerate(self._descriptors):
            with contextlib.suppress(OSError):
                if copy is not None:
                    if not _is_same(descriptor, copy):
                        os.dup2(copy, descriptor)
                    os.close(copy)


def guarded(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a user's function that runs as a guest (`GuestCode`), and raises an error where it calls `sys.exit`."""

    @wraps(function)
    def call(*args: Arguments.args, **named: Arguments.kwargs) -> Result:
        try:
            with GuestCode():
                return function(*args, **named)
        except SystemExit as error:
            raise RuntimeError(f"it called sys.exit({error.code!r})") from error

    return call


_THREADS = (threading.__file__, concurrent.futures.thread.__file__)


def _end_with_its_thread() -> None:
    """In a process that another thread of a guest has forked: end it where that thread leaves the guest's code.

    It never comes back to `GuestCode`, which runs in a thread that it does not have. A pool's thread would go on with
    the pool's work instead, and fork again.
    """
    if _Running.thread in (None, threading.get_ident()):
        return
    root = sys._getframe(1)
    while root.f_back is not None and root.f_back.f_code.co_filename not in _THREADS:
        root = root.f_back

    def watch(frame: FrameType, event: str, _value: Any) -> None:
        if frame is root and event == "return":  # by an error, too
            _leave(None)

    sys.setprofile(watch)


os.register_at_fork(after_in_child=_end_with_its_thread)


def _leave(error: BaseException | None) -> None:
    """End this process, as the code meant it to end; nothing of it is cleaned up, since all of it is another's."""
    status = 1
    try:
        if error is None:
            status = 0
        elif not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif error.code is None or isinstance(error.code, int):
            status = error.code or 0
        else:
            sys.stderr.write(f"{error.code}\n")
    finally:
        os._exit(status & 0xFF)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _go_to(directory: str) -> None:
    with contextlib.suppress(OSError):  # likewise
        os.chdir(directory)


def _handlers() -> dict[int, Any]:
    """Return Python's handlers of signals; none where only the main thread could set them again."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in found.items() if handler is not None}  # None: not Python's


def _set_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _copied(descriptor: int) -> int | None:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    except OSError:  # it is closed already
        return None


def _is_same(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False
