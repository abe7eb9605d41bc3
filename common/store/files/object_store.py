"""A store on a file system of pyarrow: S3 and what speaks its protocol, GCS, HDFS.

There a file appears when its upload is complete, so `put` is atomic and durable without a temporary name. Requests that
fail for a passing reason are repeated, ever more slowly: for some minutes where the place has answered before, so that
its trouble does not end a run, and for seconds where it has not, so that a wrong address is named soon.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from brain_align.common.errors import UserError
from brain_align.common.store.files.backends import Entry, shown
from brain_align.common.store.format.checksums import matches

_LOG = logging.getLogger(__name__)
_PATIENCE = 300.0  # seconds of pauses, where the place has answered before
_FIRST_PATIENCE = 3.0  # where it has not
_FIRST_PAUSE = 0.2  # seconds; doubled from attempt to attempt
_LONGEST_PAUSE = 15.0
_LASTING = (FileNotFoundError, PermissionError)
_ADVICE = {
    "NO_SUCH_BUCKET": "there is no such bucket; make it, or correct the URI",
    "ACCESS_DENIED": "access is denied; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the rights of their owner",
    "INVALID_ACCESS_KEY_ID": "the key is unknown; correct AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY",
    "Unable to locate credentials": "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}

T = TypeVar("T")


def open_object_store(uri: str) -> "ObjectStore":
    """The place that a URI names.

    Raises:
        UserError: no file system of pyarrow understands it.
    """
    try:
        file_system, root = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{shown(uri)} is no place for a sample store: {str(error).replace(uri, shown(uri))}") from None
    return ObjectStore(uri, file_system, root.rstrip("/"))


class ObjectStore:
    """Objects below a prefix."""

    fetches = True

    def __init__(self, uri: str, file_system: fs.FileSystem, root: str) -> None:
        self.uri = shown(uri)
        self._files = file_system
        self._root = root
        self._patience = _FIRST_PATIENCE

    def prepare(self) -> None:
        """Nothing: a prefix needs no making, and a bucket is not made by the way."""

    def list(self, directory: str) -> list[Entry]:
        """See `StorageBackend.list`."""
        selector = fs.FileSelector(self._path(directory), allow_not_found=True)
        found = self._tried(lambda: self._files.get_file_info(selector))
        return [Entry(info.base_name, info.size, info.mtime_ns / 1e9) for info in found if info.is_file]

    def read(self, path: str) -> pa.Buffer:
        """Fetch an object."""

        def fetch() -> pa.Buffer:
            with self._files.open_input_file(self._path(path)) as file:
                return file.read_buffer()

        return self._tried(fetch)

    def read_checked(self, path: str, checksum: str) -> pa.Buffer | None:
        """See `StorageBackend.read_checked`."""
        content = self.read(path)
        return content if matches(content, checksum) else None

    def put(self, directory: str, name: str, content: pa.Buffer) -> None:
        """Upload an object; it is there when the upload is complete, and not before."""

        def upload() -> None:
            with self._files.open_output_stream(self._path(f"{directory}/{name}")) as file:
                file.write(content)

        self._tried(upload)

    def move(self, path: str, target: str) -> None:
        """Copy, then delete."""
        try:
            self._tried(lambda: self._files.copy_file(self._path(path), self._path(target)))
        except FileNotFoundError:
            return
        self.remove(path)

    def remove(self, path: str) -> None:
        """Delete an object."""
        try:
            self._tried(lambda: self._files.delete_file(self._path(path)))
        except FileNotFoundError:
            return

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".replace("//", "/").rstrip("/")

    def _tried(self, request: Callable[[], T]) -> T:
        pause, waited = _FIRST_PAUSE, 0.0
        while True:
            try:
                result = request()
            except _LASTING:
                self._patience = _PATIENCE
                raise
            except OSError as error:
                advice = next((advice for sign, advice in _ADVICE.items() if sign in str(error)), None)
                if advice is not None:
                    raise UserError(f"The sample store {self.uri} cannot be used: {advice}.") from error
                if waited >= self._patience:
                    self._patience = _FIRST_PATIENCE  # it is away: what is left to do does not wait that long again
                    raise
                left = self._patience - waited
                _LOG.warning("%s: %s; tried again in %.1f s, for %.0f s more", self.uri, error, pause, left)
            else:
                self._patience = _PATIENCE
                return result
            time.sleep(pause)
            waited += pause
            pause = min(2 * pause, _LONGEST_PAUSE)
