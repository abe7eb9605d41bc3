"""A storage backend on a file system of pyarrow: S3 and compatible services, GCS, HDFS.

There a file appears when its upload is complete, so `put` is atomic and durable without a temporary name. Requests that
fail for a transient reason are retried with growing pauses: for minutes if the service has answered before, so that its
outage does not end a run, and for seconds if it has not, so that a wrong address is reported soon.
"""

import contextlib
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs
from typing_extensions import override

from brain_align.common.errors import UserError, first_line
from brain_align.common.store.files.backends import Entry, StorageBackend
from brain_align.common.store.format.names import checksum, checksum_of
from brain_align.common.uris import shown

_LOG = logging.getLogger(__name__)
_PATIENCE = 300.0  # seconds of pauses in total, if the service has answered before
_FIRST_PATIENCE = 3.0  # if it has not
_FIRST_PAUSE = 0.2  # seconds; doubled from attempt to attempt
_LONGEST_PAUSE = 15.0
_LASTING = (FileNotFoundError, PermissionError)
_ADVICE = {
    "NO_SUCH_BUCKET": "the bucket does not exist; create it, or correct the URI",
    "ACCESS_DENIED": "access is denied; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or grant the rights",
    "INVALID_ACCESS_KEY_ID": "the key is unknown; correct AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY",
    "Unable to locate credentials": "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}

T = TypeVar("T")


def open_object_store(uri: str) -> "ObjectStore":
    """Return the object store that a URI names.

    Raises:
        UserError: no file system of pyarrow understands it.
    """
    try:
        file_system, root = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).replace(uri, shown(uri))
        raise UserError(f"{shown(uri)} cannot hold a sample store: {reason}") from None
    return ObjectStore(uri, file_system, root.rstrip("/"))


class ObjectStore(StorageBackend):
    """Objects below a prefix."""

    fetches = True

    def __init__(self, uri: str, file_system: fs.FileSystem, root: str) -> None:
        self.uri = shown(uri)
        self._files = file_system
        self._root = root
        self._patience = _FIRST_PATIENCE

    @override
    def prepare(self) -> None:
        pass  # a prefix need not be created, and a bucket must not be created unasked

    @override
    def list(self, directory: str) -> list[Entry]:
        selector = fs.FileSelector(self._path(directory), allow_not_found=True)
        found = self._tried(lambda: self._files.get_file_info(selector))
        return [Entry(info.base_name, info.size, info.mtime_ns / 1e9) for info in found if info.is_file]

    @override
    def read(self, path: str) -> pa.Buffer:
        def fetch() -> pa.Buffer:
            with self._files.open_input_file(self._path(path)) as file:
                return file.read_buffer()

        return self._tried(fetch)

    @override
    def read_checked(self, path: str) -> pa.Buffer | None:
        content = self.read(path)
        return content if checksum(content) == checksum_of(path) else None

    @override
    def put(self, directory: str, name: str, content: pa.Buffer) -> None:
        def upload() -> None:
            with self._files.open_output_stream(self._path(f"{directory}/{name}")) as file:
                file.write(content)

        self._tried(upload)

    @override
    def time(self) -> float:
        return time.time()  # services refuse requests of clients whose clocks differ by more than minutes

    @override
    def move(self, path: str, target: str) -> None:
        try:
            self._tried(lambda: self._files.copy_file(self._path(path), self._path(target)))
        except FileNotFoundError:
            return
        self.remove(path)

    @override
    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._tried(lambda: self._files.delete_file(self._path(path)))

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".replace("//", "/").rstrip("/")

    def _tried(self, request: Callable[[], T]) -> T:
        pause, waited = _FIRST_PAUSE, 0.0
        while True:
            try:
                result = request()
            except _LASTING:
                self._patience, self.trouble = _PATIENCE, None
                raise
            except OSError as error:
                advice = next((advice for sign, advice in _ADVICE.items() if sign in str(error)), None)
                if advice is not None:
                    raise UserError(f"The sample store {self.uri} cannot be used: {advice}.") from error
                if waited >= self._patience:
                    self._patience = _FIRST_PATIENCE  # it is down: later requests do not wait that long again
                    raise
                left = self._patience - waited
                self.trouble = f"{self.uri}: {_reason(error)}"
                _LOG.warning("%s: %s; retrying in %.1f s, for %.0f s more", self.uri, error, pause, left)
            else:
                self._patience, self.trouble = _PATIENCE, None
                return result
            time.sleep(pause)
            waited += pause
            pause = min(2 * pause, _LONGEST_PAUSE)


def _reason(error: OSError) -> str:
    """Return what a service said, without the request that pyarrow says beside it."""
    unknown = re.search(r"Unable to parse ExceptionName: (\w+) Message: (.*?)\.?$", str(error), re.DOTALL)
    return f"{unknown[1]} ({unknown[2]})" if unknown else first_line(error)
