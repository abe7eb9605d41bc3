"""The start of Ray: a connection to a cluster, or a cluster of one's own, which may start while other work goes on."""

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from brain_align.common.config.run import RaySection
from brain_align.common.errors import UserError, first_line
from brain_align.deploy.services.reachable import check_reachable

_LOG = logging.getLogger(__name__)


class RayStart:
    """One start of Ray in this process, and its end.

    A cluster started here offers as many logical cores as the services reserve: on a small machine they share the real
    cores instead of waiting for each other for ever.
    """

    def __init__(self, settings: RaySection, needs: Mapping[str, float]) -> None:
        """Start nothing yet; for `needs` see `required_resources`."""
        self._address = settings.address or os.environ.get("RAY_ADDRESS")
        cores = math.ceil(needs["CPU"]) + (os.cpu_count() or 1)  # this machine's: for replicas that are added later
        self._own: dict[str, Any] = {"num_cpus": settings.num_cpus or cores, "include_dashboard": False}
        self._started: Future[None] | None = None
        self._over = threading.Event()

    def ahead(self) -> None:
        """Begin to start a cluster of one's own, in a thread; a cluster that is there already has no need of it."""
        if self._address is None:
            self._started = Future()
            threading.Thread(target=self._keep, args=(self._started,), name="ray").start()

    def wait(self) -> None:
        """Return as soon as this process is connected.

        Raises:
            UserError: the cluster cannot be reached or started.
        """
        try:
            if self._started is None:
                check_reachable(self._address)
                self._connect()
                self._started = Future()
                self._started.set_result(None)
            self._started.result()
        except (ConnectionError, TimeoutError, ValueError, RuntimeError, RayError) as error:
            place = self._address or "a local one"
            raise UserError(
                f"Cannot start or reach the Ray cluster ({place}): {first_line(error)}; check ray.address."
            ) from None

    def end(self) -> None:
        """Disconnect, and end a cluster of one's own; one that is still starting ends as soon as it has started."""
        started, self._started = self._started, None
        if started is None or started.done():
            ray.shutdown()
        self._over.set()

    def _keep(self, started: "Future[None]") -> None:
        """Start a cluster and stay until it is over: the kernel ends Ray's processes with the thread that began them.

        The interpreter waits for this thread before it exits, and so ends no process in the middle of Ray's start.
        """
        try:
            self._connect()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            started.set_exception(error)
            return
        started.set_result(None)
        self._over.wait()
        ray.shutdown()  # of a cluster that nobody has waited for

    def _connect(self) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's new default; silences its warning
        ray_worker.print_to_stdstream = _log
        own = {} if self._address else self._own
        with _own_signal_handlers():
            ray.init(address=self._address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)


def _log(data: Mapping[str, Any], **_options: object) -> None:
    """Log Ray's pages on lost processes, which it would print on stdout: a run says itself, in a line, what it lost."""
    _LOG.info("Ray: %s", "\n".join(data["lines"]))


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Take back what SIGTERM does: Ray would end the process in the middle of everything, and abort it."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere Ray cannot have set any
            signal.signal(signal.SIGTERM, handler)
